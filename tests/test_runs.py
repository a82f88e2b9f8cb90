import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from mmrlhf.errors import UserError
from mmrlhf.runs import (
    CHECKPOINT,
    check_folder,
    claim_folder,
    content_digest,
    read_checkpoint,
    settings,
    write_metrics,
)


@dataclass(frozen=True)
class Config:
    out: Path
    steps: int = 3
    prompts: Path = Path("prompts.txt")
    model: str = "tiny-sd"
    reward: str = "brightness"


def test_a_folder_belongs_to_one_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    wanted = settings(Config(out), ["a cat"])
    check_folder(out, wanted, resume=False)
    check_folder(out, wanted, resume=True)  # nothing there yet: the run was killed before its first line
    claim_folder(out, wanted)
    check_folder(out, wanted, resume=True)
    with pytest.raises(UserError, match="already holds files: give an empty folder, or --resume"):
        check_folder(out, wanted, resume=False)
    with pytest.raises(UserError, match=r"other settings \(steps; steps was 3, now 4\)"):
        check_folder(out, settings(Config(out, 4), ["a cat"]), resume=True)
    check_folder(out, settings(Config(out, 4), ["a cat"]), resume=True, may_differ=["steps"])
    with pytest.raises(UserError, match="other settings .prompts_sha256"):
        check_folder(out, settings(Config(out), ["a dog"]), resume=True)


def test_of_a_run_that_did_not_finish_an_epoch_nothing_is_lost(tmp_path: Path) -> None:
    out = tmp_path / "run"
    wanted, other = settings(Config(out), ["a cat"]), settings(Config(out, 4), ["a cat"])
    claim_folder(out, wanted)
    write_metrics(out, [])
    for now, resume in ((wanted, False), (other, True)):
        with pytest.raises(UserError, match=f"has not finished an epoch: if none is going on, remove {out}"):
            check_folder(out, now, resume=resume)
    write_metrics(out, [{"epoch": 0}])
    with pytest.raises(UserError, match="or --resume to go on with the run in it$"):
        check_folder(out, wanted, resume=False)


def test_paths_may_differ_where_their_content_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    reward, model = Path("reward"), Path("model")
    (model / "unet").mkdir(parents=True)
    (model / "unet" / "model.safetensors").write_bytes(b"unet")
    reward.mkdir()
    for name in ("reward.json", "head.safetensors", "model.safetensors", "config.json"):
        (reward / name).write_bytes(name.encode())
    out = tmp_path / "run"
    claim_folder(out, settings(Config(out, reward="reward", model="model"), ["a cat"]))

    moved = Path(shutil.move(reward, tmp_path / "other")), Path(shutil.copytree(model, tmp_path / "copy"))
    moved_config = Config(out, prompts=tmp_path / "p.txt", reward=str(moved[0]), model=str(moved[1]))
    (moved[0] / "train.json").write_text("{}")  # tells how it was made, not what it says
    check_folder(out, settings(moved_config, ["a cat"]), resume=True)
    (moved[0] / "head.safetensors").write_bytes(b"trained on")
    with pytest.raises(UserError, match=r"other settings \(reward_sha256; reward_sha256 was"):
        check_folder(out, settings(moved_config, ["a cat"]), resume=True)
    with pytest.raises(
        UserError, match=r"other settings .reward, reward_sha256; reward was 'reward', now 'brightness'"
    ):
        check_folder(out, settings(Config(out, model="model"), ["a cat"]), resume=True)


def test_a_name_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--reward brightness --out brightness`: the reward stays the name after the run has written the folder."""
    monkeypatch.chdir(tmp_path)
    before = settings(Config(Path("brightness")), [])
    for name in ("brightness", "tiny-sd"):
        Path(name).mkdir()
        (Path(name) / "config.json").write_text("{}")
        (Path(name) / "model_index.json").write_text("{}")
    assert settings(Config(Path("brightness")), []) == before


def test_a_stores_password_is_no_setting() -> None:
    @dataclass(frozen=True)
    class OfStore:
        store: str | None

    assert settings(OfStore("postgresql://ann:hush@host/ratings"), [])["store"] == "postgresql://ann:***@host/ratings"
    assert settings(OfStore(None), [])["store"] is None


def test_content_is_names_and_bytes_and_of_large_files_size_and_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    a.write_text("1")
    digests = {content_digest(tmp_path, ["*.json"]), content_digest(a, [])}
    assert len(digests) == 1  # a file is the folder of it alone
    a.rename(b)
    digests.add(content_digest(tmp_path, ["*.json"]))
    b.write_text("2")
    digests.add(content_digest(tmp_path, ["*.json"]))
    os.utime(b, ns=(0, 0))
    digests.add(content_digest(tmp_path, ["*.json"]))
    assert len(digests) == 3
    monkeypatch.setattr("mmrlhf.runs.READ_UP_TO", 0)
    digests.add(content_digest(tmp_path, ["*.json"]))
    os.utime(b, ns=(0, 1))
    digests.add(content_digest(tmp_path, ["*.json"]))
    assert len(digests) == 5
    assert content_digest(tmp_path, ["*.bin"]) == content_digest(tmp_path / "missing", ["*"]) == ""


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    wanted = settings(Config(tmp_path), [])
    (tmp_path / "config.json.123.tmp").write_text("{")  # left by a killed write of ours
    check_folder(tmp_path, wanted, resume=True)
    (tmp_path / "thesis.txt").write_text("my only copy")
    for resume in (True, False):
        with pytest.raises(UserError, match="give an empty folder"):
            check_folder(tmp_path, wanted, resume=resume)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(UserError, match="config.json is missing or broken"):
        check_folder(tmp_path, wanted, resume=True)
    with pytest.raises(UserError, match="is a file: give a folder"):
        check_folder(tmp_path / "thesis.txt", wanted, resume=False)


def test_metrics_are_a_line_an_entry(tmp_path: Path) -> None:
    write_metrics(tmp_path, [{"epoch": 0}, {"epoch": 1}])
    write_metrics(tmp_path, [{"epoch": 0, "kl": 0.5}])
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [
        {"epoch": 0, "kl": 0.5}
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_broken_checkpoint_is_one_line(tmp_path: Path) -> None:
    assert read_checkpoint(tmp_path) is None
    for content in (b"", b"junk", b"PK\x03\x04 half a zip"):
        (tmp_path / CHECKPOINT).write_bytes(content)
        with pytest.raises(UserError, match="checkpoint.pt is broken: remove it to start again"):
            read_checkpoint(tmp_path)
    torch.save({"policy": {}}, tmp_path / CHECKPOINT)
    with pytest.raises(UserError, match="checkpoint.pt is broken"):
        read_checkpoint(tmp_path)
