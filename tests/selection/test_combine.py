"""Combined strategies: against the plain algorithm, the single strategies, and what limits promise."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.errors import UserError
from selection.combine import combine
from selection.kcenter import kcenter
from selection.recipe import (
    Balance,
    Diversity,
    PerGroup,
    Similarity,
    Strategy,
    Threshold,
    Typicality,
    Uncertainty,
    Weights,
)
from selection.rows import Rows
from selection.similarity import most_similar
from selection.terms import density
from selection.typicality import typicality
from selection.uncertainty import most_uncertain
from tests.selection.data import distances, gaussian, seeded


def chosen(strategies: list[Strategy], budget: int, n: int = 60, seed: int = 0, **options: Any) -> list[int]:
    """The rows that a combination chooses of `n` rows."""
    return combine(gaussian(n, 5), budget, strategies, generator=seeded(seed), **options).indices.tolist()


@pytest.mark.parametrize("already", [(), (3, 40, 41)])
def test_diversity_alone_is_k_center(already: tuple[int, ...]) -> None:
    for seed in range(4):
        expected = kcenter(gaussian(60, 5), 25, already=already, generator=seeded(seed)).indices.tolist()
        assert chosen([Diversity()], 25, seed=seed, already=already) == expected


def test_one_fixed_preference_ranks_the_rows() -> None:
    values = np.random.default_rng(0).permutation(60).astype(float)
    columns = {"worth": values.tolist()}
    best = np.argsort(-values).tolist()
    for scale in ("range", "rank"):
        assert chosen([Weights("worth", scale=scale)], 9, columns=columns) == best[:9]
    assert chosen([Weights("worth", strength=-0.5)], 9, columns=columns) == best[::-1][:9]
    assert chosen([Typicality(neighbours=3)], 9) == np.argsort(-typicality(gaussian(60, 5), 3)).tolist()[:9]


def test_similarity_and_uncertainty_are_the_single_strategies() -> None:
    x, margins, queries = gaussian(60, 5), gaussian(4, 60, 1), gaussian(3, 5, 2)
    alike = most_similar(x, 9, generator=seeded(), queries=queries).indices.tolist()
    asked = []

    def embed(names: Any) -> np.ndarray:
        asked.append(names)
        return queries

    assert chosen([Similarity(("a cat",))], 9, embed=embed) == alike and asked == [("a cat",)]
    unsure = most_uncertain(x, 9, generator=seeded(), margins=margins, measure="margin").indices.tolist()
    assert chosen([Uncertainty("margin")], 9, margins=margins) == unsure


def plain(x: np.ndarray, budget: int, worth: np.ndarray, groups: list[str], first: int, least: float) -> list[int]:
    """Diversity + 0.7 worth + 0.4 balance over the rows of worth `least` or more, at most 4 a group, written out."""
    wide, picks = distances(x), [first]
    pool = np.flatnonzero(worth >= least)
    scaled = (worth - worth[pool].min()) / (worth[pool].max() - worth[pool].min())
    shares = {"a": 0.5, "b": 0.2, "rest": 0.3}
    part = [group if group in shares else "rest" for group in groups]
    while len(picks) < budget:
        counts, parts = Counter(groups[i] for i in picks), Counter(part[i] for i in picks)
        free = [i for i in pool.tolist() if i not in picks and counts[groups[i]] < 4]
        near = {i: wide[i, picks].min() for i in free}
        farthest = max(near.values())
        gain = {}
        for i in free:
            short = min(1, max(0, shares[part[i]] * (len(picks) + 1) - parts[part[i]]))
            gain[i] = near[i] / farthest + 0.7 * scaled[i] + 0.4 * short
        picks.append(max(free, key=gain.__getitem__))
    return picks


def test_a_combination_is_the_weighted_sum_written_out() -> None:
    x = gaussian(60, 5)
    for seed in range(5):
        generator = np.random.default_rng(seed)
        worth, groups = generator.random(60), generator.choice(list("abcde"), 60).tolist()
        strategies: list[Strategy] = [
            Diversity(),
            Weights("worth", strength=0.7),
            Balance("kind", {"a": 0.5, "b": 0.2}, strength=0.4),
            Threshold("worth >= 0.3"),
            PerGroup("kind", most=4),
        ]
        picks = chosen(strategies, 14, columns={"worth": worth.tolist(), "kind": groups}, seed=seed)
        assert picks == plain(x, 14, worth, groups, picks[0], 0.3)


def test_what_is_told_of_a_pick() -> None:
    worth = np.zeros(60)
    worth[[7, 8]] = 10, 9
    columns = {"worth": worth.tolist()}
    choice = combine(gaussian(60, 5), 3, [Diversity(), Weights("worth")], generator=seeded(), columns=columns)
    assert choice.indices.tolist()[0] == 7 and choice.gains[0] == pytest.approx(2)
    assert choice.strategies[:2] == ["weights of worth"] * 2
    assert choice.why[0] == "weights of worth 1.00 (worth 10); diversity 1.00 (nothing was chosen before)"
    away = np.linalg.norm(gaussian(60, 5)[8].astype(float) - gaussian(60, 5)[7])
    assert f"{away:.4g} away from the nearest row chosen before" in choice.why[1]
    alone = combine(gaussian(60, 5), 3, [], generator=seeded())
    assert alone.strategies == ["random"] * 3 and alone.why[0] == "drawn from 60 equal rows"


def test_without_a_preference_rows_are_drawn() -> None:
    counts = Counter(i for seed in range(300) for i in chosen([], 2, n=5, seed=seed))
    assert min(counts.values()) > 80 and len(counts) == 5  # 120 expected, standard deviation 8.5


@given(
    st.lists(st.sampled_from("abc"), min_size=12, max_size=40), st.integers(1, 12), st.integers(1, 4), st.integers(0, 3)
)
def test_limits_hold(groups: list[str], budget: int, most: int, least: int) -> None:
    sizes = Counter(groups)
    room = sum(min(most, size) for size in sizes.values())
    rule = PerGroup("g", most=most, least=min(least, most))
    owed = sum(min(rule.least, size) for size in sizes.values())
    if not owed <= budget <= room:
        with pytest.raises(UserError, match="got budget"):
            chosen([Diversity(), rule], budget, n=len(groups), columns={"g": groups})
        return
    picks = chosen([Diversity(), rule], budget, n=len(groups), columns={"g": groups})
    counts = Counter(groups[i] for i in picks)
    assert len(set(picks)) == budget
    assert all(min(rule.least, size) <= counts[group] <= most for group, size in sizes.items())


def test_rows_chosen_earlier_count_towards_limits_and_shares() -> None:
    groups = ["a", "b"] * 30
    columns = {"g": groups}
    assert [groups[i] for i in chosen([PerGroup("g", most=3)], 3, columns=columns, already=[0, 2, 4])] == ["b"] * 3
    balanced = chosen([Balance("g")], 7, columns=columns, already=[0, 2, 4])
    assert Counter(groups[i] for i in balanced) == {"b": 5, "a": 2}


def test_a_group_smaller_than_its_least_gives_all_it_has() -> None:
    groups = ["a"] * 57 + ["b", "b", "c"]
    for budget in (5, 8):
        picks = chosen([PerGroup("g", least=3)], budget, columns={"g": groups}, already=[57])
        assert {58, 59} <= set(picks) and 57 not in picks


def test_rows_chosen_earlier_are_not_chosen_again_under_a_threshold() -> None:
    columns = {"w": list(range(60))}
    assert chosen([Weights("w"), Threshold("w > 50")], 3, columns=columns, already=[59, 57]) == [58, 56, 55]


@given(st.floats(0, 1), st.integers(2, 20))
def test_balance_comes_within_a_row_of_the_shares(share: float, budget: int) -> None:
    groups = ["a"] * 20 + ["b"] * 20
    picks = chosen([Balance("g", {"a": share})], budget, n=40, columns={"g": groups})
    assert abs(sum(groups[i] == "a" for i in picks) - share * budget) <= 1 + 1e-9


def test_no_two_rows_are_nearer_than_the_minimum_distance() -> None:
    x = gaussian(60, 5)
    apart = distances(x)
    picks = chosen([Weights("w"), Diversity(strength=1e-9, minimum_distance=2.0)], 8, columns={"w": list(range(60))})
    between = apart[np.ix_(picks, picks)][~np.eye(8, dtype=bool)]
    assert between.min() >= 2 and picks[0] == 59
    with pytest.raises(UserError, match=r"only \d+ of 50 rows could be chosen: .* minimum distance"):
        chosen([Diversity(minimum_distance=2.0)], 50)


def test_copies_are_chosen_last() -> None:
    x = np.repeat(gaussian(10, 4), 3, axis=0)
    choice = combine(x, 30, [Diversity()], generator=seeded())
    assert {i // 3 for i in choice.indices[:10].tolist()} == set(range(10)) and (choice.gains[10:] == 0).all()


def test_density_from_some_rows_and_from_all() -> None:
    x = gaussian(300, 4)
    assert np.allclose(density(Rows(x), 7), typicality(x, 7), rtol=1e-4)
    some = np.linspace(0, 299, 50).astype(int)
    apart = distances(x)[:, some]
    apart[some, np.arange(50)] = np.inf
    assert np.allclose(density(Rows(x), 7, most=50), 1 / np.sort(apart, axis=1)[:, :7].mean(axis=1), rtol=1e-4)
    assert density(Rows(x[:1]), 7).tolist() == [0]


def test_a_column_may_lack_values_where_a_threshold_holds_rows_off() -> None:
    worth: list[Any] = [None, float("nan"), *range(58)]
    assert chosen([Weights("w"), Threshold("w >= 5")], 2, columns={"w": worth}) == [59, 58]
    with pytest.raises(UserError, match="column 'w' of row 0 is None, allowed is a number"):
        chosen([Weights("w")], 2, columns={"w": worth})
    with pytest.raises(UserError, match="column 'w' of row 1 is nan, allowed is any finite number"):
        chosen([Weights("w")], 2, columns={"w": [1, *worth[1:]]})


BAD: dict[str, tuple[list[Strategy], str]] = {
    "no column": ([Weights("size")], "there is no column 'size': allowed are g, w"),
    "length": ([Weights("short")], "column 'short' has 1 values for 60 rows"),
    "text": ([Weights("g")], "column 'g' of row 0 is 'a', allowed is a number"),
    "no group": ([PerGroup("hole", most=1)], "column 'hole' of row 0 is None, which is no group"),
    "empty group": ([Balance("g", {"a": 0.5, "x": 0.5})], "the group 'x' of column g has no row to choose, allowed are a, b"),
    "held off": ([Balance("g", {"a": 0.5}), Threshold("g == b")], "the group 'a' of column g has no row to choose"),
    "threshold": ([Threshold("w > 55")], "got budget 10, allowed is 1 to 4: no more new rows meet the thresholds"),
    "most": ([PerGroup("g", most=2)], "got budget 10, allowed is 1 to 4: at most 2 a group of g"),
    "least": ([PerGroup("g", least=6)], "got budget 10, allowed is 12 or more: 2 groups of g must have 6"),
    "two": ([PerGroup("g", least=1), PerGroup("w", least=0, most=1), PerGroup("h", least=1)], "several columns with a least"),
    "query": ([Similarity(("x",))], "similarity got nothing to embed its queries with"),
    "predictions": ([Uncertainty()], "uncertainty got no predictions: give --predictions"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_done_is_told(kind: str) -> None:
    strategies, message = BAD[kind]
    columns = {"g": ["a", "b"] * 30, "w": list(range(60)), "h": ["c"] * 60}
    if kind in ("length", "no group"):
        columns |= {"short": [1], "hole": [None] * 60}
    if kind == "no column":
        del columns["h"]
    with pytest.raises(UserError, match=message):
        chosen(strategies, 10, columns=columns)
