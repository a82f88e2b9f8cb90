"""Rewards of answers that need no training: their length, and how many of the prompt's words they take up."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from mmrlhf.errors import UserError

# English words that carry grammar, not content
STOP_WORDS = frozenset(
    """a about above after again against all also am an and any are aren't as at be because been before being below between
    both but by can can't cannot could couldn't did didn't do does doesn't doing don't down during each few for from further
    had hadn't has hasn't have haven't having he her here hers herself him himself his how i if in into is isn't it its itself
    just let's me more most my myself no nor not of off on once only or other ought our ours ourselves out over own please same
    shan't she should shouldn't so some such than that the their theirs them themselves then there these they this those
    through to too under until up upon very was wasn't we were weren't what when where which while who whom whose why will with
    within without won't would wouldn't you your yours yourself yourselves""".split()
)
WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")


@runtime_checkable
class AnswerReward(Protocol):
    """Scores each answer to its prompt; higher is better; row-independent; NaN abstains. Picklable."""

    def __call__(self, prompts: Sequence[str], answers: Sequence[str]) -> Float[Tensor, " b"]: ...


@dataclass(frozen=True)
class Length:
    """The number of words (or characters) of an answer; with a `target`, how far it is from that: -|n - target| / target.

    UserError for a target below 1.
    """

    unit: Literal["words", "characters"] = "words"
    target: int | None = None

    def __post_init__(self) -> None:
        if self.unit not in ("words", "characters"):
            raise UserError(f"the unit of a length got '{self.unit}', allowed are words, characters")
        if self.target is not None and self.target < 1:
            raise UserError(
                f"the target of a length got {self.target}, allowed is 1 or more, or None for the length itself"
            )

    def __call__(self, prompts: Sequence[str], answers: Sequence[str]) -> Float[Tensor, " b"]:
        counts = torch.tensor([float(len(words(a) if self.unit == "words" else a)) for a in answers])
        return counts if self.target is None else -(counts - self.target).abs() / self.target


@dataclass(frozen=True)
class PromptCoverage:
    """The share of the prompt's content words that the answer takes up, in any of their forms (see `stem`), 0 to 1.

    NaN where the prompt has no content word.
    """

    def __call__(self, prompts: Sequence[str], answers: Sequence[str]) -> Float[Tensor, " b"]:
        return torch.tensor([coverage(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)])


def coverage(prompt: str, answer: str) -> float:
    """The share of one prompt's different content words that occur in one answer; NaN where there is none."""
    asked = {stem(word) for word in content_words(prompt)}
    given = {stem(word) for word in words(answer)}
    return len(asked & given) / len(asked) if asked else float("nan")


def words(text: str) -> list[str]:
    """The words of a text, case-folded: runs of letters and digits. A script without spaces gives a word a run."""
    return WORD.findall(text.casefold().replace("’", "'"))


def content_words(text: str) -> list[str]:
    """The words of a text that are no stop words, each form once, in order."""
    return list(dict.fromkeys(word for word in words(text) if word not in STOP_WORDS))


def stem(word: str) -> str:
    """What the plural and the regular verb forms of an English word share: cat of cats, danc of dances, danced and dancing.

    A few rules, no dictionary: irregular forms (mice, ran) stay apart, and now and then two words meet (planed and planned).
    """
    word = word.removesuffix("'s").removesuffix("'")
    if re.search(r"[^aeiou](ies|ied)$", word):  # puppies, carried; not dies, died
        return word[:-3] + "y" if len(word) > 4 else word[:-1]
    if re.search(r"(ss|x|ch|sh|zz)es$", word):
        word = word[:-2]
    elif re.search(r"[^\Wsui]s$", word) and len(word) > 3:
        word = word[:-1]
    else:
        for suffix in ("ing", "ed"):
            rest = word.removesuffix(suffix)
            if rest != word and re.search("[aeiouy]", rest) and not word.endswith("eed"):
                word = rest
                break
    if re.search(r"([bdgklmnprt])\1$", word):  # running, stopped; not the ss and zz of kiss and buzz
        word = word[:-1]
    return word.removesuffix("e") if len(word) > 3 else word
