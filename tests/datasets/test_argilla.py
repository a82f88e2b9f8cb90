"""Argilla: records as its own library writes them are read, what is written comes back equal, and a bad response is one line."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf.answers import AnswerPair
from mmrlhf.data import Pair
from mmrlhf.datasets.argilla import read, suited, write
from mmrlhf.datasets.importing import ImportConfig, import_data
from mmrlhf.datasets.rows import BadRow, Fault, Row
from mmrlhf.datasets.validate import ValidateConfig, validate
from mmrlhf.errors import UserError
from mmrlhf.outcomes import Ranking, Rating
from mmrlhf.points import PointedImage
from mmrlhf.segments import SegmentedItem
from mmrlhf.types import SegmentLabel
from tests.datasets.anything import of_all_kinds, same, written_and_read
from tests.datasets.files import json_file, touch

NAMES = ("a.png", "b.png", "sub folder/c.png", "d.png")
ANN, BEN = "00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000002"


MISLEADING = {"label": "misleading", "start": 2, "end": 5}


def record(fields: dict[str, Any], responses: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A record as argilla 2.8's `Record.to_dict` gives it."""
    about = {"id": "746939da-3559-40bf-b762-14bd6ea7bb23", "metadata": {}, "suggestions": {}, "vectors": {}}
    return about | {"fields": fields, "responses": responses, "status": "pending", "_server_id": None} | more


def said(value: Any, user: str | None = ANN) -> list[dict[str, Any]]:
    return [{"value": value, "user_id": user}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("argilla")
    touch(folder, *NAMES)
    return folder


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_what_is_written_comes_back_equal(folder: Path, data: st.DataObject) -> None:
    drafts = data.draw(of_all_kinds([folder / name for name in NAMES], corrections=False, points=False))
    judgements = [draft() for draft in drafts]
    once = written_and_read(judgements, "argilla", folder / "out" / "records.json")
    assert same(once, judgements)
    again = written_and_read(once, "argilla", folder / "records.json")
    assert same(again, once) and written_and_read(again, "argilla", folder / "records.json") == again


def test_its_own_records_are_read(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png", "c.png")
    a, b, c = (tmp_path / name for name in ("a.png", "b.png", "c.png"))
    two = {"prompt": "a fox", "image_0": "a.png", "image_1": "b.png"}
    three = {**two, "image_2": "c.png"}
    source = json_file(
        [
            record(
                two,
                {"preference": [*said("image_1"), *said("tie", BEN)]},
                metadata={"group": "g", "names": [f"{BEN}=ben=x"]},
                suggestions={"preference": {"value": "image_0", "score": 0.7, "agent": "m"}},
            ),
            record({"prompt": "a fox", "image": "c.png"}, {"rating": said(4), "safety": said("unsafe")}),
            record(three, {"ranking": said(["image_2", "image_0", "image_1"])}),
            record(
                three,
                {"prompt-fit-1f": said([{"value": f"image_{i}", "rank": rank} for i, rank in ((1, 1), (0, 2), (2, 2))])},
                metadata={"names": ["prompt-fit-1f=prompt fit"]},
            ),
            record({"prompt": "q", "answer_0": "x", "answer_1": "y", "image": "a.png"}, {"preference": said("answer_0")}),
            record({"prompt": "q", "answer": "a dog"}, {"spans": [*said([MISLEADING]), *said([], BEN)]}),
        ],
        tmp_path / "records.json",
    )  # fmt: skip
    rows = list(read(source, None))
    assert [row for row in rows if isinstance(row, Fault)] == []
    *found, marked, nothing = [row.judgement for row in rows if isinstance(row, Row)]
    assert found == [
        Pair("a fox", a, b, 0.0, group="g", annotator=ANN),
        Pair("a fox", a, b, 0.5, group="g", annotator="ben=x"),
        Pair("a fox", a, b, 1.0, group="g", annotator="ai-m"),
        Rating("a fox", c, 4, annotator=ANN),
        Rating("a fox", c, 1, 2, annotator=ANN, criterion="safety"),
        Ranking("a fox", (a, b, c), (2.0, 3.0, 1.0), annotator=ANN),
        Ranking("a fox", (a, b, c), (2.0, 1.0, 2.0), annotator=ANN, criterion="prompt fit"),
        AnswerPair("q", "x", "y", 1.0, a, annotator=ANN),
    ]
    assert isinstance(marked, SegmentedItem) and isinstance(nothing, SegmentedItem)
    assert [(s.start, s.end, s.tag) for s in marked.segments] == [(2, 5, "misleading")]  # type: ignore[union-attr]
    assert nothing.segments == () and nothing.annotator == BEN and nothing.item == marked.item


TWO = {"prompt": "p", "image_0": "a.png", "image_1": "b.png"}


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ({"responses": {}}, "lacks fields"),
        (record(TWO, {}, metadata=3), "metadata got 3, allowed is an object"),
        (record(TWO, {}), "has no response"),
        (record(TWO, {"preference": ["image_0"]}), "response 1 to 'preference': got 'image_0', allowed is an object"),
        (record(TWO, {"preference": said("image_7")}), "the preferred one got 'image_7', allowed are image_0, image_1, tie"),
        (record(TWO, {"preference": said(None)}), "value got None, allowed is a label"),
        (record(TWO, {"rating": said(3)}), "rates an image, and the task has 0"),
        (record({"prompt": "p", "image": "a.png"}, {"rating": said(9)}), "the rating got 9 of 5 levels"),
        (record(TWO, {"ranking": said(["image_0", "image_0"])}), "allowed is each of the task's 2 images once"),
        (record(TWO, {"ranking": said([{"rank": 1}, 3])}), "the ranking got {'rank': 1}"),
        (record(TWO, {"ranking": said([{"value": f"image_{i}", "rank": 1} for i in (0, 1)])}), "gives all images one rank"),
        (record({"prompt": "p", "answer": "a dog"}, {"spans": said([{"start": 1}])}), "a span got {'start': 1}"),
        (record({"prompt": "p", "answer": "a"}, {"spans": said([{"start": 0, "end": 1, "label": "x"}])}), "tag got 'x'"),
        (record(TWO, {"spans": said([])}), "labels spans, and the task has no column answer"),
        (record({"image_0": "a.png", "image_1": "b.png"}, {"preference": said("tie")}), "lacks prompt"),
    ],
)  # fmt: skip
def test_a_bad_response_is_one_line(
    bad: dict[str, Any], problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    touch(tmp_path, "a.png", "b.png")
    source = json_file([record(TWO, {"preference": said("image_0")}), bad], tmp_path / "records.json")
    with pytest.raises(UserError, match="has 1 faults beside 1 usable judgements"):
        validate(ValidateConfig(source, "argilla"))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "records.json row 2" in line]
    assert problem in line
    assert import_data(ImportConfig("argilla", source, tmp_path / "out", on_fault="skip")) == 1


