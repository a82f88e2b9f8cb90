"""A run's folder: whose it is, what was measured in it, and the state to go on from."""

import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmrlhf.checkpoint import load_checkpoint
from mmrlhf.data import is_unused, write_text
from mmrlhf.errors import UserError
from mmrlhf.models import TINY_NAMES
from mmrlhf.rewards import REWARDS

CONFIG, METRICS, CHECKPOINT, ADVICE = "config.json", "metrics.jsonl", "checkpoint.pt", "advice.json"
READ_UP_TO = 100 * 10**6
# option -> the files of the folder it names that a run depends on; not where the folder lies, nor what else is in it
CONTENT = {
    "model": ("model_index.json", "*/*.json", "*/*.txt", "*/*.safetensors", "*/*.bin"),
    "reward": (
        "reward.json",
        "*config.json",
        "tokenizer.json",
        "vocab.json",
        "merges.txt",
        "*.model",
        "*.safetensors",
        "*.bin",
    ),
    "lora": ("pytorch_lora_weights.safetensors",),
    "adapter": ("adapter_config.json", "adapter_model.safetensors"),
}
NAMES: dict[str, Collection[str]] = {"model": TINY_NAMES, "reward": REWARDS}  # looked up before any folder of that name


class RunResult(NamedTuple):
    """Where a run wrote, a dict of figures an epoch, and why it ended early ("" where it did not)."""

    out: Path
    metrics: list[dict[str, Any]]
    stopped: str = ""


def settings(config: Any, prompts: Sequence[str]) -> dict[str, Any]:
    """A config as plain data, to tell one run from another, with digests of the prompts and of the folders it names.

    A store's password is not in it.
    """
    plain = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    if plain.get("store"):
        from mmrlhf.store import store_name

        plain["store"] = store_name(plain["store"])
    digests = {"prompts": hashlib.sha256("\n".join(prompts).encode()).hexdigest()}
    for name, patterns in CONTENT.items():
        value = plain.get(name)
        if value and value not in NAMES.get(name, ()):
            digests[name] = content_digest(Path(value), patterns)
    return plain | {f"{name}_sha256": digest for name, digest in digests.items() if digest}


def content_digest(path: Path, patterns: Sequence[str]) -> str:
    """sha256 over the sorted names and the bytes of a folder's files that match, or of the one file; "" where there is none.

    A file over 100 MB counts by its size and time of change: reading gigabytes would hold up every start. So the folder of
    a large model can be moved, but a copy of it is the same only with its times kept (`cp -p`).
    """
    found = [path] if path.is_file() else [file for pattern in patterns for file in path.glob(pattern)]
    folder = path.parent if path.is_file() else path
    files = {file.relative_to(folder).as_posix(): file for file in found}
    lines = [f"{name} {digest_of(files[name])}\n" for name in sorted(files) if files[name].is_file()]
    return hashlib.sha256("".join(lines).encode()).hexdigest() if lines else ""


def digest_of(file: Path) -> str:
    """sha256 of a file's bytes, or of its size and time of change where it is large."""
    status = file.stat()
    if status.st_size > READ_UP_TO:
        return hashlib.sha256(f"{status.st_size} {status.st_mtime_ns}".encode()).hexdigest()
    return hashlib.sha256(file.read_bytes()).hexdigest()


def check_folder(
    out: Path, wanted: dict[str, Any], *, resume: bool, may_differ: Collection[str] = (), config: str = CONFIG
) -> None:
    """UserError unless `out` is empty or not there, or, with `resume`, holds a run of the same settings (in its file `config`).

    A path may differ where both runs have a digest of what is at it.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: give a folder")
    if is_unused(out):
        return
    if not resume:
        raise UserError(
            f"--out {out} already holds files: give an empty folder, or --resume to go on with the run in it{unfinished(out)}"
        )
    found = read_object(out / config)
    if found is None:
        raise UserError(f"--out {out} holds files but no run ({config} is missing or broken): give an empty folder")
    by_content = {key for key in wanted if f"{key}_sha256" in found and f"{key}_sha256" in wanted}
    compared = [key for key in {**found, **wanted} if key not in may_differ and key not in by_content]
    different = [key for key in compared if found.get(key) != wanted.get(key)]
    if different:
        key = different[0]
        raise UserError(
            f"--out {out} holds a run with other settings ({', '.join(different)}; {key} was {found.get(key)!r}, now "
            f"{wanted.get(key)!r}): give the settings of that run, or an empty folder{unfinished(out)}"
        )


def run_settings(folder: Path) -> dict[str, Any]:
    """The settings of the run in a folder, as `settings` made them; {} where none is there."""
    return read_object(folder / CONFIG) or {}


def read_object(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None where it is missing, broken or something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def unfinished(out: Path) -> str:
    """What to add of a run of which nothing is worth keeping: it has no line of metrics, and no checkpoint."""
    metrics = out / METRICS
    lost = metrics.is_file() and not metrics.stat().st_size and not (out / CHECKPOINT).exists()
    return f"; it holds a run that has not finished an epoch: if none is going on, remove {out}" if lost else ""


def claim_folder(out: Path, wanted: dict[str, Any], config: str = CONFIG) -> None:
    """Mark `out` as the folder of the run with these settings."""
    write_text(json.dumps(wanted, indent=2) + "\n", out / config)


def write_metrics(out: Path, metrics: Sequence[dict[str, Any]]) -> None:
    """(Re)write `metrics.jsonl`, a line an entry."""
    write_text("".join(json.dumps(line) + "\n" for line in metrics), out / METRICS)


def write_advice(out: Path, problems: Mapping[str, str]) -> None:
    """Keep in `advice.json` what each of the problems that `metrics.jsonl` names is, and what to change: the newest words."""
    known = read_object(out / ADVICE) or {}
    write_text(json.dumps({**known, **problems}, indent=2) + "\n", out / ADVICE)


def read_checkpoint(out: Path, parts: Collection[str] = ("policy", "optimizer", "metrics")) -> dict[str, Any] | None:
    """The state to resume from, or None where none was saved yet. UserError where the file is broken, or lacks one of `parts`."""
    broken = f"the checkpoint {out / CHECKPOINT} is broken: remove it to start again from the beginning"
    try:
        state = load_checkpoint(out / CHECKPOINT)
    except OSError:
        raise
    except Exception as error:  # torch raises whatever the bytes lead it to
        raise UserError(broken) from error
    if state is not None and not (isinstance(state, dict) and set(parts) <= state.keys()):
        raise UserError(broken)
    return state
