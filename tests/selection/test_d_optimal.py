"""D-optimal design: the greedy that computes every determinant, the Hessian of a Bradley-Terry head, and the guarantee."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf.errors import UserError
from selection.d_optimal import d_optimal
from selection.pair_limits import Caps, PairLimits
from selection.v_optimal import v_optimal
from tests.selection.data import gaussian, seeded
from tests.selection.invariants import Request, check_choice, check_refusals, requests


def information(z: np.ndarray, margins: np.ndarray | None, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    """Prior precision, and what each pair adds to it (n, d, d)."""
    p = 1 / (1 + np.exp(-(np.zeros(len(z)) if margins is None else margins)))
    added = (p * (1 - p))[:, None, None] * z[:, :, None] * z[:, None]
    return ridge * np.trace(added.mean(axis=0)) / z.shape[1] * np.eye(z.shape[1]), added


def log_det(matrix: np.ndarray) -> float:
    """Of a positive definite matrix."""
    return float(np.linalg.slogdet(matrix)[1])


@pytest.mark.parametrize("already", [[], [3, 17]])
@pytest.mark.parametrize("ridge", [1e-3, 1.0, 10.0])
@pytest.mark.parametrize("scored", [False, True])
def test_same_picks_and_gains_as_the_greedy_with_every_determinant(
    already: list[int], ridge: float, scored: bool
) -> None:
    z = gaussian(60, 5, dtype=np.float64)
    margins = 2 * gaussian(1, 60, 1, np.float64)[0] if scored else None
    choice = d_optimal(z, 25, already=already, generator=seeded(), margins=margins, ridge=ridge)
    prior, added = information(z, margins, ridge)
    present, chosen = prior + added[already].sum(axis=0), list(already)
    for index, gain in zip(choice.indices, choice.gains, strict=True):
        values = {i: log_det(present + added[i]) for i in range(60) if i not in chosen}
        assert index == max(values, key=lambda i: values[i])
        assert gain == pytest.approx(values[index] - log_det(present), rel=1e-4)
        present += added[index]
        chosen.append(int(index))


def test_the_information_is_the_hessian_of_the_head_s_loss() -> None:
    z = torch.from_numpy(gaussian(12, 3, dtype=np.float64))
    weights = torch.tensor([0.5, -1.0, 2.0], dtype=torch.double)
    choice = d_optimal(z.numpy(), 5, generator=seeded(), margins=(z @ weights).numpy())
    prior = torch.from_numpy(information(z.numpy(), (z @ weights).numpy(), 1.0)[0])

    def loss(w: torch.Tensor) -> torch.Tensor:
        asked = z[choice.indices.copy()] @ w
        return -torch.nn.functional.logsigmoid(asked).sum() + w @ prior @ w / 2

    hessian = torch.autograd.functional.hessian(loss, weights)
    assert isinstance(hessian, torch.Tensor)
    assert choice.gains.sum() == pytest.approx(log_det(hessian.numpy()) - log_det(prior.numpy()), rel=1e-5)


def test_a_first_pair_gains_the_closed_form() -> None:
    z = np.array([[3.0, 0.0], [0.0, 1.0]])  # v|z|² = 9/4, 1/4; prior = mean / 2 = 5/8
    choice = d_optimal(z, 2, generator=seeded())
    assert choice.indices.tolist() == [0, 1]
    assert choice.gains.tolist() == pytest.approx([np.log(1 + 9 / 4 * 8 / 5), np.log(1 + 1 / 4 * 8 / 5)])


@pytest.mark.parametrize("strategy", [d_optimal, v_optimal])
def test_a_limit_is_kept_and_may_end_the_choice(strategy: Any) -> None:
    z, prompts, images = gaussian(40, 4, dtype=np.float64), np.arange(40) // 10, np.arange(80).reshape(40, 2)
    limit = PairLimits(prompts, images, Caps(3, 0, 9), asked=[5, 6])
    choice = strategy(z, 20, already=[5, 6], generator=seeded(), limit=limit)
    assert np.bincount(prompts[choice.indices]).tolist() == [1, 3, 3, 3] and len(choice.why) == len(choice.gains) == 10
    free = strategy(z, 20, already=[5, 6], generator=seeded()).indices.tolist()
    until = next(n for n in range(20) if (np.bincount(prompts[[5, 6, *free[: n + 1]]]) > 3).any())
    assert until > 3 and choice.indices[:until].tolist() == free[:until]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(3, 9), budget=st.integers(1, 3))
def test_the_rise_is_within_the_guarantee_of_the_best_set(seed: int, rows: int, budget: int) -> None:
    z = gaussian(rows, 3, seed, np.float64)
    prior, added = information(z, None, 1.0)
    best = max(log_det(prior + added[list(s)].sum(axis=0)) for s in combinations(range(rows), budget)) - log_det(prior)
    rise = d_optimal(z, budget, generator=seeded()).gains.sum()
    assert (1 - 1 / np.e) * best <= rise * (1 + 1e-5) and rise <= best * (1 + 1e-5)


def test_swapped_pairs_and_scale_change_nothing() -> None:
    z, margins = gaussian(100, 6, dtype=np.float64), gaussian(1, 100, 1, np.float64)[0]
    sign = np.where(np.random.default_rng(0).random(100) < 0.5, -1, 1)
    expected = d_optimal(z, 30, generator=seeded(), margins=margins)
    for scale in (1.0, 1e-30, 1e12):
        choice = d_optimal(scale * sign[:, None] * z, 30, generator=seeded(), margins=sign * margins)
        assert choice.indices.tolist() == expected.indices.tolist()
        np.testing.assert_allclose(choice.gains, expected.gains, rtol=1e-5)


def test_what_is_sure_already_teaches_nothing_and_never_breaks() -> None:
    z = np.ones((4, 2))
    choice = d_optimal(z, 4, generator=seeded(), margins=np.array([60.0, 0.0, -60.0, 800.0]))
    assert choice.indices.tolist() == [1, 0, 2, 3]
    assert d_optimal(z, 4, generator=seeded(), margins=np.full(4, 800.0)).gains.tolist() == [0] * 4
    large = gaussian(50, 3, dtype=np.float64)
    sure = np.full(50, 60.0)  # 1 - σ(60) is 0 in float64, and yet some pairs teach more than others
    same = d_optimal(large, 20, generator=seeded()).indices.tolist()
    assert d_optimal(large, 20, generator=seeded(), margins=sure).indices.tolist() == same


@settings(max_examples=60, deadline=None)
@given(request=requests())
def test_properties(request: Request) -> None:
    choice = check_choice(d_optimal, request)
    assert (np.diff(choice.gains) < 1e-5).all()  # log det is submodular


def test_what_cannot_be_done_is_told() -> None:
    check_refusals(d_optimal)
    with pytest.raises(UserError, match="got ridge 0.0"):
        d_optimal(gaussian(4, 2), 1, generator=seeded(), ridge=0.0)
    with pytest.raises(UserError, match="margins of row 1 is nan"):
        d_optimal(gaussian(2, 2), 1, generator=seeded(), margins=np.array([0.0, np.nan]))
