"""POINTS.jsonl: what is written comes back equal, and a bad row is one line."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf.errors import UserError
from mmrlhf.points import Point, PointedImage, read_points, write_points
from tests.datasets.files import touch

UNIT = st.floats(0, 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("points")
    touch(folder, "a.png", "sub/b.png")
    return folder


@settings(deadline=None)
@given(
    places=st.lists(st.lists(st.tuples(UNIT, UNIT, TEXT.filter(bool)), max_size=4), min_size=1, max_size=4),
    texts=st.lists(TEXT, min_size=3, max_size=3),
)
def test_what_is_written_comes_back_equal(folder: Path, places: Any, texts: list[str]) -> None:
    prompt, group, annotator = texts
    rows = [
        PointedImage(
            prompt, folder / ("a.png", "sub/b.png")[number % 2], tuple(Point(*each) for each in some), group, annotator
        )
        for number, some in enumerate(places)
    ]
    write_points(rows, folder / "out" / "points.jsonl")
    assert read_points(folder / "out" / "points.jsonl") == rows
    assert rows[0].unit == (group or prompt)


GOOD: dict[str, Any] = {"prompt": "p", "image": "a.png", "points": [{"x": 0, "y": 1, "tag": "hand"}]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": "all"}, "points got 'all', allowed is a list of objects"),
        ({"points": [[0, 1, "hand"]]}, "point 1 got .*allowed is an object with x, y and tag"),
        ({"points": [{"x": 0, "y": 1}]}, "point 1 got .*allowed is an object with x, y and tag"),
        ({"points": [*GOOD["points"], {"x": 0, "y": 1.5, "tag": "a"}]}, "point 2: x got 0, y 1.5, allowed are"),
        ({"points": [{"x": True, "y": 1, "tag": "a"}]}, "x got True"),
        ({"points": [{"x": float("nan"), "y": 1, "tag": "a"}]}, "x got nan"),
        ({"points": [{"x": 0, "y": 1, "tag": ""}]}, "tag got '', allowed is a text that is not empty"),
        ({"points": [{"x": 0, "y": 1, "tag": "\ud800"}]}, "tag got"),
        ({"image": "gone.png"}, "no file .*gone.png"),
        ({"annotator": 3}, "annotator got 3, allowed is a text"),
        ({"score": 3}, "score"),
    ],
)  # fmt: skip
def test_a_bad_row_is_one_line(folder: Path, change: dict[str, Any], message: str) -> None:
    (folder / "bad.jsonl").write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD | change) + "\n")
    with pytest.raises(UserError, match=f"bad.jsonl row 2.*{message}"):
        read_points(folder / "bad.jsonl")
