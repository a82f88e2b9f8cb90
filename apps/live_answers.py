"""What was said in a store, as labels that a head learns: of two pictures, which is better; of one, its place on the scale."""

from collections.abc import Callable
from itertools import combinations
from typing import NamedTuple

from mmrlhf.store import Kind, Store

PICTURES: tuple[Kind, ...] = ("score", "likert")  # kinds of questions about a single picture
LEVELS = 5  # of the app's scale


class Said(NamedTuple):
    """One picture and its level from 0 to 1, or two and the weight of the first."""

    items: tuple[str, ...]
    label: float


def comparisons(store: Store) -> list[Said]:
    """Pairs, and the pairs of every ranking; a tie is a half."""
    found = [Said(preference.items, preference.label) for preference in store.preferences()]
    for ranking in store.rankings():
        for (first, rank), (second, other) in combinations(zip(ranking.items, ranking.ranks, strict=True), 2):
            found.append(Said((first, second), 0.5 if rank == other else float(rank < other)))
    return found


def levels(store: Store) -> list[Said]:
    """Scores, and the mean over the criteria of those who gave a level by each; those of texts are no picture's."""
    found = [Said((said.item,), min(max((said.score - 1) / (LEVELS - 1), 0.0), 1.0)) for said in store.judgements()]
    for said in store.likert():
        if not said.text:
            mean = sum(said.scores.values()) / len(said.scores)
            found.append(Said((said.item,), (mean - 1) / (said.levels - 1)))
    return found


# kind of a question -> what a head that chooses among such questions learns from
ANSWERS: dict[Kind, Callable[[Store], list[Said]]] = {
    "pair": comparisons,
    "rank": comparisons,
    "score": levels,
    "likert": levels,
}
