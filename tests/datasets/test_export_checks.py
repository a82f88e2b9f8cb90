"""Exports without the raters who fail the store's check questions."""

from pathlib import Path
from typing import Any

import pytest

from mmrlhf.data import read_pairs
from mmrlhf.datasets.export import ExportConfig, export
from mmrlhf.errors import UserError
from mmrlhf.segments import read_segments
from mmrlhf.store import Preference, SegmentJudgement, Store, Task
from mmrlhf.store.checks import Check, add_checks
from tests.datasets.files import touch


@pytest.fixture
def store(tmp_path: Path) -> str:
    """ada passes 5 of 5 checks, bo 1 of 5, cy 0 of 4; each answers one pair and marks one answer."""
    touch(tmp_path, "a.png", "b.png")
    opened = Store(str(tmp_path / "s.db"))
    opened.add_items({name: (tmp_path / f"{name}.png", "p") for name in "ab"})
    add_checks(opened, [Check(Task(f"gold {i}", ("a", "b")), {"item": "a"}) for i in range(5)])
    for name, passed, asked in (("ada", 5, 5), ("bo", 1, 5), ("cy", 0, 4)):
        for i in range(asked):
            opened.add(Preference(f"gold {i}", ("a", "b"), float(i < passed), name, "human", ("a", "b")))
        opened.add(Preference("p", ("a", "b"), 1.0, name, "human", ("a", "b")))
        opened.add_segments(
            SegmentJudgement(prompt="p", item="a", text="so", segments=(), annotator=name, source="human")
        )
    opened.close()
    return str(tmp_path / "s.db")


def test_checks_are_no_data_and_who_fails_them_is_left_out_on_request(store: str, tmp_path: Path) -> None:
    def names(rate: float, format: Any = "pairs") -> list[str]:
        export(ExportConfig(tmp_path / "out.jsonl", store=store, format=format, min_check_rate=rate))
        read = read_segments if format == "segments" else read_pairs
        return [row.annotator for row in read(tmp_path / "out.jsonl")]

    assert names(0.0) == ["ada", "bo", "cy"] == names(0.6)
    assert names(0.7) == ["ada", "cy"] == names(0.7, "segments")  # of cy four say too little


def test_a_rate_that_cannot_be_is_one_line(store: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--min-check-rate got 70, allowed is 0 to 1, and only with --store"):
        export(ExportConfig(tmp_path / "out.jsonl", store=store, min_check_rate=70.0))
    with pytest.raises(UserError, match="--min-check-rate got 0.7, allowed is 0 to 1, and only with --store"):
        export(ExportConfig(tmp_path / "out.jsonl", data=tmp_path / "pairs.jsonl", min_check_rate=0.7))
