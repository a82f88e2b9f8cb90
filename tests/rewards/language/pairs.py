"""Comparisons by people with simple tastes, for the tests of the language rewards."""

import random
from pathlib import Path

import torch

from mmrlhf.answers import AnswerPair
from mmrlhf.data import Pair
from tests.small_clip import noisy_colour

RED, BLUE = (0.9, 0.5, 0.1), (0.1, 0.5, 0.9)


def kind_pairs(count: int, seed: int) -> list[AnswerPair]:
    """Somebody likes answers with "kind" in them better than those with "rude", whatever else is said."""
    draw = random.Random(seed)
    pairs = []
    for number in range(count):
        prompt = " ".join(draw.choices(["what", "is", "it", "the", "a"], k=3 + number % 3))
        kind, rude = (
            " ".join(
                [
                    *draw.choices(["cat", "dog", "one", "two"], k=draw.randint(1, 3)),
                    word,
                    *draw.choices(["it", "."], k=2),
                ]
            )
            for word in ("kind", "rude")
        )
        first = number % 2 == 0
        pairs.append(
            AnswerPair(prompt, kind if first else rude, rude if first else kind, float(first), group=str(number))
        )
    return pairs


def colour_pairs(folder: Path, count: int, seed: int) -> list[Pair]:
    """Somebody likes red pictures better than blue ones, whatever the prompt."""
    generator = torch.Generator().manual_seed(seed)
    pairs = []
    for number in range(count):
        red, blue = (noisy_colour(folder / f"{seed}-{number}-{side}.png", colour, generator)
                     for side, colour in enumerate((RED, BLUE)))  # fmt: skip
        first = number % 2 == 0
        prompt = ("a cat", "the dog", "it is one")[number % 3]
        pairs.append(Pair(prompt, red if first else blue, blue if first else red, float(first), group=str(number)))
    return pairs


def naming_pairs(folder: Path, count: int, seed: int) -> list[AnswerPair]:
    """The right colour's name is liked: each answer wins as often as it loses, and only the picture tells when."""
    generator = torch.Generator().manual_seed(seed)
    pairs = []
    for number in range(count):
        is_red, first = number % 2 == 0, number // 2 % 2 == 0
        image = noisy_colour(folder / f"{seed}-{number}.png", RED if is_red else BLUE, generator)
        right, wrong = ("red", "blue") if is_red else ("blue", "red")
        pairs.append(AnswerPair("what is it", right if first else wrong, wrong if first else right, float(first),
                                image=image, group=str(number)))  # fmt: skip
    return pairs