def test_what_it_has_no_place_for_is_refused() -> None:
    with pytest.raises(BadRow, match="has a correction, for which Argilla's spans have no place"):
        suited(SegmentedItem("x", (SegmentLabel("x", 0, 1, "misleading", "b"),), "p", "a"))
    with pytest.raises(BadRow, match="points at places in an image, for which Argilla has no question"):
        suited(PointedImage("p", Path("a.png"), ()))
    with pytest.raises(BadRow, match="label_0 0.7, and Argilla takes 1, 0 or 0.5"):
        suited(Pair("p", Path("a"), Path("b"), 0.7))


def test_a_record_has_a_person_once_and_a_model_as_a_suggestion(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png")
    a, b = tmp_path / "a.png", tmp_path / "b.png"
    votes = [
        Pair("p", a, b, label, annotator=name)
        for label, name in ((1.0, ""), (0.0, ""), (1.0, "ai-m"), (0.5, "ai-n"), (1.0, ANN))
    ]
    write([*votes, Rating("p", a, 3, criterion="Prompt fit", annotator="ann")], tmp_path / "r.json")
    first, second, rated = json.loads((tmp_path / "r.json").read_text())
    assert first["fields"] == second["fields"] == {"prompt": "p", "image_0": "a.png", "image_1": "b.png"}
    assert [len(r["responses"]["preference"]) for r in (first, second)] == [2, 1]
    assert [r["suggestions"]["preference"]["agent"] for r in (first, second)] == ["m", "n"]
    assert first["id"] != second["id"] and ANN in str(first["responses"])
    (question,) = rated["responses"]
    assert question.startswith("prompt-fit-") and f"{question}=Prompt fit" in rated["metadata"]["names"]
