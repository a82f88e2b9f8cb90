"""BADGE: its embeddings are gradients of the head's loss, unsure and different pairs are drawn, swaps change nothing."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from mmrlhf.errors import UserError
from selection.badge import badge, gradient_embeddings
from selection.choice import Choice
from selection.kmeans_plus_plus import kmeans_plus_plus
from tests.selection.data import gaussian, seeded
from tests.selection.invariants import Request, check_choice, check_refusals, requests


def with_margins(embeddings: np.ndarray, budget: int, **options: object) -> Choice:
    """BADGE with margins of -1, 0, 1, -1, 0, … and so on."""
    return partial(badge, margins=(np.arange(len(embeddings)) % 3 - 1.0))(embeddings, budget, **options)  # type: ignore[arg-type]


def test_embeddings_are_the_gradients_of_the_loss_of_the_expected_answer() -> None:
    z, weights = torch.from_numpy(gaussian(20, 4, dtype=np.float64)), torch.randn(4, generator=seeded()).double()
    gradients = gradient_embeddings(z.numpy(), (z @ weights).numpy())
    for row, expected in zip(z, gradients, strict=True):
        head = weights.clone().requires_grad_()
        answer = 1.0 if row @ weights > 0 else -1.0
        (-torch.nn.functional.logsigmoid(answer * (row @ head))).backward()
        assert head.grad is not None
        np.testing.assert_allclose(head.grad.numpy(), expected, rtol=1e-10)


def test_the_length_says_how_unsure_the_head_is() -> None:
    z = np.tile(np.array([[3.0, 4.0]]), (4, 1))
    lengths = np.linalg.norm(gradient_embeddings(z, np.array([0.0, np.log(3), -np.log(3), 60.0])), axis=1)
    np.testing.assert_allclose(lengths, [2.5, 1.25, 1.25, 5 * np.exp(-60)], rtol=1e-12)


def test_a_pair_and_its_swap_have_the_same_embedding() -> None:
    z, margins = gaussian(30, 4), gaussian(1, 30, 1)[0]
    assert (gradient_embeddings(z, margins) == gradient_embeddings(-z, -margins)).all()
    assert gradient_embeddings(z.astype(np.float16), margins).dtype == np.float32


def test_it_is_k_means_plus_plus_on_the_gradients() -> None:
    z, margins = gaussian(100, 5), gaussian(1, 100, 1)[0]
    choice = badge(z, 10, already=[3], generator=seeded(4), margins=margins)
    expected = kmeans_plus_plus(gradient_embeddings(z, margins), 10, already=[3], generator=seeded(4), trials=1)
    assert choice.indices.tolist() == expected.indices.tolist() and choice.gains.tolist() == expected.gains.tolist()
    assert choice.why[0].endswith(f"; margin {margins[choice.indices[0]]:.3g}")


def test_sure_pairs_are_all_alike_and_of_unsure_ones_each_kind_is_drawn() -> None:
    kinds = np.repeat(np.eye(3), 10, axis=0)
    z, margins = np.concatenate([kinds, kinds]), np.repeat([0.0, 50.0], 30)
    for seed in range(20):
        picks = badge(z, 3, already=[59], generator=seeded(seed), margins=margins).indices
        assert (picks < 30).all() and len(set((picks // 10).tolist())) == 3


@settings(max_examples=60, deadline=None)
@given(request=requests())
def test_properties(request: Request) -> None:
    check_choice(with_margins, request)


def test_what_cannot_be_done_is_told() -> None:
    check_refusals(with_margins)
    with pytest.raises(UserError, match="got 3 values of margins for 4 rows"):
        badge(gaussian(4, 2), 1, generator=seeded(), margins=np.zeros(3))
    with pytest.raises(UserError, match="margins of row 1 is inf"):
        badge(gaussian(2, 2), 1, generator=seeded(), margins=np.array([0.0, np.inf]))
