"""The parts of an answer that can be judged: sentences, clauses, words; positions are characters, [start, end)."""

import re
from typing import Literal

Parts = Literal["sentence", "clause", "word"]
Span = tuple[int, int]

# a sentence ends at signs before white space; "3.5" and "e.g.," go on
SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s|$)|\n+")
CLAUSE_END = re.compile(
    r"[.!?…]+[\"'”’)\]]*(?=\s|$)|\n+|[,;:—–](?=\s)|\s(?=(?:and|but|while|where|which|who|with)\s)", re.IGNORECASE
)
WORD = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]")


def spans_of(text: str, parts: Parts) -> list[Span]:
    """The parts of a text in order, none over another, without white space at their ends.

    Sentences and clauses cover all that is not white space.
    """
    return {"sentence": sentence_spans, "clause": clause_spans, "word": word_spans}[parts](text)


def sentence_spans(text: str) -> list[Span]:
    """Sentences; a line is one where it ends without a sign."""
    return split_at(text, SENTENCE_END)


def clause_spans(text: str) -> list[Span]:
    """Sentences, cut at commas, semicolons, colons, dashes, and before the words that join clauses."""
    return split_at(text, CLAUSE_END)


def word_spans(text: str) -> list[Span]:
    """Words, and signs by themselves."""
    return [found.span() for found in WORD.finditer(text)]


def split_at(text: str, ends: re.Pattern[str]) -> list[Span]:
    """The stretches that end where `ends` ends, trimmed, but for those that hold no letter or digit: they join the one before."""
    found: list[Span] = []
    reached = 0
    for end in [*(match.end() for match in ends.finditer(text)), len(text)]:
        piece = text[reached:end]
        first = reached + len(piece) - len(piece.lstrip())
        last = first + len(piece.strip())
        reached = max(reached, end)
        if first >= last:
            continue
        if found and not any(letter.isalnum() for letter in text[first:last]):
            found[-1] = (found[-1][0], last)
        else:
            found.append((first, last))
    return found
