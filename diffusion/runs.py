"""A run's folder: whose it is, what was measured in it, and the state to go on from."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmrlhf.checkpoint import load_checkpoint
from mmrlhf.errors import UserError

CONFIG, METRICS, CHECKPOINT = "config.json", "metrics.jsonl", "checkpoint.pt"


class RunResult(NamedTuple):
    """Where a run wrote, a dict of figures an epoch, and why it ended early ("" where it did not)."""

    out: Path
    metrics: list[dict[str, Any]]
    stopped: str = ""


def read_prompts(path: Path) -> list[str]:
    """The prompts of a text file, one a line; blank lines are left out. UserError where there is none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"cannot read the prompts {path} ({reason}): give a text file with a prompt a line") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise UserError(f"no prompt in {path}: write a prompt a line")
    return prompts


def settings(config: Any, prompts: Sequence[str]) -> dict[str, Any]:
    """A config as plain data, with a digest of the prompts, to tell one run from another."""
    plain = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    return plain | {"prompts_sha256": hashlib.sha256("\n".join(prompts).encode()).hexdigest()}


def check_folder(out: Path, wanted: dict[str, Any], *, resume: bool, may_differ: Collection[str] = ()) -> None:
    """UserError unless `out` is empty or not there, or, with `resume`, holds a run of the same settings."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: give a folder")
    if not out.is_dir() or all(path.suffix == ".tmp" for path in out.iterdir()):  # .tmp: from a write that was cut off
        return
    if not resume:
        raise UserError(
            f"--out {out} already holds files: give an empty folder, or --resume to go on with the run in it"
        )
    try:
        found = json.loads((out / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError
    except (OSError, ValueError) as error:
        raise UserError(
            f"--out {out} holds files but no run ({CONFIG} is missing or broken): give an empty folder"
        ) from error
    different = [key for key in {**found, **wanted} if key not in may_differ and found.get(key) != wanted.get(key)]
    if different:
        key = different[0]
        raise UserError(
            f"--out {out} holds a run with other settings ({', '.join(different)}; {key} was {found.get(key)!r}, now "
            f"{wanted.get(key)!r}): give the settings of that run, or an empty folder"
        )


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def claim_folder(out: Path, wanted: dict[str, Any]) -> None:
    """Mark `out` as the folder of the run with these settings."""
    write_text(out / CONFIG, json.dumps(wanted, indent=2) + "\n")


def write_metrics(out: Path, metrics: Sequence[dict[str, Any]]) -> None:
    """(Re)write `metrics.jsonl`, a line an entry."""
    write_text(out / METRICS, "".join(json.dumps(line) + "\n" for line in metrics))


def read_checkpoint(out: Path) -> dict[str, Any] | None:
    """The state to resume from, or None where none was saved yet. UserError where the file is broken."""
    broken = f"the checkpoint {out / CHECKPOINT} is broken: remove it to start again from the beginning"
    try:
        state = load_checkpoint(out / CHECKPOINT)
    except OSError:
        raise
    except Exception as error:  # torch raises whatever the bytes lead it to
        raise UserError(broken) from error
    if state is not None and not (isinstance(state, dict) and {"policy", "optimizer", "metrics"} <= state.keys()):
        raise UserError(broken)
    return state
