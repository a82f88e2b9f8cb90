"""The sections of an evaluation: calibration, ensemble, over-optimisation, the worst pairs."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from mmrlhf.data import Pair, write_jsonl
from mmrlhf.errors import UserError
from mmrlhf.images import save_image
from mmrlhf.rewards.evaluation.details import (
    agreement_details,
    calibration_details,
    fit_on,
    model_details,
    overoptimisation_details,
    worst_pairs,
)
from mmrlhf.rewards.evaluation.scored_pairs import ScoredPairs, score_pairs
from mmrlhf.rewards.rules.simple import Redness


class Members(Redness):
    """Two members that give the redness and twice the redness, and score by their mean, at a temperature."""

    temperature = 0.5

    def members(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        redness = images[:, 0].mean(dim=(1, 2)) / self.temperature
        return torch.stack([redness, 2 * redness])

    def __call__(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        return self.members(images, prompts).mean(dim=0)


def judged_of(margins: Sequence[float], labels: Sequence[float], folder: Path = Path("x")) -> ScoredPairs:
    pairs = [Pair(f"p{i}", folder / f"{i}-a.png", folder / f"{i}-b.png", label) for i, label in enumerate(labels)]
    return ScoredPairs(pairs, np.stack([np.array(margins, dtype=float), np.zeros(len(margins))], axis=1), 0, 0)


def test_before_is_temperature_one_or_the_reward_as_it_is() -> None:
    judged = judged_of([2.0, -1.0], [1.0, 1.0])
    at_own = calibration_details(Members(), judged, temperature=1.0, fitted=None)
    assert at_own["temperature"] == 0.5
    nlls = {t: np.mean([np.log1p(np.exp(-2 / t)), np.log1p(np.exp(1 / t))]) for t in (1.0, 2.0, 4.0)}
    assert (at_own["before"]["nll"], at_own["after"]["nll"]) == pytest.approx((nlls[2.0], nlls[1.0]))
    fitted = calibration_details(Members(), judged, temperature=4.0, fitted={"n": 1})
    assert fitted["temperature"] == 2.0
    assert (fitted["before"]["nll"], fitted["after"]["nll"]) == pytest.approx((nlls[1.0], nlls[4.0]))
    assert fitted["after"]["brier"] < fitted["before"]["brier"]


def test_temperature_and_ties_come_from_the_other_pairs() -> None:
    generator = np.random.default_rng(0)
    truth = generator.normal(size=3000)
    labels = np.where(np.abs(truth) < 0.3, 0.5, (generator.random(3000) < 1 / (1 + np.exp(-truth))).astype(float))
    other, tested = judged_of((5 * truth).tolist(), labels.tolist()), judged_of([1.0], [1.0])
    found = fit_on(other, Path("other.jsonl"), tested)
    assert found["change"] == pytest.approx(5, rel=0.15) and found["tie_threshold"] > 0
    assert (found["n"], found["shared_prompts"], found["data"]) == (3000, 1, "other.jsonl")


def test_the_worst_are_the_surest_wrong_ones_one_a_pair() -> None:
    judged = judged_of([-3.0, 2.0, -5.0, 1.0, -4.0], [1.0, 1.0, 1.0, 0.0, 0.5])
    twice = ScoredPairs([*judged.pairs, judged.pairs[2]], np.concatenate([judged.scores, judged.scores[2:3]]), 0, 0)
    rows = worst_pairs(twice, temperature=1.0, threshold=0.0, out=Path("out/eval.json"))
    assert [row["prompt"] for row in rows] == ["p2", "p0", "p3"]  # and not the tie, which is half right
    assert rows[0]["image_0"] == "../x/2-a.png"
    assert rows[2]["probability"] == pytest.approx(1 / (1 + math.exp(-1)))


def test_agreement_details_use_the_temperature_and_the_threshold() -> None:
    judged = judged_of([0.2, 4.0, -4.0], [0.5, 1.0, 0.0])
    found = agreement_details(judged, temperature=2.0, threshold=0.1, seed=0)
    assert [point["agreement"] for point in found["abstention"]["curve"]] == [1.0] * 10
    assert found["position"]["first"] == 0.5 and found["ceilings"] == []
    assert agreement_details(judged, temperature=0.1, threshold=0.1, seed=0)["abstention"]["curve"][0]["agreement"] < 1


def test_what_needs_the_reward_once_more(tmp_path: Path) -> None:
    pairs = []
    for i in range(8):
        for side in "ab":
            save_image(torch.full((3, 4, 4), (1 + i + 9 * (side == "a")) / 20), tmp_path / f"{i}-{side}.png")
        pairs.append(Pair(f"p{i}", tmp_path / f"{i}-a.png", tmp_path / f"{i}-b.png", float(i != 3)))
    reward = Members()
    judged = score_pairs(reward, pairs)
    found = model_details(reward, judged, temperature=1.0, threshold=0.0, seed=0, perturbed_pairs=5, batch_size=3)
    assert found["ensemble"]["members"] == 2 and found["sensitivity"]["pairs"] == 5
    # the members' margins are .9 and 1.8
    spread = (1 / (1 + math.exp(-1.8)) - 1 / (1 + math.exp(-0.9))) / 2
    assert found["ensemble"]["disagreement_mean"] == pytest.approx(spread, rel=0.02)
    assert [row["agreement"] for row in found["ensemble"]["pessimistic"]] == [7 / 8] * 4
    none = model_details(Redness(), judged, temperature=1.0, threshold=0.0, seed=0, perturbed_pairs=0, batch_size=3)
    assert none == {"ensemble": None, "sensitivity": None}


def test_overoptimisation_of_two_runs(tmp_path: Path) -> None:
    for name, points in (("a", (0.0, 1.0, 4.0)), ("b", (9.0, 16.0, -1e-9))):
        rows = [
            {"kl": kl, "reward_mean": kl, "best": 0.2 + math.sqrt(max(kl, 0)) * (1 - 0.2 * math.sqrt(max(kl, 0)))}
            for kl in points
        ]
        write_jsonl(rows, tmp_path / name / "metrics.jsonl")
    found = overoptimisation_details(tmp_path, "best")
    assert [run["run"] for run in found["runs"]] == ["a", "b"] and found["largest_distance"] == 4
    fit = found["fits"][1]
    assert (fit["form"], fit["alpha"], fit["beta"], fit["start"]) == ("best-of-n", *map(pytest.approx, (1, 0.2, 0.2)))
    assert fit["peak"] == pytest.approx(2.5) and fit["r2"] > found["fits"][0]["r2"]
    with pytest.raises(UserError, match="a number for each of kl, reward_mean, gold_mean"):
        overoptimisation_details(tmp_path, "gold_mean")
