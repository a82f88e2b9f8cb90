"""A reward of parts of an answer's text as rewards of its tokens."""

from collections.abc import Sequence
from os.path import commonprefix
from typing import Any, Literal

from vlm.answer_rewards import Judgement
from vlm.encoding import Offsets

Where = Literal["segments", "end"]


def offsets_of(tokenizer: Any, tokens: Sequence[int], text: str) -> Offsets:
    """The characters [start, end) of `text` that each token completes; `text` is what they decode to, stripped.

    A token that ends inside a character, or that says nothing (a mark, outer white space), has none: start is end. By decoding
    all beginnings, as what a token stands for may depend on those before it.
    """
    whole = tokenizer.decode(list(tokens), skip_special_tokens=True)
    first = whole.find(text)
    assert first >= 0, f"{text!r} is not what the tokens say, {whole!r}"
    offsets, start = [], 0
    for count in range(1, len(tokens) + 1):
        beginning = tokenizer.decode(list(tokens[:count]), skip_special_tokens=True)
        end = max(start, min(len(commonprefix([beginning, whole])) - first, len(text)))
        offsets.append((start, end))
        start = end
    return tuple(offsets)


def token_rewards(judgement: Judgement, offsets: Offsets, at: Where) -> list[float]:
    """A reward for each of at least one token; their sum is the judgement's total.

    "segments" gives a span's reward to the token that completes its last character, what is for the whole to the last token;
    "end" gives everything to the last token.
    """
    if at == "end":
        return [*[0.0] * (len(offsets) - 1), judgement.total]
    rewards = [0.0] * len(offsets)
    rewards[-1] = judgement.whole
    for span in judgement.spans:
        place = next((i for i, (_, end) in enumerate(offsets) if end >= span.end), len(offsets) - 1)
        rewards[place] += span.value
    return rewards
