"""Labels on spans: written and read again equal, refused where they contradict, and completed with what was left unmarked."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf.errors import UserError
from mmrlhf.segments import (
    OPTIONAL_COLUMNS,
    SEGMENT_COLUMNS,
    TAGS,
    Segment,
    SegmentedItem,
    SegmentScore,
    read_segments,
    segments_row,
    tag_values,
    tags_to_values,
    with_rest,
    write_segments,
)
from mmrlhf.types import SegmentLabel

ROW: dict[str, Any] = {"item": "x", "answer": "A red cat.", "segments": []}
TEXT = st.text(
    st.one_of(st.sampled_from(' \n\r\x85\u2028"\\a.ü𝄞é'), st.characters(exclude_categories=["Cs"])), max_size=8
)
ANSWER = TEXT.filter(str.strip)


@st.composite
def segments_of(draw: st.DrawFn, item: str, answer: str | None, length: int) -> tuple[Segment, ...]:
    """Tags and scores on different spans, of which no two that overlap have different tags, nor both a correction."""
    kept: dict[tuple[int, int], Segment] = {}
    for _ in range(draw(st.integers(0, 5))):
        start = draw(st.integers(0, length - 1))
        end = draw(st.integers(start + 1, length))
        tag = draw(st.sampled_from(("", *TAGS)))
        if (start, end) in kept:
            continue
        if not tag:
            score = draw(st.floats(allow_nan=False, allow_infinity=False))
            kept[start, end] = SegmentScore(item, start, end, score)
        elif all(s.tag == tag or s.end <= start or end <= s.start for s in labels(kept.values())):
            stands = None if answer is None else answer[start:end]
            mended = draw(st.none() | TEXT) if tag != "correct" else None
            taken = any(s.correction is not None and s.start < end and start < s.end for s in labels(kept.values()))
            correction = None if mended == stands or taken else mended
            kept[start, end] = SegmentLabel(item, start, end, tag, correction)  # type: ignore[arg-type]
    return tuple(kept.values())


@st.composite
def fields(draw: st.DrawFn, image: Path | None = None) -> dict[str, Any]:
    """Of a `SegmentedItem`: an answer or steps, with or without a prompt, an image, a group and an annotator."""
    name = draw(TEXT.filter(bool))
    answer = draw(st.none() | ANSWER)
    steps = draw(st.integers(1, 12)) if answer is None else None
    segments = draw(segments_of(name, answer, len(answer) if answer is not None else steps or 0))
    picture = draw(st.sampled_from((None, image)))
    said = {"prompt": draw(TEXT), "group": draw(TEXT), "annotator": draw(TEXT)}
    return {"item": name, "segments": segments, "answer": answer, "steps": steps, "image": picture} | said


def labels(segments: Any) -> list[SegmentLabel]:
    return [segment for segment in segments if isinstance(segment, SegmentLabel)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an image."""
    path = tmp_path_factory.mktemp("segments")
    (path / "ü.png").touch()
    return path


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_written_and_read_again_is_the_same(data: st.DataObject, folder: Path) -> None:
    items = [SegmentedItem(**row) for row in data.draw(st.lists(fields(folder / "ü.png"), min_size=1, max_size=3))]
    write_segments(items, folder / "labels" / "segments.jsonl")
    assert read_segments(folder / "labels" / "segments.jsonl") == items


