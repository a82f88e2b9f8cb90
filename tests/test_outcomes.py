"""Outcomes of every kind: read, written, and refused where they are none."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf.data import Item, Pair
from mmrlhf.errors import UserError
from mmrlhf.outcomes import Outcome, Ranking, Rating, items_of, read_outcomes, strict_pairs, write_outcomes


def touch(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).touch()
    return [folder / name for name in names]


def test_kinds_may_be_mixed(tmp_path: Path) -> None:
    a, b, c = touch(tmp_path, "a.png", "b.png", "c.png")
    images = ["a.png", "b.png", "c.png"]
    rows: list[dict[str, Any]] = [
        {"prompt": "p", "image_0": "a.png", "image_1": "b.png", "label_0": 1, "label_1": 0, "margin": 0.5},
        {"prompt": "p", "images": images, "ranks": [2, 1, 2], "annotator": "ann"},
        {"prompt": "p", "images": images, "best": 2, "criterion": "fit"},
        {"prompt": "p", "image": "a.png", "rating": 4},
        {"prompt": "p", "image": "b.png", "rating": 7, "levels": 10},
        {"prompt": "p", "image": "c.png", "safe": False},
    ]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcomes = read_outcomes(tmp_path / "all.jsonl")
    expected: list[Outcome] = [
        Pair("p", a, b, 1.0, margin=0.5),
        Ranking("p", (a, b, c), (2.0, 1.0, 2.0), annotator="ann"),
        Ranking("p", (a, b, c), (2.0, 2.0, 1.0), criterion="fit"),
        Rating("p", a, 4),
        Rating("p", b, 7, 10),
        Rating("p", c, 1, 2, criterion="safety"),
    ]
    assert outcomes == expected
    write_outcomes(outcomes, tmp_path / "again.jsonl")
    assert read_outcomes(tmp_path / "again.jsonl") == outcomes
    assert items_of(outcomes[1]) == [Item("p", a), Item("p", b), Item("p", c)]


@settings(max_examples=30)
@given(ranks=st.lists(st.integers(1, 4), min_size=2, max_size=6))
def test_strict_pairs_are_all_that_differ(ranks: list[int]) -> None:
    images = tuple(Path(f"{i}.png") for i in range(len(ranks)))
    pairs = strict_pairs(Ranking("p", images, tuple(map(float, ranks))))
    assert len(pairs) == sum(a != b for i, a in enumerate(ranks) for b in ranks[i + 1 :])
    for pair in pairs:
        first, second = (ranks[images.index(image)] for image in (pair.image_0, pair.image_1))
        assert pair.label_0 == (first < second) and first != second


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"images": ["a.png", "b.png"], "ranks": [1]},
            r"row 1: ranks got \[1\], allowed is a number for each of the 2",
        ),
        ({"images": ["a.png", "b.png"], "ranks": [1, 1]}, "not all equal"),
        ({"images": ["a.png", "b.png"], "ranks": [1, float("nan")]}, "ranks got"),
        ({"images": ["a.png"], "ranks": [1]}, "allowed is a list of 2 or more paths"),
        ({"images": ["a.png", "a.png"], "ranks": [1, 2]}, "names an image twice"),
        ({"images": ["a.png", "b.png"], "best": 2}, "best got 2, allowed is 0 to 1"),
        ({"image": "a.png", "rating": 6}, "rating got 6 of 5 levels"),
        ({"image": "a.png", "rating": 2.5}, "rating got 2.5"),
        ({"image": "a.png", "safe": "no"}, "safe got 'no', allowed is true or false"),
        ({"image": "a.png", "rating": 1, "stars": 3}, "unknown column stars"),
        ({"image": "z.png", "rating": 1}, "no file .*z.png"),
        ({"image": "a.png", "rating": 1, "annotator": 3}, "annotator got 3, allowed is a text"),
        ({"image": "a.png"}, "row 1 lacks image_0"),
    ],
)
def test_a_bad_row_is_one_line(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png")
    (tmp_path / "x.jsonl").write_text(json.dumps({"prompt": "p"} | row) + "\n")
    with pytest.raises(UserError, match=message):
        read_outcomes(tmp_path / "x.jsonl")
