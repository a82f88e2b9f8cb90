"""Label Studio: its own export is read, what is written comes back equal, and a bad annotation is one line."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf.answers import AnswerPair
from mmrlhf.data import Pair, read_pairs
from mmrlhf.datasets.export import ExportConfig, export
from mmrlhf.datasets.importing import ImportConfig, import_data
from mmrlhf.datasets.label_studio import read, write
from mmrlhf.datasets.rows import Fault, Row
from mmrlhf.datasets.validate import ValidateConfig, validate
from mmrlhf.errors import UserError
from mmrlhf.outcomes import Ranking, Rating, read_outcomes
from mmrlhf.points import Point, PointedImage, read_points
from mmrlhf.segments import SegmentedItem, read_segments
from tests.datasets.anything import of_all_kinds, same, written_and_read
from tests.datasets.files import json_file, touch

NAMES = ("a.png", "b.png", "sub folder/c.png", "d.png")


def task(data: dict[str, Any], *results: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A task as Label Studio exports it, with the keys that are passed over."""
    annotation = {
        "id": 7, "completed_by": {"id": 3, "email": "ann@example.org", "first_name": "", "last_name": ""},
        "result": list(results), "was_cancelled": False, "ground_truth": False, "created_at": "2026-01-01T00:00:00Z",
        "lead_time": 4.2, "unique_id": "u",
    }  # fmt: skip
    return {
        "id": 1,
        "annotations": [annotation | more],
        "predictions": [11],
        "data": data,
        "meta": {},
        "total_annotations": 1,
    }


def result(name: str, to: str, kind: str, value: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"id": "r", "from_name": name, "to_name": to, "type": kind, "origin": "manual", "value": value} | more


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("studio")
    touch(folder, *NAMES)
    return folder


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_what_is_written_comes_back_equal(folder: Path, data: st.DataObject) -> None:
    drafts = data.draw(of_all_kinds([folder / name for name in NAMES], corrections=True, points=True))
    judgements = [draft() for draft in drafts]
    once = written_and_read(judgements, "label-studio", folder / "out" / "tasks.json")
    assert same(once, judgements)
    assert written_and_read(once, "label-studio", folder / "tasks.json") == once