def test_a_line_by_hand(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    item = SegmentedItem(
        "x",
        (SegmentLabel("x", 2, 5, "misleading", ""), SegmentLabel("x", 6, 9, "correct"), SegmentScore("x", 0, 9, -0.5)),
        "what is it?", "A red cat.", image=tmp_path / "a.png", group="g", annotator="ann",
    )  # fmt: skip
    write_segments([item], tmp_path / "labels" / "x.jsonl")
    assert json.loads((tmp_path / "labels" / "x.jsonl").read_text()) == {
        "item": "x", "prompt": "what is it?", "image": "../a.png", "answer": "A red cat.", "group": "g", "annotator": "ann",
        "segments": [
            {"start": 2, "end": 5, "tag": "misleading", "correction": ""},
            {"start": 6, "end": 9, "tag": "correct"},
            {"start": 0, "end": 9, "score": -0.5},
        ],
    }  # fmt: skip
    steps = SegmentedItem("y", (), steps=3)
    assert segments_row(steps, tmp_path / "x.jsonl") == {"item": "y", "steps": 3, "segments": []}


def test_an_item_without_a_name_is_named_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    row = {"prompt": "q", "image": None, "answer": "ü", "segments": [{"start": 0, "end": 1, "score": 1}]}
    rows = [row, row | {"annotator": "b"}, row | {"answer": "u"}, row | {"prompt": "r"}, row | {"image": "a.png"}]
    first, again, *others = read_segments(lines(rows, tmp_path))
    assert first.item == again.item == first.segments[0].item and len(first.item) == 32
    assert len({item.item for item in [first, *others]}) == 4


def lines(rows: list[dict[str, Any]], folder: Path) -> Path:
    """A file of these rows."""
    path = folder / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def refused(row: dict[str, Any], message: str, folder: Path) -> None:
    """The second row of a file is refused in one line that names it."""
    with pytest.raises(UserError, match=rf"x\.jsonl row 2{message}") as raised:
        read_segments(lines([ROW, row], folder))
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 3}, " has both answer and steps: give the one that was judged"),
        ({"answer": None}, " has neither answer and steps: give the one that was judged"),
        ({"answer": " \n"}, r": answer got ' \\n', allowed is a text that is not empty"),
        ({"answer": "\ud834"}, r": answer got '\\ud834', allowed is a text"),
        ({"item": 7}, ": item got 7, allowed is a text of whole characters"),
        ({"item": "\ud834"}, r": item got '\\ud834', allowed is a text of whole characters"),
        ({"group": "\udd1e"}, r": group got '\\udd1e', allowed is a text of whole characters"),
        ({"annotator": 3}, ": annotator got 3, allowed is a text of whole characters"),
        ({"item": ""}, " has neither item nor prompt: give a name, or the prompt"),
        ({"prompt": "\ud834"}, r": prompt got '\\ud834', half of a surrogate pair"),
        ({"prompt": 3}, ": prompt got 3, allowed is a text"),
        ({"image": "nowhere.png"}, ": no file .*nowhere.png"),
        ({"segments": {}}, ": segments got {}, allowed is a list of objects"),
        ({"segments": None}, ": segments got None, allowed is a list of objects"),
        ({"label": 1}, " has the unknown column label: allowed are segments, item, prompt"),
    ],
)
def test_a_bad_row_is_one_line(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    refused(ROW | change, message, tmp_path)


@pytest.mark.parametrize("steps", [0, -1, 2.0, True, "3"])
def test_bad_steps(steps: Any, tmp_path: Path) -> None:
    refused(
        {"item": "x", "steps": steps, "segments": []}, ": steps got .*, allowed is a whole number, 1 or more", tmp_path
    )


def test_neither_answer_nor_steps(tmp_path: Path) -> None:
    refused({"item": "x", "segments": []}, " has neither answer and steps: give the one that was judged", tmp_path)


SPAN: dict[str, Any] = {"start": 2, "end": 5}


@pytest.mark.parametrize(
    ("segment", "message"),
    [
        (3, " got 3, allowed are start, end, tag or score, and correction"),
        ({}, r" got \[\], allowed are start, end, tag or score"),
        ({"start": 2, "tag": "correct"}, r" got \['start', 'tag'\], allowed are start, end, tag or score"),
        (SPAN | {"a\nb": 1}, r" got \['start', 'end', 'a\\nb'\], allowed are start, end, tag or score"),
        (SPAN | {"tag": "correct", "score": 1}, " has both tag and score: give one of them"),
        (SPAN, " has neither tag and score: give one of them"),
        (SPAN | {"tag": None}, " has neither tag and score: give one of them"),
        ({"start": None, "end": 5, "tag": "correct"}, ": start got None, end 5, allowed is 0 <= start < end <= 10"),
        (SPAN | {"tag": "wrong"}, ": tag got 'wrong', allowed are correct, misleading, irrelevant"),
        (SPAN | {"tag": "no\nne", "correction": "x"}, r": tag got 'no\\nne', allowed are correct"),
        (SPAN | {"tag": ["correct"]}, r": tag got \['correct'\], allowed are correct, misleading, irrelevant"),
        (SPAN | {"score": math.nan}, ": score got nan, allowed is a finite number"),
        (SPAN | {"score": -math.inf}, ": score got -inf, allowed is a finite number"),
        (SPAN | {"score": 10**400}, ": score got 10+, allowed is a finite number"),
        (SPAN | {"score": True}, ": score got True, allowed is a finite number"),
        (SPAN | {"score": "1"}, ": score got '1', allowed is a finite number"),
        (SPAN | {"tag": "misleading", "correction": 1}, ": correction got 1, allowed is a text, empty to delete"),
        (SPAN | {"tag": "misleading", "correction": "\ud834"}, r": correction got '\\ud834', allowed is a text"),
        (SPAN | {"tag": "correct", "correction": "big"}, " has tag 'correct' and a correction: leave it out, or tag"),
        (SPAN | {"score": 1, "correction": "big"}, " has a score and a correction: leave it out, or tag"),
        (SPAN | {"tag": "misleading", "correction": "red"}, " is misleading, but its correction is what stands there"),
    ],
)
def test_a_bad_segment_is_one_line(segment: Any, message: str, tmp_path: Path) -> None:
    refused(ROW | {"segments": [{"start": 0, "end": 1, "tag": "correct"}, segment]}, f" segment 2{message}", tmp_path)


@pytest.mark.parametrize(
    ("start", "end"), [(-1, 2), (2, 2), (3, 2), (0, 11), (10, 11), (0.0, 2), (False, 2), (0, True), ("0", 2), (0, None)]
)
def test_a_span_outside(start: Any, end: Any, tmp_path: Path) -> None:
    segment = {"start": start, "end": end, "tag": "correct"}
    message = f" segment 1: start got {start!r}, end {end!r}, allowed is 0 <= start < end <= 10 "
    refused(ROW | {"segments": [segment]}, rf"{message}characters \(code points, not bytes\)", tmp_path)
    refused({"item": "x", "steps": 10, "segments": [segment]}, f"{message}steps", tmp_path)


def test_positions_are_code_points(tmp_path: Path) -> None:
    row = {"item": "x", "answer": "𝄞ü", "segments": [{"start": 0, "end": 2, "tag": "correct"}]}
    assert read_segments(lines([row], tmp_path))[0].length == 2
    refused(row | {"segments": [{"start": 0, "end": 3, "tag": "correct"}]}, ".* end <= 2 characters", tmp_path)


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ([(0, 2, "correct"), (0, 2, "misleading")], " judges the span 0 to 2 twice: keep one of the two"),
        ([(0, 2, "correct"), (0, 2, "correct")], " judges the span 0 to 2 twice"),
        ([(0, 2, "correct"), (0, 2, 1.0)], " judges the span 0 to 2 twice"),
        (
            [(4, 8, "misleading"), (0, 5, "correct")],
            ": 0 to 5 is correct, 4 to 8 is misleading, but they overlap: end one",
        ),
        ([(0, 9, "correct"), (3, 4, "irrelevant")], ": 0 to 9 is correct, 3 to 4 is irrelevant, but they overlap"),
        ([(0, 9, "correct"), (0, 3, "irrelevant")], ": 0 to 9 is correct, 0 to 3 is irrelevant, but they overlap"),
        # the one that reaches furthest is not the last to start
        ([(0, 9, "correct"), (1, 2, "correct"), (5, 6, "misleading")], ": 0 to 9 is correct, 5 to 6 is misleading"),
    ],
)
def test_judgements_that_contradict(segments: list[tuple[int, int, Any]], message: str, tmp_path: Path) -> None:
    refused(ROW | {"segments": [judged(*segment) for segment in segments]}, message, tmp_path)


