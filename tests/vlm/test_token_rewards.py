"""Which characters a generated token completes, and that no reward is lost on the way from characters to tokens."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rewards.small_vlm import letter_tokenizer
from vlm.answer_rewards import Judgement, SpanReward
from vlm.token_rewards import Where, offsets_of, token_rewards

TOKENIZER = letter_tokenizer()
END = TOKENIZER.eos_token_id


def said(tokens: list[int]) -> str:
    return TOKENIZER.decode(tokens, skip_special_tokens=True).strip()


def spelt(text: str) -> list[int]:
    """A token a byte, but for " A" and " B"."""
    return TOKENIZER(text, add_special_tokens=False).input_ids


def test_offsets_by_hand() -> None:
    assert offsets_of(TOKENIZER, [*spelt(" A x B"), END], "A x B") == ((0, 1), (1, 2), (2, 3), (3, 5), (5, 5))
    # é and € are two and three bytes, a token each: the last of them completes the character
    assert offsets_of(TOKENIZER, spelt("é€b"), "é€b") == ((0, 0), (0, 1), (1, 1), (1, 1), (1, 2), (2, 3))
    assert offsets_of(TOKENIZER, spelt("🦊"), "🦊") == ((0, 0), (0, 0), (0, 0), (0, 1))
    assert offsets_of(TOKENIZER, [END], "") == ((0, 0),)
    assert offsets_of(TOKENIZER, spelt("x  "), "x") == ((0, 1), (1, 1), (1, 1))  # white space is no part of the text


def test_marks_and_half_characters_complete_nothing_wrongly() -> None:
    e = spelt("é")
    tokens = [TOKENIZER.bos_token_id, *spelt("a"), TOKENIZER.pad_token_id, e[0], *spelt("b"), END]
    text = said(tokens)
    assert text == "a�b"
    offsets = offsets_of(TOKENIZER, tokens, text)
    assert offsets[0] == (0, 0) and offsets[1] == (0, 1) and offsets[4][1] == 3 and offsets[-1] == (3, 3)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, len(TOKENIZER) - 1), min_size=1, max_size=12))
def test_offsets_of_any_tokens_tile_the_text(tokens: list[int]) -> None:
    text = said(tokens)
    offsets = offsets_of(TOKENIZER, tokens, text)
    assert len(offsets) == len(tokens)
    ends = [0, *(end for _, end in offsets)]
    assert [start for start, _ in offsets] == ends[:-1] and ends == sorted(ends) and ends[-1] == len(text)


def test_rewards_by_hand() -> None:
    offsets = ((0, 1), (1, 3), (3, 5), (5, 5))
    judgement = Judgement((SpanReward(0, 2, 1.0), SpanReward(2, 3, -3.0), SpanReward(3, 5, 0.5)), 4.0)
    assert token_rewards(judgement, offsets, "segments") == [0.0, -2.0, 0.5, 4.0]
    assert token_rewards(judgement, offsets, "end") == [0.0, 0.0, 0.0, 2.5]
    assert token_rewards(Judgement((), 1.0), ((0, 0),), "segments") == [1.0]
    assert math.isnan(token_rewards(Judgement((), float("nan")), offsets, "end")[-1])


@st.composite
def judged(draw: Any) -> tuple[list[int], str, Judgement]:
    tokens = draw(st.lists(st.integers(0, len(TOKENIZER) - 1), min_size=1, max_size=12))
    text = said(tokens)
    cuts = sorted(draw(st.sets(st.integers(0, len(text)), max_size=6)))
    values = st.floats(-10, 10, allow_nan=False)
    spans = [SpanReward(start, end, draw(values)) for start, end in zip(cuts, cuts[1:], strict=False)]
    return tokens, text, Judgement(tuple(spans), draw(values))


@settings(max_examples=100, deadline=None)
@given(judged(), st.sampled_from(["segments", "end"]))
def test_nothing_is_lost(case: tuple[list[int], str, Judgement], at: Where) -> None:
    tokens, text, judgement = case
    offsets = offsets_of(TOKENIZER, tokens, text)
    rewards = token_rewards(judgement, offsets, at)
    assert len(rewards) == len(tokens) and math.fsum(rewards) == pytest.approx(judgement.total, abs=1e-9)
    for span in judgement.spans if at == "segments" else ():
        own = Judgement((span,), 0.0)
        place = next(i for i, value in enumerate(token_rewards(own, offsets, at)) if value or not span.value)
        assert not span.value or offsets[place][1] >= span.end
        assert not span.value or place == 0 or offsets[place - 1][1] < span.end  # and no token before it does
