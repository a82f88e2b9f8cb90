"""Agreement by coverage, and ensembles whose disagreement does or does not say where they are wrong."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from mmrlhf.rewards.evaluation.abstention import abstention, agreement_by_coverage, ensemble_figures, lower_bound
from mmrlhf.rewards.evaluation.measures import tie_credits


def test_by_hand() -> None:
    credits, sureness = np.array([0.0, 1.0, 0.5, 1.0]), np.array([0.1, 0.9, 0.3, 0.7])
    np.testing.assert_allclose(agreement_by_coverage(credits, sureness), [1, 1, 2.5 / 3, 2.5 / 4])
    found = abstention(credits, sureness, ["a", "b", "c", "d"], seed=0)
    assert found["area"] == found["area_best"] == pytest.approx((1 + 1 + 2.5 / 3 + 2.5 / 4) / 4)
    assert [(point["coverage"], point["agreement"]) for point in found["curve"]][::5] == [(1, 0.625), (0.5, 1)]


@given(st.lists(st.tuples(st.sampled_from([0, 0.5, 1]), st.integers(0, 2)), min_size=1, max_size=5))
def test_equally_sure_pairs_count_as_all_their_orders_do(rows: list[tuple[float, int]]) -> None:
    credits, sureness = np.array(rows, dtype=float).T.copy()
    orders = [order for order in permutations(range(len(rows))) if (np.diff(sureness[list(order)]) <= 0).all()]
    means = [np.cumsum(credits[list(order)]) / np.arange(1, len(rows) + 1) for order in orders]
    np.testing.assert_allclose(agreement_by_coverage(credits, sureness), np.mean(means, axis=0))


def test_sureness_that_says_nothing_has_the_plain_agreement() -> None:
    credits = np.array([1.0, 0, 0, 1, 1])
    found = abstention(credits, np.zeros(5), list("abcde"), seed=0)
    assert found["area"] == pytest.approx(0.6) and found["area_best"] > 0.8


def ensemble(generator: np.random.Generator, spread: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Members "8 n 2" whose error has deviation `spread` a pair, and the labels: the side of the truth."""
    truth = generator.normal(size=(len(spread), 2))
    members = truth + generator.normal(size=(8, len(spread), 2)) * spread[:, None] + generator.normal(
        size=(1, len(spread), 2)
    ) * spread[:, None]  # fmt: skip
    return members, (truth[:, 0] > truth[:, 1]).astype(float)


def test_disagreement_points_at_mistakes_where_members_differ_because_they_do_not_know() -> None:
    generator = np.random.default_rng(0)
    members, labels = ensemble(generator, generator.choice([0.05, 2.0], 600))
    margins = (members[..., 0] - members[..., 1]).mean(axis=0)
    credits = tie_credits(expit(margins), labels, 0.0)
    units = [f"p{i}" for i in range(600)]
    found = ensemble_figures(members, labels, credits, units, threshold=0.0, seed=0)
    assert found["members"] == 8
    assert found["disagreement_error_correlation"] > 0.2
    assert found["abstention"]["curve"][5]["agreement"] > credits.mean() + 0.1
    assert found["pessimistic"][0] == {
        "kappa": 0.0, "agreement": pytest.approx(credits.mean()), "ci95": found["pessimistic"][0]["ci95"],
    }  # fmt: skip


def test_members_that_never_disagree_have_no_correlation() -> None:
    scores = np.repeat(np.array([[[1.0, 0.0], [0.0, 1.0]]]), 3, axis=0)
    found = ensemble_figures(scores, np.ones(2), np.array([1.0, 0.0]), ["a", "b"], threshold=0.0, seed=0)
    assert found["disagreement_mean"] == 0 and found["disagreement_error_correlation"] is None


def test_the_lower_bound_is_the_pessimistic_reward() -> None:
    """The very scores of a `CLIPReward` with that pessimism, up to the root's smoothing."""
    members = np.array([[[1.0, 0.0]], [[3.0, 0.5]]])
    np.testing.assert_allclose(lower_bound(members, 2.0), [[2 - 2 * 1, 0.25 - 2 * 0.25]])