def test_its_own_export_is_read(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png", "upload/1/c.png")
    a, b, c = (tmp_path / name for name in ("a.png", "b.png", "upload/1/c.png"))
    two = {"prompt": "a fox", "image_0": "/data/local-files/?d=a.png", "image_1": "b.png", "extra": 1}
    one = {"text": "a fox", "image": "/data/upload/1/c.png"}
    texts = {"prompt": "what is it", "answer_0": "a fox", "answer_1": "a dog"}
    items = [
        {"id": "m1", "title": "first", "image": "a.png"},
        {"id": "m2", "image": "b.png"},
        {"id": 3, "image": "/data/upload/1/c.png"},
    ]
    listed = {"prompt": "p", "items": items}
    marked = {"prompt": "what is it", "answer": "a 🐶 dog", "image": "a.png"}
    source = json_file(
        [
            task(two, result("pw", "pw", "pairwise", {"selected": "right"})),
            task(two, result("tie", "image_0", "choices", {"choices": ["Tie"]}), completed_by=5),
            task(two, result("fit", "image_1", "rating", {"rating": 4}), result("rating", "image_0", "rating", {"rating": 1})),
            task(one, result("safety", "image", "choices", {"choices": ["unsafe"]}), completed_by=None),
            task(texts, result("pairwise", "answer_0,answer_1", "pairwise", {"selected": "left"})),
            task(listed, result("rank", "items", "ranker", {"ranker": {"rank": ["3", "m1", "m2"]}})),
            task(listed, result("fit", "items", "ranker", {"ranker": {"2": ["m1", "m2"], "1": ["3"], "_": []}})),
            task(
                marked,
                result("spans", "answer", "labels", {"start": 2, "end": 3, "text": "🐶", "labels": ["misleading"]}, id="x"),
                result("correction", "answer", "textarea", {"start": 2, "end": 3, "text": ["big"]}, id="x"),
                result("spans", "answer", "labels", {"start": 4, "end": 7, "labels": ["correct"]}, id="y"),
            ),
            task(marked, completed_by={"id": 9}),
            task(two, was_cancelled=True) | {"predictions": [{"model_version": "m", "result": [PAIRWISE]}]},
        ],
        tmp_path / "project.json",
    )  # fmt: skip
    rows = list(read(source, None))
    assert [row for row in rows if isinstance(row, Fault)] == []
    *found, first_marked, second_marked, of_model = [row.judgement for row in rows if isinstance(row, Row)]
    ann: Any = {"annotator": "ann@example.org"}
    assert found == [
        Pair("a fox", a, b, 0.0, **ann),
        Pair("a fox", a, b, 0.5, annotator="5"),
        Rating("a fox", b, 4, criterion="fit", **ann),
        Rating("a fox", a, 1, **ann),
        Rating("a fox", c, 1, 2, criterion="safety"),
        AnswerPair("what is it", "a fox", "a dog", 1.0, **ann),
        Ranking("p", (a, b, c), (2.0, 3.0, 1.0), **ann),
        Ranking("p", (a, b, c), (2.0, 2.0, 1.0), criterion="fit", **ann),
    ]
    assert of_model == Pair("a fox", a, b, 1.0, annotator="ai-m")
    assert isinstance(first_marked, SegmentedItem) and isinstance(second_marked, SegmentedItem)
    assert (first_marked.image, first_marked.answer, second_marked.segments) == (a, "a 🐶 dog", ())
    assert [(s.start, s.end, s.tag, s.correction) for s in first_marked.segments] == [  # type: ignore[union-attr]
        (2, 3, "misleading", "big"),
        (4, 7, "correct", None),
    ]


TWO = {"prompt": "p", "image_0": "a.png", "image_1": "b.png"}
ONE = {"prompt": "p", "image": "a.png"}
DOG = {"prompt": "p", "answer": "a dog"}
PAIRWISE = result("pw", "image_0,image_1", "pairwise", {"selected": "left"})


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({"prompt": "p", "image": "a.png"}, "lacks data"),
        ({"data": [], "annotations": []}, "data got .*allowed is an object"),
        (task(TWO, was_cancelled=True), "has no annotation"),
        (task(TWO), "says nothing"),
        (task(TWO, PAIRWISE | {"value": {"selected": "middle"}}), "selected got 'middle'"),
        (task(TWO, PAIRWISE | {"to_name": "img1,img2"}), "the preferred one got 'img1'"),
        (task(TWO, PAIRWISE, PAIRWISE), "has 2 results of 'pw'"),
        (task(TWO, PAIRWISE | {"type": "brushlabels"}), "is of type 'brushlabels', allowed are pairwise"),
        (task(TWO, PAIRWISE | {"from_name": None}), "the question's name got None"),
        (task({**TWO, "image_1": "gone.png"}, PAIRWISE), r"image_1: no file .*gone.png; say with --images"),
        (task({**TWO, "image_1": "https://example.org/b.png"}, PAIRWISE), "image_1 is on the web"),
        (task({**TWO, "image_1": "data:image/png;base64,%%"}, PAIRWISE), "image_1 is no data URI"),
        (task({"image_0": "a.png", "image_1": "b.png"}, PAIRWISE), "lacks prompt"),
        (task(ONE, result("k", "image", "keypointlabels", {"x": 101, "y": 5, "keypointlabels": ["hand"]})),
         "point 1: x got 1.01, y 0.05, allowed are numbers from 0 to 1"),
        (task(ONE, result("k", "image", "keypointlabels", {"x": "1", "y": 5, "keypointlabels": ["hand"]})), "x got '1'"),
        (task(ONE, result("k", "image", "keypointlabels", {"x": 1, "y": 5})), "keypointlabels got None, allowed is one label"),
        (task(ONE, result("k", "image", "keypointlabels", {"x": 1, "y": 5, "keypointlabels": [""]})), "tag got ''"),
        (task(ONE, result("k", "img", "keypointlabels", {"x": 1, "y": 5, "keypointlabels": ["a"]})), "about 'img', which is no"),
        (task(ONE), "says nothing"),
        (task(TWO, result("x", "image_0", "choices", {"choices": ["maybe"]})), r"choices got \['maybe'\]"),
        (task(TWO, result("r", "image_0", "rating", {"rating": 6})), "the rating got 6 of 5 levels"),
        (task(TWO, result("r", "other", "rating", {"rating": 3})), "about 'other', which is no column"),
        (task(TWO, result("r", "items", "ranker", {"ranker": ["a"]})), "has no list items"),
        (
            task({"prompt": "p", "items": [{"id": "a", "image": "a.png"}, {"id": "b", "image": "b.png"}]},
                 result("r", "items", "ranker", {"ranker": {"good": ["a"], "bad": ["b"]}})),
            "buckets named by their ranks",
        ),
        (
            task({"prompt": "p", "items": [{"id": "a", "image": "a.png"}, {"id": "b", "image": "b.png"}]},
                 result("r", "items", "ranker", {"ranker": ["a"]})),
            "allowed is each of the task's 2 images once",
        ),
        (
            task(DOG, result("s", "answer", "labels", {"start": 2, "end": 5, "labels": ["wrong"]})),
            "tag got 'wrong', allowed are correct",
        ),
        (
            task(DOG, result("s", "answer", "labels", {"start": 2, "end": 5, "text": "cat", "labels": ["correct"]})),
            "is 'dog', and its text says 'cat'",
        ),
        (
            task(DOG, result("s", "answer", "labels", {"start": 2, "end": 50, "labels": ["correct"]})),
            "allowed is 0 <= start < end <= 5",
        ),
    ],
)  # fmt: skip
def test_a_bad_annotation_is_one_line(
    record: dict[str, Any], problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    touch(tmp_path, "a.png", "b.png")
    source = json_file([task(TWO, PAIRWISE), record], tmp_path / "project.json")
    with pytest.raises(UserError, match="has 1 faults beside 1 usable judgements"):
        validate(ValidateConfig(source, "label-studio"))
    lines = [line for line in capsys.readouterr().out.splitlines() if "project.json row 2" in line]
    assert len(lines) == 1
    with pytest.raises(UserError, match=f"row 2.*{problem}"):
        import_data(ImportConfig("label-studio", source, tmp_path / "out"))
    assert import_data(ImportConfig("label-studio", source, tmp_path / "out", on_fault="skip")) == 1


def test_one_bad_result_leaves_the_others(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png")
    bad = result("fit", "image_0", "rating", {"rating": 0})
    source = json_file(
        [task(TWO, PAIRWISE, bad, result("look", "image_0", "rating", {"rating": 2}))], tmp_path / "p.json"
    )
    first, fault, third = read(source, None)
    assert isinstance(first, Row) and isinstance(third, Row) and third.judgement.criterion == "look"  # type: ignore[union-attr]
    assert fault == Fault(f"{source} row 1 annotation 1", "the rating got 0 of 5 levels, allowed is a whole number from 1 to "
                          "levels (5 where the task has no column levels)")  # fmt: skip


def test_import_export_import_through_the_commands(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png")
    marked = {"prompt": "what is it", "answer": "a dog", "image": "a.png"}
    label = result("spans", "answer", "labels", {"start": 2, "end": 5, "text": "dog", "labels": ["misleading"]})
    veto = result("safety", "image_0", "choices", {"choices": ["unsafe"]})
    source = json_file([task(TWO, PAIRWISE, veto), task(marked, label)], tmp_path / "project.json")
    assert import_data(ImportConfig("label-studio", source, tmp_path / "one")) == 3
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["outcomes.jsonl", "segments.jsonl"]
    for name, read_file in (("outcomes", read_outcomes), ("segments", read_segments)):
        out = tmp_path / f"{name}.json"
        export(ExportConfig(out, data=tmp_path / "one" / f"{name}.jsonl", format="label-studio"))
        import_data(ImportConfig("label-studio", out, tmp_path / name))
        again = read_file(tmp_path / name / f"{name}.jsonl")
        assert again == read_file(tmp_path / "one" / f"{name}.jsonl") and again


def keypoint(x: float, y: float, tag: str, to: str = "image") -> dict[str, Any]:
    return result(
        "kp", to, "keypointlabels", {"x": x, "y": y, "width": 0.4, "keypointlabels": [tag]}, original_width=640
    )


def test_points_are_read_from_its_key_points_and_come_back_through_the_commands(tmp_path: Path) -> None:
    """All points of an annotator in one image are one row; percent of the sides become shares of them."""
    touch(tmp_path, "a.png", "b.png")
    a, b = tmp_path / "a.png", tmp_path / "b.png"
    stars = result("stars", "image", "rating", {"rating": 2})
    source = json_file(
        [
            task(ONE, keypoint(12.5, 100, "hand"), stars, keypoint(0, 33.3, "text"), completed_by="ann"),
            task({**ONE, "asked": "points"}, completed_by="ben"),
            task(TWO, keypoint(50, 50, "hand", "image_0"), keypoint(25, 75, "hand", "image_1"), completed_by="ann"),
        ],
        tmp_path / "project.json",
    )
    assert import_data(ImportConfig("label-studio", source, tmp_path / "one")) == 5
    found = read_points(tmp_path / "one" / "points.jsonl")
    assert found == [
        PointedImage("p", a, (Point(0.125, 1.0, "hand"), Point(0.0, 0.333, "text")), annotator="ann"),
        PointedImage("p", a, (), annotator="ben"),  # looked, and found nothing
        PointedImage("p", a, (Point(0.5, 0.5, "hand"),), annotator="ann"),
        PointedImage("p", b, (Point(0.25, 0.75, "hand"),), annotator="ann"),
    ]
    assert read_outcomes(tmp_path / "one" / "outcomes.jsonl") == [Rating("p", a, 2, annotator="ann", criterion="stars")]
    export(ExportConfig(tmp_path / "out.json", data=tmp_path / "one" / "points.jsonl", format="label-studio"))
    shared, _ = json.loads((tmp_path / "out.json").read_text())
    assert shared["data"]["asked"] == "points" and len(shared["annotations"]) == 3
    assert shared["annotations"][0]["result"][0]["value"] == {
        "x": 12.5,
        "y": 100.0,
        "width": 1.0,
        "keypointlabels": ["hand"],
    }
    import_data(ImportConfig("label-studio", tmp_path / "out.json", tmp_path / "two"))
    assert sorted(read_points(tmp_path / "two" / "points.jsonl"), key=repr) == sorted(found, key=repr)


@settings(max_examples=200, deadline=None)
@given(x=st.floats(0, 1), y=st.floats(0, 1))
def test_any_place_stays_where_it_is_and_then_for_ever(folder: Path, x: float, y: float) -> None:
    """A percentage keeps twelve digits of a click's sixteen."""
    (once,) = written_and_read(
        [PointedImage("p", folder / "a.png", (Point(x, y, "hand"),))], "label-studio", folder / "k.json"
    )
    assert isinstance(once, PointedImage)
    assert once.points[0][:2] == pytest.approx((x, y), abs=1e-12, rel=0) and once.points[0].tag == "hand"
    assert written_and_read([once], "label-studio", folder / "k.json") == [once]


def test_pictures_inside_the_file_become_files(tmp_path: Path) -> None:
    import base64

    touch(tmp_path, "a.png", "b.png")
    inside = "data:image/png;base64," + base64.b64encode((tmp_path / "a.png").read_bytes()).decode()
    source = json_file([task({**TWO, "image_0": inside}, PAIRWISE)], tmp_path / "project.json")
    import_data(ImportConfig("label-studio", source, tmp_path / "out"))
    (pair,) = read_pairs(tmp_path / "out" / "pairs.jsonl")
    assert pair.image_0.parent == tmp_path / "out" / "images" and pair.image_1 == tmp_path / "b.png"
    assert pair.image_0.read_bytes() == (tmp_path / "a.png").read_bytes()


def test_several_people_share_a_task(tmp_path: Path) -> None:
    touch(tmp_path, *NAMES)
    a, b = tmp_path / "a.png", tmp_path / "sub folder" / "c.png"
    votes = [
        Pair("p", a, b, 1.0, annotator="ann"),
        Pair("p", a, b, 0.0, annotator="ben"),
        Pair("p", a, b, 1.0, annotator="ai-m"),
    ]
    ratings = [Rating("p", a, 4, annotator="ann", criterion=name) for name in ("fit", "look")]
    write([*votes, *ratings], tmp_path / "tasks.json")
    first, second = json.loads((tmp_path / "tasks.json").read_text())
    assert [each["completed_by"]["email"] for each in first["annotations"]] == ["ann", "ben"]
    assert first["predictions"][0]["model_version"] == "m"
    assert first["data"]["image_1"] == "/data/local-files/?d=sub%20folder/c.png"
    (only,) = second["annotations"]
    assert [each["from_name"] for each in only["result"]] == ["fit", "look"]


@pytest.mark.parametrize(
    ("judgement", "words"),
    [
        (Pair("p", Path("a"), Path("b"), 0.7), "label_0 0.7"),
        (Pair("p", Path("a"), Path("b"), 1.0, has_label=False), "has no label"),
        (Rating("p", Path("a"), 2, criterion="rating"), "by the criterion 'rating', which in Label Studio names"),
        (SegmentedItem("x", (), steps=4), "spans of steps"),
    ],
)
def test_what_it_has_no_place_for_is_refused(judgement: Any, words: str) -> None:
    from mmrlhf.datasets.label_studio import suited
    from mmrlhf.datasets.rows import BadRow

    with pytest.raises(BadRow, match=words):
        suited(judgement)
