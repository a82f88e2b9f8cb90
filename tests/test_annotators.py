"""Dawid–Skene: against plain loops, on simulated annotators whose errors are known, and on real ones."""

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf.annotators import annotator_weights, dawid_skene, reliabilities
from mmrlhf.data import Pair
from mmrlhf.errors import UserError
from tests.datasets.annotators import ratings

TABLES = sorted((Path(__file__).parents[2] / "shared" / "data" / "annotators").glob("geneval_*.csv"))


def simulate(confusions: np.ndarray, units: int, seed: int) -> tuple[np.ndarray, ...]:
    """(truths, and units, annotators, answers of everyone about everything)."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(confusions.shape[1], size=units)
    rows = [(u, a, generator.choice(confusions.shape[1], p=confusions[a, truth[u]]))
            for u in range(units) for a in range(len(confusions))]  # fmt: skip
    return truth, *np.array(rows).T


CONFUSIONS = np.array(
    [[[0.9, 0.1], [0.2, 0.8]], [[0.8, 0.2], [0.1, 0.9]], [[0.5, 0.5], [0.5, 0.5]], [[0.6, 0.4], [0.1, 0.9]]]
)


def test_known_errors_are_found() -> None:
    truth, units, annotators, answers = simulate(CONFUSIONS, 4000, 0)
    found = dawid_skene(units, annotators, answers, 2)
    np.testing.assert_allclose(found.confusions, CONFUSIONS, atol=0.05)
    majority = np.bincount(units, answers) > 2
    assert ((found.posteriors[:, 1] > 0.5) == truth).mean() > (majority == truth).mean()
    weights = reliabilities(found)
    assert weights[2] < 0.08 and weights[0] > 0.6 > weights[3] > 0.4


def test_two_steps_are_those_of_plain_loops() -> None:
    _, units, annotators, answers = simulate(CONFUSIONS, 30, 1)
    found = dawid_skene(units, annotators, answers, 2, steps=2)
    p = [[0.0, 0.0] for _ in range(30)]
    for u, y in zip(units, answers, strict=True):
        p[u][y] += 1 / 4
    for _ in range(2):
        prior = [sum(row[c] for row in p) / 30 for c in range(2)]
        table = {(a, c, y): 0.0 for a in range(4) for c in range(2) for y in range(2)}
        for u, a, y in zip(units, annotators, answers, strict=True):
            for c in range(2):
                table[a, c, y] += p[u][c]
        p = [list(prior) for _ in range(30)]
        for u, a, y in zip(units, annotators, answers, strict=True):
            for c in range(2):
                p[u][c] *= table[a, c, y] / (table[a, c, 0] + table[a, c, 1])
        p = [[value / sum(row) for value in row] for row in p]
    np.testing.assert_allclose(found.posteriors, p, rtol=1e-9, atol=1e-12)


GOLDEN = json.loads((Path(__file__).parent / "golden" / "crowd_kit.json").read_text())


def test_the_consensus_is_that_of_crowd_kit() -> None:
    """On random votes with missing answers; what made the golden values is beside them."""
    units, annotators, answers = np.array(GOLDEN["random"]["votes"]).T
    found = dawid_skene(units, annotators, answers, 3, tolerance=0.0, steps=2000)
    np.testing.assert_allclose(found.posteriors, GOLDEN["random"]["posteriors"], atol=1e-5)


@pytest.mark.skipif(not TABLES, reason="the public annotator tables are not here")
def test_the_consensus_of_real_raters_is_that_of_crowd_kit() -> None:
    """Five people's quality of 400 images of one model, the seat as the annotator."""
    seen, rows = Counter[str](), []
    images: dict[str, int] = {}
    for rating in ratings("sdv2"):
        key = str(rating.image)
        rows.append((images.setdefault(key, len(images)), seen[key], rating.rating - 1))
        seen[key] += 1
    units, annotators, answers = np.array(rows).T
    found = dawid_skene(units, annotators, answers, 4, tolerance=0.0, steps=2000)  # nobody gave the fifth level
    np.testing.assert_allclose(found.posteriors, GOLDEN["real"]["posteriors"], atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=30))
def test_the_likelihood_never_falls(rows: list[tuple[int, int, int]]) -> None:
    _, units = np.unique([row[0] for row in rows], return_inverse=True)
    _, annotators = np.unique([row[1] for row in rows], return_inverse=True)
    found = dawid_skene(units, annotators, np.array([row[2] for row in rows]), 3, steps=60)
    assert (np.diff(found.log_likelihoods) > -1e-9).all()
    np.testing.assert_allclose(found.posteriors.sum(1), 1)


def test_pairs_count_by_their_annotator_whichever_image_comes_first() -> None:
    generator = np.random.default_rng(0)
    better = generator.permutation(60)
    pairs = []
    for unit in range(60):
        a, b = Path(f"{2 * unit}.png"), Path(f"{2 * unit + 1}.png")
        right = float(better[unit] < 30)
        for name, error in (("good", 0.05), ("fair", 0.2), ("random", 0.5), ("contrary", 0.95)):
            label = right if generator.random() > error else 1 - right
            turned = generator.random() < 0.5
            pairs.append(
                Pair("p", b, a, 1 - label, annotator=name) if turned else Pair("p", a, b, label, annotator=name)
            )
    weights, by_name = annotator_weights(pairs)
    assert by_name["good"] > by_name["fair"] > by_name["random"] and by_name["contrary"] == 0
    assert by_name["good"] > 0.7 and by_name["random"] < 0.35
    assert weights.tolist() == [by_name[pair.annotator] for pair in pairs]
    swapped = [Pair(p.prompt, p.image_1, p.image_0, 1 - p.label_0, annotator=p.annotator) for p in pairs]
    np.testing.assert_allclose(annotator_weights(swapped)[0], weights)


def test_without_overlap_nothing_is_told() -> None:
    pairs = [Pair("p", Path(f"{i}a"), Path(f"{i}b"), 1.0, annotator=f"ann{i}") for i in range(4)]
    weights, by_name = annotator_weights(pairs)
    assert weights.tolist() == [1.0] * 4 and by_name == {}
    with pytest.raises(UserError, match="got 1 answers, allowed is 1 or more, each from 0 to 1"):
        dawid_skene(np.array([0]), np.array([0]), np.array([2]), 2)


@pytest.mark.skipif(not TABLES, reason="the public annotator tables are not here")
def test_real_annotators_agree_with_their_consensus() -> None:
    """Five people's quality ratings of 400 images, from 1 to 5."""
    for table in TABLES:
        with open(table, newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["Answer.task-quality"]]
        _, units = np.unique([row["Input.index"] for row in rows], return_inverse=True)
        ratings = np.array([int(float(row["Answer.task-quality"])) - 1 for row in rows])
        seats, seen = np.zeros(len(units), dtype=int), Counter[int]()
        for i, unit in enumerate(
            units.tolist()
        ):  # the tables do not name the annotators: the first to answer, the second …
            seats[i] = seen[unit]
            seen[unit] += 1
        found = dawid_skene(units, seats, ratings, 5, shrinkage=1.0)
        means = np.bincount(units, ratings) / np.bincount(units)
        expected = found.posteriors @ np.arange(5)
        assert np.corrcoef(means, expected)[0, 1] > 0.8
        np.testing.assert_allclose(found.priors.sum(), 1)
