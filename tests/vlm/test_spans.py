"""The parts of an answer: in order, apart, and nothing that is said is lost."""

from hypothesis import given
from hypothesis import strategies as st

from vlm.spans import Parts, clause_spans, sentence_spans, spans_of, word_spans

TEXTS = st.text(st.sampled_from("aB é9.!?,;:— \n\"'and while"), max_size=60) | st.text(max_size=40)


@given(TEXTS, st.sampled_from(["sentence", "clause", "word"]))
def test_parts_are_in_order_apart_and_trimmed(text: str, parts: Parts) -> None:
    spans = spans_of(text, parts)
    reached = 0
    for start, end in spans:
        assert reached <= start < end <= len(text) and text[start:end] == text[start:end].strip()
        reached = end


@given(TEXTS)
def test_sentences_and_clauses_cover_all_but_white_space(text: str) -> None:
    for spans in (sentence_spans(text), clause_spans(text)):
        covered = {i for start, end in spans for i in range(start, end)}
        assert {i for i, letter in enumerate(text) if not letter.isspace()} <= covered


def said(text: str, spans: list[tuple[int, int]]) -> list[str]:
    return [text[start:end] for start, end in spans]


def test_what_is_a_sentence_a_clause_a_word() -> None:
    text = 'A cow, 3.5 m long, stands there. "Why?" she asks and laughs\nIt is red!'
    assert said(text, sentence_spans(text)) == [
        "A cow, 3.5 m long, stands there.", '"Why?"', "she asks and laughs", "It is red!"
    ]  # fmt: skip
    assert said(text, clause_spans(text)) == [
        "A cow,", "3.5 m long,", "stands there.", '"Why?"', "she asks", "and laughs", "It is red!"
    ]  # fmt: skip
    assert said("It's a well-lit room.", word_spans("It's a well-lit room.")) == ["It's", "a", "well-lit", "room", "."]
    assert said("... Yes. ...", sentence_spans("... Yes. ...")) == ["...", "Yes. ..."]
    assert sentence_spans("") == sentence_spans(" \n ") == []
