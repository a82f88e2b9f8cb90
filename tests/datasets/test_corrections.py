"""What was corrected, as spans of the answer."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf.answers import AnswerPair
from mmrlhf.datasets.corrections import corrections, segments_line
from mmrlhf.segments import segmented_item_of

WORDS = st.lists(st.sampled_from(["a", "cat", "dog", "sits", ",", ".", "\n", " ", "ü", "𝄞", "on"]), max_size=12).map(
    " ".join
)


@pytest.mark.parametrize(
    ("answer", "corrected", "spans"),
    [
        ("A red cat sits.", "A black cat sits.", [(" red", " black")]),
        ("A big red cat.", "A cat.", [(" big red", "")]),
        ("A cat.", "A black cat.", [("A", "A black")]),
        ("cat sits", "The cat sits", [("cat", "The cat")]),
        ("cat", "the cat sits", [("cat", "the cat sits")]),
        ("Two dogs and a cat", "One dog and a cat", [("Two dogs", "One dog")]),
        ("Ein 𝄞 Hund.", "Ein 𝄞 Pferd.", [(" Hund", " Pferd")]),
        ("same", "same", []),
    ],
)
def test_spans_by_hand(answer: str, corrected: str, spans: list[tuple[str, str]]) -> None:
    found = corrections(answer, corrected)
    assert [(answer[s.start : s.end], s.correction) for s in found] == spans
    assert {s.tag for s in found} <= {"misleading"}


@settings(max_examples=200, deadline=None)
@given(WORDS.filter(str.strip), WORDS)
def test_applied_they_give_the_corrected_answer(answer: str, corrected: str) -> None:
    found = corrections(answer, corrected)
    result, end = answer, len(answer)
    for segment in reversed(found):
        assert 0 <= segment.start < segment.end <= end
        result = result[: segment.start] + str(segment.correction) + result[segment.end :]
        end = segment.start
    assert result == corrected


@settings(max_examples=200, deadline=None)
@given(WORDS.filter(str.strip), WORDS.filter(str.strip), st.sampled_from([1.0, 0.0]))
def test_a_line_is_a_labelled_item(answer: str, corrected: str, label: float) -> None:
    pair = AnswerPair("q", corrected, answer, 1.0) if label else AnswerPair("q", answer, corrected, 0.0)
    item = segmented_item_of(segments_line(pair, Path("segments.jsonl")), Path(), "row 1")
    assert (item.prompt, item.answer, bool(item.segments)) == ("q", answer, answer != corrected)