@pytest.mark.parametrize("corrections", [("blue", "dog"), ("blue", ""), ("same", "same"), ("", "")])
@pytest.mark.parametrize("spans", [((2, 5), (4, 9)), ((4, 9), (2, 5)), ((2, 9), (4, 5)), ((2, 9), (2, 5))])
def test_corrections_that_overlap(spans: Any, corrections: tuple[str, str], tmp_path: Path) -> None:
    """One text cannot hold both; one correction beside a bare tag is no contradiction, nor are two that touch."""
    bare = [judged(start, end, "misleading") for start, end in spans]
    segments = [segment | {"correction": mended} for segment, mended in zip(bare, corrections, strict=True)]
    first, second = sorted(zip(spans, corrections, strict=True), key=lambda each: each[0][0])
    said = ": {} to {} should be {!r}, {} to {} {!r}, but they overlap".format(
        *first[0], first[1], *second[0], second[1]
    )
    refused(ROW | {"segments": segments}, said, tmp_path)
    for kept in (0, 1):
        given = [bare[0], segments[1]] if kept else [segments[0], bare[1]]
        (item,) = read_segments(lines([ROW | {"segments": given}], tmp_path))
        assert [s.correction for s in labels(item.segments)].count(None) == 1
    touching = [judged(2, 5, "misleading") | {"correction": "blue"}, judged(5, 9, "misleading") | {"correction": "dog"}]
    assert len(read_segments(lines([ROW | {"segments": touching}], tmp_path))[0].segments) == 2


