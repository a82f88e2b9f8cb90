"""Which of many answers are worth an annotator's time: those that are likely wrong, or over which judges differ, or any."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmrlhf.rewards.language.inputs import Row
from mmrlhf.rewards.segments.text import token_spans
from vlm.segment_reward import HallucinationReward
from vlm.spans import spans_of

Strategy = Literal["hallucination", "answers", "heads", "random"]
AT_ONCE = 256
"""Answers whose states are held at a time."""


def answers_worth(
    strategy: Strategy, rows: Sequence[Row], reward: HallucinationReward | None, generator: torch.Generator
) -> Float[Tensor, " n"]:
    """What marking each answer is worth, the more the better; a sum over its parts, so that it counts answers and not words.

    hallucination: how many of its parts `reward` expects to mislead. heads: how far the members of `reward` differ over them.
    answers: how many of its parts the other answers to the same question do not repeat; also where there is no reward yet.
    random: uniform draws.
    """
    if strategy == "random":
        return torch.rand(len(rows), generator=generator)
    if strategy == "answers" or reward is None:
        return answer_disagreement([row.answer or "" for row in rows], questions_of(rows))
    measure = expected_wrong if strategy == "hallucination" else head_disagreement
    return torch.cat([measure(reward, rows[first : first + AT_ONCE]) for first in range(0, len(rows), AT_ONCE)])


def questions_of(rows: Sequence[Row]) -> Int[Tensor, " n"]:
    """The number of the question, a prompt about a picture, that each row answers; in the order they come."""
    numbers: dict[tuple[str, str], int] = {}
    return torch.tensor([numbers.setdefault((row.prompt, str(row.image)), len(numbers)) for row in rows])


def choose(worth: Float[Tensor, " n"], questions: Int[Tensor, " n"], budget: int) -> list[int]:
    """The answers of the highest worth, best first, no two to one question; the earlier of equals. Fewer than `budget` where
    there are fewer questions."""
    chosen: dict[int, int] = {}
    for place in torch.argsort(worth, descending=True, stable=True).tolist():
        chosen.setdefault(int(questions[place]), place)
    return list(chosen.values())[:budget]


def expected_wrong(reward: HallucinationReward, rows: Sequence[Row]) -> Float[Tensor, " n"]:
    """How many parts of each answer are misleading, by the probabilities of the reward."""
    return torch.stack([found[:, 0].sum() for found in reward.probabilities(rows)])


def head_disagreement(reward: HallucinationReward, rows: Sequence[Row]) -> Float[Tensor, " n"]:
    """The standard deviations over the reward's members of what each part of an answer is worth, summed over its parts.

    In the unit of the reward's head. Source: query by committee, Seung, Opper and Sompolinsky 1992.
    """
    texts = reward.reader.read(rows, reward.parts)
    spans = [
        (place, *span)
        for place, row in enumerate(rows)
        for span in token_spans(texts.offsets[place], spans_of(row.answer or "", reward.parts), row.answer or "")
    ]
    spread = reward.head.segment_members(texts.features, spans, texts.mask).std(dim=0, correction=0)
    return torch.zeros(len(rows)).index_add(0, torch.tensor([span[0] for span in spans], dtype=torch.long), spread)


def answer_disagreement(texts: Sequence[str], questions: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """How many sentences of each answer the other answers to its question do not repeat; 0 where there is no other.

    A sentence is repeated by an answer as far as the likest sentence there shares its words (Jaccard index), and what is left to
    1, the mean over the other answers, adds up over sentences. What is imagined is seldom imagined twice alike (SelfCheckGPT,
    Manakul et al. 2023, https://arxiv.org/abs/2303.08896); it needs no reward.
    """
    answers = [[words_of(text[start:end]) for start, end in spans_of(text, "sentence")] for text in texts]
    found = torch.zeros(len(texts))
    for i, sentences in enumerate(answers):
        others = [answers[j] for j in torch.nonzero(questions == questions[i]).flatten().tolist() if j != i]
        for sentence in sentences if others else ():
            shared = [max((jaccard(sentence, other) for other in answer), default=0.0) for answer in others]
            found[i] += 1 - sum(shared) / len(shared)
    return found


def words_of(text: str) -> frozenset[str]:
    """The words of a text, and its signs, in lower case."""
    return frozenset(text[start:end].lower() for start, end in spans_of(text, "word"))


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """The share of the words of either that are in both."""
    return len(one & other) / max(1, len(one | other))
