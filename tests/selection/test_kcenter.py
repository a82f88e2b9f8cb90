"""k-center: the picks of the plain algorithm whatever the data, its guarantee, and what its result holds."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf.errors import UserError
from selection.kcenter import kcenter
from tests.selection.data import distances, gaussian, plain_greedy, seeded

KINDS = {
    "gaussian": lambda: gaussian(600, 16),
    "few different rows": lambda: gaussian(12, 8)[np.random.default_rng(1).integers(12, size=400)],
    "half copies": lambda: np.repeat(gaussian(150, 8), 2, axis=0),
    "grid, all ties": lambda: np.stack(np.meshgrid(np.arange(20.0), np.arange(15.0)), -1).reshape(-1, 2),
    "one-hot, all ties": lambda: np.eye(120, dtype=np.float32),
    "all equal": lambda: np.ones((200, 4), np.float32),
    "far from the origin": lambda: gaussian(400, 8) + np.float32(1000),
    "one outlier": lambda: np.concatenate([gaussian(300, 8), np.full((1, 8), 1e6, np.float32)]),
    "tiny values": lambda: gaussian(300, 8) * np.float32(1e-30),
    "large values": lambda: gaussian(300, 8) * np.float32(1e12),
    "float16": lambda: gaussian(300, 8).astype(np.float16),
    "float64 with close rows": lambda: np.float64(1) + 1e-9 * gaussian(300, 8, dtype=np.float64),
    "one column": lambda: gaussian(300, 1),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("pool_size", "burst"), [(2048, 64), (20, 5), (1, 1)])
def test_same_picks_as_plain_greedy(kind: str, pool_size: int, burst: int) -> None:
    x = KINDS[kind]()
    choice = kcenter(x, 100, start=7, generator=seeded(), pool_size=pool_size, burst=burst)
    assert choice.indices.tolist() == [7, *plain_greedy(x, 99, [7])]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_selected_already_count_as_chosen(kind: str) -> None:
    x = KINDS[kind]()
    choice = kcenter(x, 60, already=[5, 3, 5, 90], generator=seeded(), pool_size=50, burst=7)
    assert choice.indices.tolist() == plain_greedy(x, 60, [5, 3, 90])


def test_everything_can_be_chosen_and_nothing_twice() -> None:
    x = KINDS["few different rows"]()
    choice = kcenter(x, 400, generator=seeded(3))
    assert sorted(choice.indices.tolist()) == list(range(400))
    assert (choice.gains[12:] == 0).all() and (choice.gains[1:12] > 0).all()


def test_gains_are_the_distances_to_the_rows_before() -> None:
    x = gaussian(200, 6)
    choice = kcenter(x, 40, generator=seeded())
    between = distances(x)[np.ix_(choice.indices, choice.indices)]
    expected = [0.0] + [between[k, :k].min() for k in range(1, 40)]
    np.testing.assert_allclose(choice.gains, expected, rtol=1e-12)
    assert (np.diff(choice.gains[1:]) <= 0).all()


def test_the_first_row_is_drawn_from_the_generator_and_is_in_the_result() -> None:
    x = gaussian(100, 4)
    starts = {int(kcenter(x, 3, generator=seeded(seed)).indices[0]) for seed in range(20)}
    assert len(starts) > 10
    assert kcenter(x, 30, generator=seeded(4)).indices.tolist() == kcenter(x, 30, generator=seeded(4)).indices.tolist()


def test_rows_read_from_a_file_in_blocks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x = gaussian(500, 8)
    expected = kcenter(x, 50, start=0, generator=seeded()).indices
    monkeypatch.setattr("selection.kcenter.Rows", lambda x: __import__("selection.rows").rows.Rows(x, keep_bytes=0))
    assert kcenter(x, 50, start=0, generator=seeded()).indices.tolist() == expected.tolist()


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 4),
    levels=st.integers(1, 4),
    data=st.data(),
)
def test_properties(rows: int, columns: int, levels: int, data: st.DataObject) -> None:
    values = st.lists(st.integers(0, levels), min_size=rows * columns, max_size=rows * columns)
    x = np.array(data.draw(values), dtype=np.float32).reshape(rows, columns)
    budget, start = data.draw(st.integers(1, rows)), data.draw(st.integers(0, rows - 1))
    choice = kcenter(x, budget, start=start, generator=seeded(), pool_size=4, burst=3)
    picks = choice.indices.tolist()
    assert len(set(picks)) == budget == len(choice.gains) == len(choice.why)
    assert set(picks) <= set(range(rows)) and picks[0] == start
    assert picks == [start, *plain_greedy(x, budget - 1, [start])]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(4, 11), budget=st.integers(1, 4))
def test_radius_is_at_most_twice_the_best(seed: int, rows: int, budget: int) -> None:
    x = gaussian(rows, 2, seed)
    between = distances(x)
    choice = kcenter(x, budget, generator=seeded(seed))
    best = min(between[:, subset].min(axis=1).max() for subset in combinations(range(rows), budget))
    assert between[:, choice.indices].min(axis=1).max() <= 2 * best + 1e-12


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_renumbered_rows_give_the_renumbered_choice(seed: int) -> None:
    x = gaussian(80, 5, seed)
    order = np.random.default_rng(seed).permutation(80)
    start = int(order[0])
    before = kcenter(x, 20, start=start, generator=seeded())
    after = kcenter(x[order], 20, start=0, generator=seeded())
    assert order[after.indices].tolist() == before.indices.tolist()


def test_what_cannot_be_done_is_told() -> None:
    x = gaussian(10, 3)
    with pytest.raises(UserError, match="got budget 11, allowed is 1 to 10"):
        kcenter(x, 11, generator=seeded())
    with pytest.raises(UserError, match="got budget 9, allowed is 1 to 8.*2 are selected already"):
        kcenter(x, 9, already=[0, 1], generator=seeded())
    with pytest.raises(UserError, match="got budget 0"):
        kcenter(x, 0, generator=seeded())
    with pytest.raises(UserError, match="row 10 was selected already, allowed is 0 to 9"):
        kcenter(x, 2, already=[10], generator=seeded())
    with pytest.raises(UserError, match="got start -1"):
        kcenter(x, 2, start=-1, generator=seeded())
    x[4, 1] = np.nan
    with pytest.raises(UserError, match="row 4 of the embeddings holds NaN"):
        kcenter(x, 2, generator=seeded())
    x[4, 1] = 1e20
    with pytest.raises(UserError, match="row 4 .* above 1e\\+15"):
        kcenter(x, 2, generator=seeded())
    with pytest.raises(UserError, match="shape 3 x 0"):
        kcenter(np.zeros((3, 0), np.float32), 2, generator=seeded())
