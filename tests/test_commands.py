"""The command line from end to end on a user's own folders: choose, rate, export, train, measure, fine-tune, sample."""

import json
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from mmrlhf import cli
from mmrlhf.images import content_hash
from mmrlhf.store import Store
from mmrlhf.types import Preference
from tests.small_clip import small_clip, warm_pairs
from tests.small_models import small_stable_diffusion


def call(*words: object) -> None:
    """One command that must succeed, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["mmrlhf", *map(str, words)])
        cli.main()


def refused(*words: object) -> int:
    """The exit status of one command that must fail."""
    with pytest.raises(SystemExit) as caught:
        call(*words)
    return int(str(caught.value.code))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Somebody's folder: a CLIP model, a Stable Diffusion model, pictures and prompts."""
    folder = tmp_path_factory.mktemp("home")
    small_clip(folder / "clip")
    small_stable_diffusion(folder / "sd")
    warm_pairs(folder / "rated")
    (folder / "prompts.txt").write_text("a red cat\na dog\n")
    return folder


def test_from_pictures_to_a_tuned_model(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = home / "rated" / "images"
    call("select", "--images", pictures, "--budget", 6, "--model", home / "clip", "--out", home / "chosen.json")
    chosen = json.loads((home / "chosen.json").read_text())
    assert len(set(chosen["indices"])) == 6

    files = sorted(pictures.glob("*.png"))
    store = Store(f"sqlite:///{home / 'ratings.db'}")
    keys = {content_hash(file.read_bytes()): file for file in files}
    store.add_items({key: (file, "a red cat") for key, file in keys.items()})
    names = list(keys)
    for first, second in zip(names[::2], names[1::2], strict=True):
        items = (first, second)
        store.add(Preference("a red cat", items, 1.0, "me", "human", items, vote_id=first))
    store.close()
    call("data", "export", "--store", f"sqlite:///{home / 'ratings.db'}", "--out", home / "export" / "mine.jsonl")
    lines = [json.loads(line) for line in (home / "export" / "mine.jsonl").read_text().splitlines()]
    assert len(lines) == len(names) // 2 and lines[0]["label_0"] == 1.0
    assert (home / "export" / lines[0]["image_0"]).resolve() == keys[names[0]].resolve()

    pairs, reward = home / "rated" / "pairs.jsonl", home / "reward"
    call("reward", "train", "--data", pairs, "--model", home / "clip", "--out", reward, "--epochs", 15)
    call("reward", "calibrate", "--reward", reward, "--data", pairs)
    call("reward", "eval", "--reward", reward, "--data", pairs, "--out", home / "eval.json")
    assert json.loads((home / "eval.json").read_text())["agreement"] > 0.8
    rows = [{"prompt": "a red cat", "image": str(file)} for file in files[:3]]
    (home / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    call("reward", "score", "--reward", reward, "--items", home / "items.jsonl", "--out", home / "scores.jsonl")
    scores = [json.loads(line)["score"] for line in (home / "scores.jsonl").read_text().splitlines()]
    assert len(scores) == 3 and len(set(scores)) == 3

    common = ("--model", home / "sd", "--prompts", home / "prompts.txt", "--num-steps", 3)
    call("diffusion", "ddpo", *common, "--reward", reward, "--out", home / "tuned", "--epochs", 2,
         "--samples-per-epoch", 4, "--train-batch-size", 4)  # fmt: skip
    assert load_file(home / "tuned" / "pytorch_lora_weights.safetensors")
    assert len((home / "tuned" / "metrics.jsonl").read_text().splitlines()) == 2
    runs: dict[str, tuple[object, ...]] = {"before": (), "after": ("--lora", home / "tuned")}
    for name, extra in runs.items():
        call("diffusion", "generate", *common, "--images-per-prompt", 2, "--out", home / name, *extra)
    pictures_of = {name: sorted((home / name).rglob("*.png")) for name in ("before", "after")}
    assert len(pictures_of["before"]) == len(pictures_of["after"]) == 4
    changed = [a.read_bytes() != b.read_bytes() for a, b in zip(*pictures_of.values(), strict=True)]
    assert any(changed)
    assert "scores" in capsys.readouterr().out


def test_mistakes_are_one_line_with_status_2_and_leave_nothing(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path for path in home.rglob("*") if "wal" not in path.name and "shm" not in path.name}
    empty = Store(f"sqlite:///{home / 'empty.db'}")
    empty.close()
    nowhere, out = home / "nowhere", home / "never"
    commands: list[tuple[object, ...]] = [
        ("select", "--images", nowhere, "--budget", 2, "--out", out),
        ("data", "export", "--store", nowhere / "ratings.db", "--out", out),
        ("data", "export", "--store", home / "empty.db", "--out", out),
        ("data", "export", "--store", home / "empty.db", "--out", out, "--source", "robots"),
        ("reward", "train", "--data", nowhere, "--out", out),
        ("reward", "eval", "--reward", nowhere, "--data", home / "rated" / "pairs.jsonl", "--out", out),
        ("reward", "score", "--reward", "tiny-clap", "--items", home / "rated" / "pairs.jsonl", "--out", out),
        ("diffusion", "generate", "--model", nowhere, "--prompts", home / "prompts.txt", "--out", out),
        ("diffusion", "ddpo", "--model", home / "sd", "--prompts", nowhere, "--reward", "tiny-clip", "--out", out),
        ("rate", "--items", nowhere, "--store", f"sqlite:///{home / 'new.db'}"),
        ("quickstart", "--out", home / "sd"),
    ]
    for words in commands:
        capsys.readouterr()
        assert refused(*words) == 2, words
        err = capsys.readouterr().err
        assert err.startswith("mmrlhf: error: ") and err.count("\n") == 1, err
    (home / "empty.db").unlink()
    left = {path for path in home.rglob("*") if "wal" not in path.name and "shm" not in path.name}
    assert left == before


def test_a_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Below a file there is no folder, even for root."""
    (tmp_path / "file").touch()
    assert refused("quickstart", "--out", tmp_path / "file" / "run") == 2
    assert "may write" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