def test_null_is_as_good_as_absent(tmp_path: Path) -> None:
    segments: list[dict[str, Any]] = [
        judged(0, 2, "misleading"), judged(2, 3, 0.5), judged(4, 5, "misleading") | {"correction": "x"},
    ]  # fmt: skip
    filled = [dict.fromkeys(SEGMENT_COLUMNS) | segment for segment in segments]
    given: dict[str, Any]
    for given in ({"prompt": "q", "answer": "A red cat."}, {"item": "x", "steps": 5}):
        row = given | {"segments": segments}
        nulls = dict.fromkeys(OPTIONAL_COLUMNS) | given | {"segments": filled}
        first, second = read_segments(lines([row, nulls], tmp_path))
        assert first == second and len(first.segments) == 3


def judged(start: int, end: int, said: str | float) -> dict[str, Any]:
    """A segment as a file has it."""
    return {"start": start, "end": end, "tag" if isinstance(said, str) else "score": said}


def test_judgements_that_may_overlap_or_touch(tmp_path: Path) -> None:
    said: list[tuple[int, int, Any]] = [
        (0, 4, "correct"), (2, 5, "correct"), (5, 7, "misleading"), (0, 10, 1.0), (1, 10, -1.0), (7, 10, "correct"),
    ]  # fmt: skip
    (item,) = read_segments(lines([ROW | {"segments": [judged(*segment) for segment in said]}], tmp_path))
    assert [(s.start, s.end, s.tag if isinstance(s, SegmentLabel) else s.score) for s in item.segments] == said


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (
            SegmentedItem("a\nb", (SegmentScore("a\nb", 0, 3, 1.0),), answer="no"),
            r"item 'a\\nb' segment 1: start got 0",
        ),
        (SegmentedItem("x", (), answer="no", steps=2), "item 'x' has both answer and steps"),
        (SegmentedItem("x", ()), "item 'x' has neither answer and steps"),
        (SegmentedItem("x", (), answer="no", group="\ud834"), "item 'x': group got"),
        (SegmentedItem("x", (SegmentScore("x", 0, 1, math.nan),), answer="no"), "segment 1: score got nan"),
    ],
)
def test_what_could_not_be_read_is_not_written(item: SegmentedItem, message: str, tmp_path: Path) -> None:
    good = SegmentedItem("good", (), answer="yes")
    with pytest.raises(UserError, match=message) as raised:
        write_segments([good, item], tmp_path / "x.jsonl")
    assert len(str(raised.value).splitlines()) == 1 and not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("item", "rest"),
    [
        (SegmentedItem("x", (SegmentLabel("x", 2, 5, "misleading", "big"),), answer="A red cat. "), [(0, 1), (6, 10)]),
        (SegmentedItem("x", (), answer="\n A cat. It sits.\t"), [(2, 17)]),
        (SegmentedItem("x", (SegmentScore("x", 2, 3, 1.0), SegmentScore("x", 0, 1, 1.0)), answer="a b"), []),
        (SegmentedItem("x", (SegmentLabel("x", 0, 3, "irrelevant"),), answer="a b"), []),
        (SegmentedItem("x", tuple(SegmentScore("x", a, b, 0.0) for a, b in ((3, 4), (2, 6), (8, 9))), steps=10),
         [(0, 2), (6, 8), (9, 10)]),
        (SegmentedItem("x", (), steps=3), [(0, 3)]),
    ],
)  # fmt: skip
def test_the_rest_by_hand(item: SegmentedItem, rest: list[tuple[int, int]]) -> None:
    for tag in TAGS:
        found = with_rest(item, tag)
        new = [segment for segment in found.segments if segment not in item.segments]
        assert new == [SegmentLabel("x", start, end, tag) for start, end in rest]  # type: ignore[arg-type]
        assert len(found.segments) == len(item.segments) + len(new)


