"""Scores from a file, and from a reward where the file has none."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mmrlhf.data import write_jsonl
from mmrlhf.errors import UserError
from mmrlhf.images import save_image
from mmrlhf.rewards.evaluation.round_scores import read_scores
from mmrlhf.rewards.rules.simple import Brightness


def row(image: str, **more: Any) -> dict[str, Any]:
    return {"prompt": image, "image": image} | more


def test_scores_in_the_file_are_used_and_need_no_image(tmp_path: Path) -> None:
    write_jsonl([row("gone.png", score=2), row("lost.png", score=None)], tmp_path / "scores.jsonl")
    found = read_scores(tmp_path / "scores.jsonl", Brightness(), 8)
    assert (found.prompts, found.scores.tolist(), found.abstained) == (["gone.png"], [2.0], 1)


def test_items_are_scored(tmp_path: Path) -> None:
    for level in (0.2, 0.8):
        save_image(torch.full((3, 2, 2), level), tmp_path / f"{level}.png")
    write_jsonl([row("0.8.png"), row("0.2.png")], tmp_path / "items.jsonl")
    found = read_scores(tmp_path / "items.jsonl", Brightness(), 8)
    assert found.prompts == ["0.8.png", "0.2.png"] and found.scores.tolist() == pytest.approx([0.8, 0.2])
    with pytest.raises(UserError, match='has no "score": give --reward'):
        read_scores(tmp_path / "items.jsonl", None, 8)
    write_jsonl([row("0.8.png"), row("0.2.png", score=1)], tmp_path / "items.jsonl")
    with pytest.raises(UserError, match="has a score in 1 rows and none in 1: give all of them one, or none"):
        read_scores(tmp_path / "items.jsonl", Brightness(), 8)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row("a.png", score="high")], "row 1: score got 'high', allowed is a number, or null"),
        ([row("a.png", score=True)], "row 1: score got True"),
        ([row("a.png", score=float("inf"))], "row 1: score got inf"),
        ([row("a.png", score=None)], "has 1 abstentions and no score"),
        ([row("a.png")], "no file .*a.png"),
    ],
)
def test_bad_rows(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    write_jsonl(rows, tmp_path / "scores.jsonl")
    with pytest.raises(UserError, match=message):
        read_scores(tmp_path / "scores.jsonl", Brightness(), 8)
