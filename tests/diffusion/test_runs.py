import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from diffusion.runs import (
    CHECKPOINT,
    check_folder,
    claim_folder,
    read_checkpoint,
    read_prompts,
    settings,
    write_metrics,
)
from mmrlhf.errors import UserError


@dataclass(frozen=True)
class Config:
    out: Path
    steps: int = 3


def test_prompts_are_the_lines_that_are_not_blank(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\n\n  ein Hündchen \n", encoding="utf-8")
    assert read_prompts(file) == ["a cat", "ein Hündchen"]


def test_unreadable_prompts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing.txt \(No such file.*give a text file with a prompt a line"):
        read_prompts(tmp_path / "missing.txt")
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(UserError, match="no prompt in .*empty.txt"):
        read_prompts(tmp_path / "empty.txt")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8 text"):
        read_prompts(tmp_path / "bytes.txt")


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
