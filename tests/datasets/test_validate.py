"""Every fault is listed with its row."""

import json
from pathlib import Path
from typing import Any

import pytest

from mmrlhf.data import Pair, write_pairs
from mmrlhf.datasets.validate import ValidateConfig, validate
from mmrlhf.errors import UserError
from tests.datasets.files import touch


def test_validate_lists_every_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    touch(tmp_path, "a.png", "b.png")
    (tmp_path / "c.png").write_bytes(b"not an image")
    good: dict[str, Any] = {"prompt": "p", "image_0": "a.png", "image_1": "b.png", "label_0": 1, "label_1": 0}
    bad: list[dict[str, Any]] = [
        {"label_0": None},
        {"image_1": "a.png"},
        {"image_1": "gone.png"},
        {"image_1": "c.png"},
        {"colour": 3},
    ]
    lines = [json.dumps(row) for row in [good, *(good | change for change in bad)]] + ["{"]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError, match="6 faults beside 1 usable pairs"):
        validate(ValidateConfig(tmp_path / "pairs.jsonl"))
    printed = capsys.readouterr().out
    for number, words in enumerate(
        ("label_0 got None", "with itself", "no file", "cannot be decoded", "unknown column", "not JSON"), start=2
    ):
        assert any(f"row {number}" in line and words in line for line in printed.splitlines()), (number, words)
    write_pairs([Pair("p", tmp_path / "a.png", tmp_path / "b.png", 1.0)], tmp_path / "good.jsonl")
    assert validate(ValidateConfig(tmp_path / "good.jsonl")) == []
