"""`mmrlhf reward drift` on files of scores and of items, with and without fresh labels."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmrlhf.data import read_pairs, write_jsonl, write_pairs
from mmrlhf.drift import population_stability
from mmrlhf.errors import UserError
from mmrlhf.rewards.evaluate import EvalConfig, evaluate
from mmrlhf.rewards.evaluation.drift_checks import checks_of
from mmrlhf.rewards.evaluation.drift_report import DriftConfig, agreement_figures, drift


def scores_file(path: Path, scores: np.ndarray) -> Path:
    """Images that are no longer there, five a prompt."""
    write_jsonl(
        [{"prompt": f"p{i // 5}", "image": f"gone-{i}.png", "score": s} for i, s in enumerate(scores.tolist())], path
    )
    return path


@pytest.fixture
def rounds(tmp_path: Path) -> DriftConfig:
    """Scores that rose by half a deviation."""
    generator = np.random.default_rng(0)
    before, after = generator.normal(size=400), generator.normal(size=400) + 0.5
    return DriftConfig(
        scores_file(tmp_path / "before.jsonl", before),
        scores_file(tmp_path / "after.jsonl", after),
        tmp_path / "d.json",
    )


def test_scores_alone(rounds: DriftConfig, capsys: pytest.CaptureFixture[str]) -> None:
    figures = drift(rounds)
    assert json.loads(rounds.out.read_text()) == figures
    before, after = (
        np.array([json.loads(line)["score"] for line in path.read_text().splitlines()])
        for path in (rounds.before, rounds.after)
    )
    assert figures["stability"]["value"] == population_stability(before, after).value
    assert figures["shift"]["value"] == pytest.approx(after.mean() - before.mean())
    assert figures["before"] == {
        "n": 400, "prompts": 80, "abstained": 0, "mean": pytest.approx(before.mean()), "sd": pytest.approx(before.std()),
    }  # fmt: skip
    assert figures["shared_prompts"] == 80 and figures["agreement"] is figures["policy_kl"] is None
    assert [check["verdict"] for check in figures["checks"]] == ["look", "look", "look"]
    assert figures["verdict"] == "look"
    page = rounds.out.with_suffix(".html").read_text()
    assert "Drift between rounds" in page and page.count("data:image/svg+xml") == 2
    assert capsys.readouterr().out.startswith("look: stability index")


def test_the_same_scores_are_stable(rounds: DriftConfig) -> None:
    figures = drift(dataclasses.replace(rounds, after=rounds.before))
    assert figures["verdict"] == "stable" and figures["stability"]["value"] == 0


def test_abstentions_are_counted_and_left_out(rounds: DriftConfig, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "other", "image": "x.png", "score": None},
        {"prompt": "other", "image": "x.png", "score": 1},
    ]
    write_jsonl(rows, tmp_path / "some.jsonl")
    figures = drift(dataclasses.replace(rounds, after=tmp_path / "some.jsonl"))
    assert (figures["after"]["n"], figures["after"]["abstained"], figures["shared_prompts"]) == (1, 1, 0)
    assert "No prompt is in both rounds" in rounds.out.with_suffix(".html").read_text()


def test_items_fresh_labels_and_a_run(pairs_file: Path, tmp_path: Path) -> None:
    """The annotator turned against red: the reward for red agrees no more."""
    pairs = read_pairs(pairs_file)
    items = [{"prompt": pair.prompt, "image": str(pair.image_0)} for pair in pairs]
    write_jsonl(items[:30], tmp_path / "before.jsonl")
    write_jsonl(items[30:], tmp_path / "after.jsonl")
    write_pairs([dataclasses.replace(pair, label_0=1 - pair.label_0) for pair in pairs], tmp_path / "fresh.jsonl")
    evaluate(EvalConfig("warmth", pairs_file, tmp_path / "eval.json", tie_threshold=0.01, perturbed_pairs=0))
    write_jsonl([{"epoch": i, "kl": kl} for i, kl in enumerate([0.0, 3.0, 2.0])], tmp_path / "ddpo" / "metrics.jsonl")
    config = DriftConfig(
        tmp_path / "before.jsonl", tmp_path / "after.jsonl", tmp_path / "d.json", reward="warmth",
        labels=tmp_path / "fresh.jsonl", previous=tmp_path / "eval.json", run=tmp_path / "ddpo",
    )  # fmt: skip
    figures = drift(config)
    agreement = figures["agreement"]
    assert agreement["tie_threshold"] == 0.01  # that of the round before, so that the figures compare
    assert agreement["difference"] == agreement["agreement"] - agreement["previous"]["agreement"] < -0.5
    assert figures["checks"][-1]["verdict"] == figures["verdict"] == "retrain"
    assert figures["policy_kl"] == {"last": 2, "largest": 3}
    alone = drift(dataclasses.replace(config, previous=None, run=None))
    assert alone["agreement"]["difference"] is None and len(alone["checks"]) == 3


def test_the_interval_of_the_difference_adds_the_variances() -> None:
    fresh: dict[str, Any] = {
        "agreement": 0.6,
        "agreement_ci95": [0.57, 0.63],
        "n": 9,
        "prompts": 9,
        "tie_threshold": 0.0,
    }
    previous = {"agreement": 0.7, "agreement_ci95": [0.66, 0.74]}
    found = agreement_figures(fresh, previous)
    assert found["difference_ci95"] == pytest.approx([-0.1 - math.hypot(0.03, 0.04), -0.1 + math.hypot(0.03, 0.04)])


@pytest.mark.parametrize(
    ("interval", "verdict"), [([-0.04, 0.1], "stable"), ([-0.06, 0.1], "look"), ([-0.2, -0.01], "retrain")]
)
def test_the_verdict_on_agreement(interval: list[float], verdict: str) -> None:
    figures = {
        "stability": {"corrected": 0.0},
        "kolmogorov_smirnov": {"d": 0.0, "p": 1.0},
        "shift": {"value": 0.0, "ci95": [0.0, 0.0]},
        "agreement": {"difference": sum(interval) / 2, "difference_ci95": interval},
    }
    assert [check["verdict"] for check in checks_of(figures)] == ["stable", "stable", "stable", verdict]


def test_bad_input(rounds: DriftConfig, pairs_file: Path, tmp_path: Path) -> None:
    pair = read_pairs(pairs_file)[0]
    write_jsonl([{"prompt": "p", "image": str(pair.image_0)}], tmp_path / "items.jsonl")
    (tmp_path / "other.json").write_text("{}")
    for name in "ab":
        write_jsonl([{"kl": 1.0}], tmp_path / "runs" / name / "metrics.jsonl")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"after": tmp_path / "items.jsonl"}, 'has no "score": give --reward'),
        ({"labels": pairs_file}, "needs the reward whose agreement is measured"),
        ({"previous": tmp_path / "other.json"}, "needs fresh labels"),
        ({"previous": tmp_path / "other.json", "labels": pairs_file, "reward": "warmth"}, "not what `mmrlhf reward eval` wrote"),
        ({"out": tmp_path / "d.html"}, r"the page got the name .*d\.html, which is taken"),
        ({"run": tmp_path / "runs"}, "holds 2 runs, allowed is one: give one of a, b"),
    ]  # fmt: skip
    for changes, message in cases:
        with pytest.raises(UserError, match=message):
            drift(dataclasses.replace(rounds, **changes))
    assert not rounds.out.exists()