@settings(max_examples=150, deadline=None)
@given(fields())
def test_with_the_rest_all_is_judged(row: dict[str, Any]) -> None:
    item = SegmentedItem(**row)
    whole = with_rest(item)
    new = [segment for segment in whole.segments if segment not in item.segments]
    assert set(item.segments) <= set(whole.segments) and len(whole.segments) == len(item.segments) + len(new)
    assert [s.start for s in whole.segments] == sorted(s.start for s in whole.segments)
    judged_before, judged_now = positions(item.segments), positions(whole.segments)
    text = item.answer if item.answer is not None else "." * item.length
    assert {i for i, character in enumerate(text) if not character.isspace()} <= set(judged_now)
    assert set(positions(new)).isdisjoint(judged_before) and len(set(positions(new))) == len(positions(new))
    assert all(s.tag == "correct" and text[s.start : s.end] == text[s.start : s.end].strip() for s in labels(new))
    assert with_rest(whole) == whole


def positions(segments: Any) -> list[int]:
    return [i for segment in segments for i in range(segment.start, segment.end)]


def test_the_rest_takes_a_known_tag() -> None:
    with pytest.raises(UserError, match="the tag of the rest got 'fine', allowed are correct, misleading, irrelevant"):
        with_rest(SegmentedItem("x", (), steps=3), "fine")


def test_tags_as_numbers() -> None:
    assert tag_values() == {"correct": 1.0, "irrelevant": 0.0, "misleading": -1.0}
    assert set(tag_values()) == set(TAGS)
    segments: list[Segment] = [
        SegmentLabel("x", 0, 1, "misleading"), SegmentLabel("x", 0, 1, "irrelevant"), SegmentLabel("x", 0, 1, "correct"),
        SegmentScore("x", 0, 1, 7.5),
    ]  # fmt: skip
    assert tags_to_values(segments) == [-1.0, 0.0, 1.0, 7.5]
    assert tags_to_values(segments, irrelevant=-0.25) == [-1.0, -0.25, 1.0, 7.5]
    assert tags_to_values([]) == []


@pytest.mark.parametrize("value", [-1.0, 1.0, 2.0, math.nan])
def test_irrelevant_is_between_the_others(value: float) -> None:
    with pytest.raises(UserError, match=rf"the value of irrelevant got {value}, allowed is above -1 \(misleading\)"):
        tag_values(value)


def test_what_is_independent() -> None:
    image = Path("a.png")
    assert SegmentedItem("x", (), "q", "a", image=image, group="g").unit == "g"
    assert SegmentedItem("x", (), "q", "a").unit == SegmentedItem("y", (), "q", "b").unit == "q"
    pictured = [SegmentedItem("x", (), "q", "a", image=path) for path in (image, image, Path("b.png"), None)]
    assert pictured[0].unit == pictured[1].unit and len({item.unit for item in pictured}) == 3
    assert SegmentedItem("x", (), steps=3).unit == "x"
