"""What people's own answers allow, on tables worked out by hand and from simulated annotators."""

from pathlib import Path

import numpy as np
import pytest

from mmrlhf.agreement import rater_agreement
from mmrlhf.data import Pair
from mmrlhf.rewards.evaluation.ceiling import ceilings
from mmrlhf.types import Preference


def vote(prompt: str, annotator: str, label: float = 1.0, *, swapped: bool = False) -> Pair:
    images = (Path("b"), Path("a")) if swapped else (Path("a"), Path("b"))
    return Pair(prompt, *images, 1 - label if swapped else label, annotator=annotator)


def test_by_hand() -> None:
    """Three raters: all for a; then two for a and one for b. The reward says a, then b."""
    pairs = [
        vote("p", "ann", 1.0), vote("p", "bob", 1.0, swapped=True), vote("p", "cid", 1.0),
        vote("q", "ann", 1.0), vote("q", "bob", 1.0), vote("q", "cid", 0.0, swapped=True),
        vote("alone", "ann", 0.0),
    ]  # fmt: skip
    verdict = np.array([1.0, 0, 1, 0, 0, 1, 1])  # of the image shown first
    other, majority, best = ceilings(pairs, verdict, seed=0)
    assert (other["pairs"], other["votes"]) == (2, 6)
    assert other["value"] == pytest.approx((3 + 0.5 + 0.5 + 0) / 6)
    assert other["reward"] == pytest.approx((3 + 0.5 + 0.5 + 0) / 6)
    # the others of ann on q are split, which is a tie; those of cid say a
    assert majority["value"] == pytest.approx((3 + 0.5 + 0.5 + 0) / 6)
    assert majority["reward"] == pytest.approx((3 + 0.5 + 0.5 + 0) / 6)
    assert best["value"] == pytest.approx(5 / 6) and best["reward"] == pytest.approx(4 / 6)
    assert other["ci95"] is None  # two prompts show no spread


def test_two_votes_a_pair_are_rater_agreement() -> None:
    generator = np.random.default_rng(0)
    pairs, preferences = [], []
    for i in range(60):
        for name in ("ann", "bob"):
            label = float(generator.choice([0, 0.5, 1]))
            pairs.append(vote(f"p{i}", name, label, swapped=bool(generator.integers(2))))
            preferences.append(Preference(f"p{i}", ("a", "b"), label, name, "human", ("a", "b")))
    other, majority, _ = ceilings(pairs, np.full(120, 0.5), seed=0)
    assert other["value"] == majority["value"] == pytest.approx(rater_agreement(preferences)[0])


def test_a_scorer_without_noise_lies_between_people_and_the_best_answer() -> None:
    """Five raters who give the truth in 7 of 10 cases: one agrees with another in .7² + .3², the truth with one in .7."""
    generator = np.random.default_rng(1)
    truth = generator.integers(2, size=400).astype(float)
    pairs, verdict = [], []
    for i, right in enumerate(truth):
        for rater in range(5):
            says = right if generator.random() < 0.7 else 1 - right
            swapped = bool(generator.integers(2))
            pairs.append(vote(f"p{i}", f"rater {rater}", says, swapped=swapped))
            verdict.append(1 - right if swapped else right)
    other, majority, best = ceilings(pairs, np.array(verdict), seed=0)
    assert other["value"] == pytest.approx(0.58, abs=0.02) and other["reward"] == pytest.approx(0.7, abs=0.02)
    assert other["ci95"][0] < 0.58 < other["ci95"][1]
    assert majority["value"] < majority["reward"]
    assert 0.7 < best["value"] < 0.8 and best["reward"] == pytest.approx(other["reward"])


def test_soft_labels() -> None:
    pairs = [Pair(f"p{i}", Path("a"), Path("b"), label) for i, label in enumerate([0.9, 0.2, 0.5, 1.0])]
    (row,) = ceilings(pairs, np.array([1.0, 1.0, 0.5, 0.0]), seed=0)
    assert row["name"] == "soft labels"
    assert row["value"] == pytest.approx((0.9 + 0.8 + 0.5 + 1) / 4)
    assert row["reward"] == pytest.approx((0.9 + 0.2 + 0.5 + 0) / 4)


def test_single_strict_answers_have_no_ceiling() -> None:
    assert ceilings([vote("p", "ann", 1.0), vote("q", "bob", 0.5)], np.zeros(2), seed=0) == []
