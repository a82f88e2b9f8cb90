"""Sets of items to put in order: sets of one pair are chosen as pairs are, and larger ones by what inverting says."""

from itertools import combinations

import numpy as np
import pytest
import torch

from mmrlhf.errors import UserError
from selection.pairs import choose_pairs
from selection.sets import choose_sets, v_optimal_sets
from selection.v_optimal import v_optimal
from tests.selection.data import gaussian, seeded
from tests.selection.test_d_optimal import information
from tests.selection.test_v_optimal import doubt

ALONE = np.arange(40)[:, None]


@pytest.mark.parametrize("scored", [False, True])
def test_sets_of_one_pair_are_chosen_as_pairs(scored: bool) -> None:
    z = gaussian(40, 5, dtype=np.float64)
    scores = torch.rand(40, generator=seeded()) if scored else None
    pairs = choose_pairs(
        torch.from_numpy(z), scores, 15, per_prompt_cap=40, prompt_ids=torch.zeros(40, dtype=torch.long),
        generator=seeded(), top_share=1.0,
    )  # fmt: skip
    sets = choose_sets(z, ALONE, scores, 15, generator=seeded())
    assert sets.indices.tolist() == pairs.indices and sets.gains == pytest.approx(pairs.gains)
    assert sets.why[0].startswith("uncertain: " if scored else "diverse: ")
    margins = gaussian(1, 40, 1, np.float64)[0]
    expected = v_optimal(z, 15, already=[3, 5], generator=seeded(), margins=margins, ridge=0.5)
    free = np.delete(ALONE, [3, 5], axis=0)
    found = v_optimal_sets(z, free, 15, already=[3, 5], margins=margins, ridge=0.5)
    assert free[found.indices, 0].tolist() == expected.indices.tolist()
    assert found.gains == pytest.approx(expected.gains, rel=1e-3)


def groups_of(count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(what the pairs of random groups differ in, the rows of each group, some of them of one item less)."""
    items = gaussian(count * size, 4, dtype=np.float64)
    rows: list[np.ndarray] = []
    sets: list[list[int]] = []
    pairs = size * (size - 1) // 2
    for group in range(count):
        members = range(group * size, (group + 1) * size - group % 2)
        own = [items[a] - items[b] for a, b in combinations(members, 2)]
        sets.append([*range(len(rows), len(rows) + len(own)), *[-1] * (pairs - len(own))])
        rows += own
    return np.array(rows), np.array(sets)


def test_the_set_that_lowers_the_doubt_most_is_the_one_that_inverting_finds() -> None:
    z, sets = groups_of(12, 4)
    margins = gaussian(1, len(z), 1, np.float64)[0]
    choice = v_optimal_sets(z, sets, 5, already=[0], margins=margins, ridge=1.0)
    present, added = information(z, margins, 1.0)
    present = present + added[0]
    chosen: list[int] = []
    for index, gain in zip(choice.indices, choice.gains, strict=True):
        falls = {
            at: doubt(present, added) - doubt(present + added[own[own >= 0]].sum(axis=0), added)
            for at, own in enumerate(sets)
            if at not in chosen
        }
        assert index == max(falls, key=lambda at: falls[at]) and gain == pytest.approx(falls[index], rel=1e-3)
        present = present + added[sets[index][sets[index] >= 0]].sum(axis=0)
        chosen.append(int(index))
    assert choice.why[0].startswith("lowers the mean doubt by ")


def test_a_set_counts_by_the_mean_of_its_own_pairs() -> None:
    """However many they are; the one chosen before keeps its copy away."""
    z = np.array([[1.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 2.0], [0.0, 2.0]])
    sets = np.array([[0, 1], [2, -1], [3, -1], [4, -1]])
    assert choose_sets(z, sets, None, 3, generator=seeded()).indices.tolist()[0] == 1
    last = choose_sets(z, sets, None, 4, generator=seeded()).indices.tolist()[-1]
    assert last in (2, 3)
    sure = torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0])
    assert choose_sets(z, sets, sure, 1, generator=seeded()).indices.tolist() == [2]


def test_more_than_there_are_is_refused() -> None:
    z, sets = groups_of(3, 3)
    with pytest.raises(UserError, match="got budget 4, allowed is 1 to 3"):
        choose_sets(z, sets, None, 4, generator=seeded())
    with pytest.raises(UserError, match="got budget 4, allowed is 1 to 3"):
        v_optimal_sets(z, sets, 4)
