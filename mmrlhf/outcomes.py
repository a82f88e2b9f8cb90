"""What people can say about images: a pair, a ranking, the best of several, a rating, a veto; a JSON object a line."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrlhf.data import (
    JUDGEMENT_COLUMNS,
    OPTIONAL_PAIR_COLUMNS,
    PAIR_COLUMNS,
    Item,
    Pair,
    carried,
    carried_of,
    check_columns,
    image_of,
    lines_of,
    pair_of,
    pair_row,
    parse_object,
    prompt_of,
    relative,
    write_jsonl,
)
from mmrlhf.errors import UserError

SAFETY = "safety"  # the criterion of a veto


@dataclass(frozen=True)
class Ranking:
    """Several images for one prompt in order: `ranks` 1 is the best, equal ranks are ties. Best of N: 1 and else 2."""

    prompt: str
    images: tuple[Path, ...]
    ranks: tuple[float, ...]
    group: str = ""
    has_label: bool = True
    annotator: str = ""
    criterion: str = ""

    @property
    def unit(self) -> str:
        """What is independent of everything else: the group, else the prompt."""
        return self.group or self.prompt


@dataclass(frozen=True)
class Rating:
    """One image on a scale from 1 to `levels`, the best. A veto is a rating of two levels by the criterion `safety`."""

    prompt: str
    image: Path
    rating: int
    levels: int = 5
    group: str = ""
    has_label: bool = True
    annotator: str = ""
    criterion: str = ""

    @property
    def unit(self) -> str:
        """What is independent of everything else: the group, else the prompt."""
        return self.group or self.prompt


Outcome = Pair | Ranking | Rating


def items_of(outcome: Outcome) -> list[Item]:
    """The images that an outcome is about, with their prompt."""
    if isinstance(outcome, Pair):
        images: Sequence[Path] = (outcome.image_0, outcome.image_1)
    else:
        images = outcome.images if isinstance(outcome, Ranking) else (outcome.image,)
    return [Item(outcome.prompt, image) for image in images]


def strict_pairs(ranking: Ranking) -> list[Pair]:
    """Every two images of different rank, in the order in which they are listed (Xu et al. 2023)."""
    pairs = []
    for i, first in enumerate(ranking.images):
        for j in range(i + 1, len(ranking.images)):
            if ranking.ranks[i] != ranking.ranks[j]:
                label = float(ranking.ranks[i] < ranking.ranks[j])
                names = (ranking.unit, ranking.has_label, ranking.annotator, ranking.criterion)
                pairs.append(Pair(ranking.prompt, first, ranking.images[j], label, *names))
    return pairs


def read_outcomes(path: Path) -> list[Outcome]:
    """The judgements of a JSONL file, of any kinds mixed; paths are relative to the file. UserError names the bad row.

    What a line is, its own column says: image_0 a pair; ranks a ranking of `images`; best (the place, from 0) the best of
    `images`; rating (of `levels`, 5 if not said) one `image`; safe (true or false) a veto on one.
    """
    found: list[Outcome] = []
    for where, line in lines_of(path, PAIR_COLUMNS):
        found.append(outcome_of(parse_object(line, where, PAIR_COLUMNS), path.parent, where))
    return found


def outcome_of(row: dict[str, Any], folder: Path, where: str) -> Outcome:
    """A row as the judgement that its columns say it is. UserError where it is none."""
    kind = next((name for name in KINDS if name in row), "image_0")
    required, optional, convert = KINDS[kind]
    check_columns(row, where, required, optional)
    return convert(row, folder, where)


def write_outcomes(outcomes: Sequence[Outcome], path: Path) -> None:
    """Write a file that `read_outcomes` reads back equal; whole or not at all."""
    write_jsonl([row_of(outcome, path) for outcome in outcomes], path)


def row_of(outcome: Outcome, file: Path) -> dict[str, Any]:
    """An outcome as a line of `file`."""
    if isinstance(outcome, Pair):
        return pair_row(outcome, file)
    row: dict[str, Any] = {"prompt": outcome.prompt}
    if isinstance(outcome, Ranking):
        row |= {"images": [relative(image, file) for image in outcome.images], "ranks": list(outcome.ranks)}
    else:
        row |= {"image": relative(outcome.image, file), "rating": outcome.rating, "levels": outcome.levels}
    return row | carried(outcome)


def ranking_of(row: dict[str, Any], folder: Path, where: str) -> Ranking:
    """A checked row with `ranks`."""
    images, ranks = images_of(row, folder, where), row["ranks"]
    right = isinstance(ranks, list) and len(ranks) == len(images) and all(is_real(rank) for rank in ranks)
    if not right or len(set(ranks)) < 2:
        raise UserError(
            f"{where}: ranks got {ranks!r:.80}, allowed is a number for each of the {len(images)} images, 1 the best, not all "
            "equal: write one rank an image, or remove the row"
        )
    return Ranking(prompt_of(row, where), images, tuple(map(float, ranks)), **carried_of(row, where))


def best_of(row: dict[str, Any], folder: Path, where: str) -> Ranking:
    """A checked row with `best`: the ranking in which that image comes first and the others tie."""
    images, best = images_of(row, folder, where), row["best"]
    if isinstance(best, bool) or not isinstance(best, int) or not 0 <= best < len(images):
        raise UserError(
            f"{where}: best got {best!r}, allowed is 0 to {len(images) - 1}, the place of one of the images"
        )
    ranks = tuple(1.0 if place == best else 2.0 for place in range(len(images)))
    return Ranking(prompt_of(row, where), images, ranks, **carried_of(row, where))


def rating_of(row: dict[str, Any], folder: Path, where: str) -> Rating:
    """A checked row with `rating`."""
    levels, rating = row.get("levels", 5), row["rating"]
    whole = all(isinstance(value, int) and not isinstance(value, bool) for value in (levels, rating))
    if not whole or levels < 2 or not 1 <= rating <= levels:
        raise UserError(
            f"{where}: rating got {rating!r} of {levels!r} levels, allowed is a whole number from 1 to levels, which are 2 or "
            "more: mend the row"
        )
    return Rating(
        prompt_of(row, where), image_of(row, "image", folder, where), rating, levels, **carried_of(row, where)
    )


def veto_of(row: dict[str, Any], folder: Path, where: str) -> Rating:
    """A checked row with `safe`: a rating of two levels, by the criterion `safety` unless the row names another."""
    if not isinstance(row["safe"], bool):
        raise UserError(f"{where}: safe got {row['safe']!r}, allowed is true or false")
    others = {"criterion": SAFETY} | carried_of(row, where)
    return Rating(prompt_of(row, where), image_of(row, "image", folder, where), 1 + row["safe"], 2, **others)


def images_of(row: dict[str, Any], folder: Path, where: str) -> tuple[Path, ...]:
    """The two or more different image files of a row."""
    given = row["images"]
    if not isinstance(given, list) or len(given) < 2:
        raise UserError(f"{where}: images got {given!r:.80}, allowed is a list of 2 or more paths")
    images = tuple(image_of({"images": name}, "images", folder, where) for name in given)
    if len(set(images)) < len(images):
        raise UserError(f"{where} names an image twice: name each once")
    return images


def is_real(value: Any) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# the column that tells the kind -> required columns, optional ones, and what makes the outcome
KINDS: dict[str, tuple[Sequence[str], Sequence[str], Callable[[dict[str, Any], Path, str], Outcome]]] = {
    "image_0": (PAIR_COLUMNS, OPTIONAL_PAIR_COLUMNS, pair_of),
    "ranks": (("prompt", "images", "ranks"), JUDGEMENT_COLUMNS, ranking_of),
    "best": (("prompt", "images", "best"), JUDGEMENT_COLUMNS, best_of),
    "rating": (("prompt", "image", "rating"), ("levels", *JUDGEMENT_COLUMNS), rating_of),
    "safe": (("prompt", "image", "safe"), JUDGEMENT_COLUMNS, veto_of),
}
