"""Figures of judgements, counted by hand, and of real tables against other computations."""

import itertools
import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from statsmodels.stats import inter_rater

from mmrlhf.agreement import fleiss_kappa, krippendorff_alpha
from mmrlhf.answers import AnswerPair, write_answer_pairs
from mmrlhf.data import Pair, write_pairs
from mmrlhf.datasets.stats import StatsConfig, agreement, stats
from mmrlhf.outcomes import Outcome, Ranking, Rating, write_outcomes
from tests.datasets import annotators
from tests.datasets.files import touch


def test_stats_count_ties_contradictions_and_the_side_preferred(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png", "c.png")
    a, b, c = (tmp_path / name for name in ("a.png", "b.png", "c.png"))
    pairs = [Pair("x", a, b, 1.0), Pair("x", b, a, 1.0), Pair("x", a, c, 0.5), Pair("y", a, c, 0.0),
             Pair("y", a, b, 0.8), Pair("y", b, c, 1.0, has_label=False)]  # fmt: skip
    write_pairs(pairs, tmp_path / "pairs.jsonl")
    figures = stats(StatsConfig(tmp_path / "pairs.jsonl", tmp_path / "figures.json"))
    assert json.loads((tmp_path / "figures.json").read_text()) == figures
    assert (
        figures["judgements"] == 6
        and figures["by_kind"] == {"pairs": 6}
        and figures["without_label"] == 1
        and figures["prompts"] == 2
    )
    assert figures["images"] == 3 and figures["uses_an_image"] == 4.0 and figures["contradictions"] == 1
    assert figures["share_of_ties"] == pytest.approx(0.2) and figures["share_of_soft_labels"] == pytest.approx(0.2)
    assert figures["first_preferred"] == pytest.approx(2 / 3)
    low, high = figures["first_preferred_ci95"]
    assert low < 2 / 3 < high


def test_stats_of_every_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    touch(tmp_path, "a.png", "b.png")
    a, b = tmp_path / "a.png", tmp_path / "b.png"
    outcomes: list[Outcome] = [
        Rating("x", a, 4, annotator="ann"), Rating("x", a, 4, annotator="bob"), Rating("x", b, 1, annotator="ann"),
        Rating("x", b, 2, annotator="bob"), Ranking("y", (a, b), (1.0, 2.0), criterion="fit"),
        Pair("y", a, b, 1.0, annotator="ann"), Pair("y", b, a, 0.0, annotator="bob"), Pair("y", a, b, 0.0),
    ]  # fmt: skip
    write_outcomes(outcomes, tmp_path / "all.jsonl")
    figures = stats(StatsConfig(tmp_path / "all.jsonl", tmp_path / "figures.json"))
    assert json.loads((tmp_path / "figures.json").read_text()) == figures
    assert figures["by_kind"] == {"ratings": 4, "pairs": 3, "rankings": 1}
    assert figures["by_criterion"] == {"": 7, "fit": 1} and figures["by_annotator"] == {"ann": 3, "bob": 3, "": 2}
    assert figures["contradictions"] == 1 and figures["first_preferred"] == pytest.approx(1 / 3)
    table = {row["of"]: row for row in figures["agreement"]}
    assert table["ratings"] | {"alpha": 0} == {
        "of": "ratings", "criterion": "", "questions": 2, "pairwise": 0.5, "alpha": 0
    }  # fmt: skip
    assert table["ratings"]["alpha"] == pytest.approx(krippendorff_alpha(np.array([[4.0, 1.0], [4.0, 2.0]]), "ordinal"))
    assert table["pairs"]["pairwise"] == 1 and table["pairs"]["alpha"] is None  # all agree: nothing to measure
    assert "of ratings, criterion (none), questions 2, pairwise 0.5" in capsys.readouterr().out


def test_stats_of_answers(tmp_path: Path) -> None:
    names = ("ann", "bob", "cy")
    pairs = [AnswerPair("p", "x", "y", 1.0, annotator=name, criterion="safety") for name in names]
    pairs += [AnswerPair("p", "y", "z", label, annotator=n) for label, n in zip((1.0, 0.5, 1.0), names, strict=True)]
    write_answer_pairs(pairs, tmp_path / "answers.jsonl")
    figures = stats(StatsConfig(tmp_path / "answers.jsonl"))
    assert figures["by_kind"] == {"answers": 6} and figures["images"] == 0 and figures["uses_an_image"] is None
    assert {row["criterion"]: row["pairwise"] for row in figures["agreement"]} == {
        "safety": 1,
        "": pytest.approx(1 / 3),
    }


@pytest.mark.parametrize("model", ["clip", "if-xl", "sdv2"])
def test_agreement_of_five_real_annotators(model: str) -> None:
    """Ordinal alpha by its coincidence matrix, pairwise agreement pair by pair, and Fleiss' kappa by statsmodels."""
    if not annotators.FOLDER.exists():
        pytest.skip("shared/data/annotators is not there")
    ratings = annotators.ratings(model)
    units: dict[Path, list[int]] = defaultdict(list)
    for rating in ratings:
        units[rating.image].append(rating.rating)
    assert len(units) == 400 and {len(unit) for unit in units.values()} == {5}
    (found,) = agreement(ratings)
    pairs = [a == b for unit in units.values() for a, b in itertools.combinations(unit, 2)]
    assert found["questions"] == 400 and found["pairwise"] == pytest.approx(sum(pairs) / len(pairs))
    assert found["alpha"] == pytest.approx(alpha_by_coincidences(units, ordinal=True))
    table = np.array([*units.values()], dtype=float).T
    assert krippendorff_alpha(table, "interval") == pytest.approx(alpha_by_coincidences(units, ordinal=False))
    counts = np.array([[unit.count(value) for value in range(1, 6)] for unit in units.values()])
    assert fleiss_kappa(counts) == pytest.approx(inter_rater.fleiss_kappa(counts))


def alpha_by_coincidences(units: dict[Path, list[int]], *, ordinal: bool) -> float:
    """Krippendorff's own way: a matrix of how often two values meet in a unit."""
    met = np.zeros((6, 6))
    for unit in units.values():
        for a, b in itertools.permutations(unit, 2):
            met[a, b] += 1 / (len(unit) - 1)
    total = met.sum(axis=0)
    distance = np.zeros((6, 6))
    for a, b in itertools.combinations(range(1, 6), 2):
        between = total[a : b + 1].sum() - (total[a] + total[b]) / 2
        distance[a, b] = distance[b, a] = (between if ordinal else b - a) ** 2
    return 1 - (total.sum() - 1) * (met * distance).sum() / (np.outer(total, total) * distance).sum()


def test_the_real_ratings_are_what_the_tables_say() -> None:
    if not annotators.FOLDER.exists():
        pytest.skip("shared/data/annotators is not there")
    counts = Counter(rating.rating for rating in annotators.ratings("if-xl"))
    assert counts == {4: 1311, 3: 500, 2: 159, 1: 30}
