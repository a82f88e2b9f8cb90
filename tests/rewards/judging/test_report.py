"""Agreement of a judge with people, and its position bias: against hand computations."""

import numpy as np
import pytest

from mmrlhf.rewards.judging.report import LEFT, RIGHT, agreement_with, position_bias
from mmrlhf.statistics import bootstrap_ci
from mmrlhf.types import Preference


def vote(who: str, first: str, second: str, label: float, **extra: float) -> Preference:
    return Preference("p", (first, second), label, who, "human", (first, second), extra=extra)


VERDICTS = [vote("ai", "a", "b", 0.9), vote("ai", "d", "c", 0.3), vote("ai", "e", "f", 0.5), vote("ai", "g", "h", 0.6)]
PEOPLE = [
    vote("ann", "a", "b", 1.0),  # the same: 1
    vote("ann", "c", "d", 1.0),  # the other order, the same: 1
    vote("ann", "e", "f", 0.0),  # a tie against a choice: 1/2
    vote("bob", "b", "a", 1.0),  # the other: 0
    vote("bob", "e", "f", 0.5),  # both tie: 1
    vote("bob", "x", "y", 1.0),  # not judged
]


def test_agreement_by_hand() -> None:
    found = agreement_with(VERDICTS, PEOPLE)
    assert found is not None
    assert found["agreement"] == pytest.approx(3.5 / 5)
    assert (found["answers"], found["pairs"]) == (5, 3)
    assert {who: row["agreement"] for who, row in found["raters"].items()} == {
        "ann": pytest.approx(2.5 / 3),
        "bob": pytest.approx(0.5),
    }
    # ann and bob share a–b (0) and e–f (1/2)
    assert found["among_themselves"] == pytest.approx(0.25)
    assert found["ci95"] is None  # three pairs tell too little


def test_a_pair_with_many_answers_is_one_unit_of_the_interval() -> None:
    verdicts = [vote("ai", f"{i}a", f"{i}b", float(i % 2)) for i in range(20)]
    once = [vote("ann", f"{i}a", f"{i}b", 1.0) for i in range(20)]
    many = [vote(f"p{who}", f"{i}a", f"{i}b", 1.0) for i in range(20) for who in range(30)]
    few_answers, many_answers = agreement_with(verdicts, once), agreement_with(verdicts, many)
    assert few_answers is not None and many_answers is not None
    assert few_answers["agreement"] == many_answers["agreement"] == 0.5
    assert (
        few_answers["ci95"]
        == many_answers["ci95"]
        == pytest.approx(list(bootstrap_ci(np.repeat([0.0, 1.0], 10))), abs=0.06)
    )
    assert many_answers["answers"] == 600 and many_answers["among_themselves"] == 1


def test_nothing_shared() -> None:
    assert agreement_with(VERDICTS, PEOPLE[-1:]) is None and agreement_with([], PEOPLE) is None
    found = agreement_with(VERDICTS, PEOPLE[:1])
    assert found is not None and found["among_themselves"] is None and found["raters"]["ann"]["kappa"] is None


def test_position_bias_by_hand() -> None:
    both = [(0.9, 0.8), (0.7, 0.4), (0.2, 0.5), (0.5, 0.5), (0.4, 0.4)]
    verdicts = [vote("ai", str(i), "z", 0.5, **{LEFT: a, RIGHT: b}) for i, (a, b) in enumerate(both)]
    found = position_bias([*verdicts, *VERDICTS])
    assert found is not None and found["pairs"] == 5
    left = np.array([0.55, 0.65, 0.35, 0.5, 0.5])
    assert found["p_left"] == pytest.approx(left.mean())
    assert found["p_left_ci95"] == pytest.approx(list(bootstrap_ci(left)))
    assert found["flipped"] == 0.4  # the second turns, the third becomes undecided
    assert position_bias(VERDICTS) is None
