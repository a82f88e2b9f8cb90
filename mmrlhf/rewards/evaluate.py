"""`mmrlhf reward eval`: how far a reward agrees with held-out judgements, and how sure it is, as numbers and one HTML page."""

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.special import expit

from mmrlhf.answers import Comparison, read_comparisons
from mmrlhf.calibration import ece, reliability_curve
from mmrlhf.data import write_text
from mmrlhf.errors import UserError
from mmrlhf.rewards.evaluation.details import (
    agreement_details,
    calibration_details,
    fit_on,
    model_details,
    overoptimisation_details,
    worst_pairs,
)
from mmrlhf.rewards.evaluation.measures import TIE_RULE, brier, nll, tie_credits, unit_values
from mmrlhf.rewards.evaluation.scored_pairs import ScoredPairs, score_pairs
from mmrlhf.rewards.score import check_output, load_on
from mmrlhf.statistics import bootstrap_ci
from mmrlhf.types import Reward


@dataclass(frozen=True)
class EvalConfig:
    """Agreement with judged pairs, where it falls short, calibration, abstention and sensitivity, in JSON and HTML."""

    reward: str
    """Folder that `mmrlhf reward train` wrote, or a reward's name."""
    data: Path
    """PAIRS.jsonl, or ANSWERS.jsonl for a reward that reads, that it was not trained on."""
    out: Path
    """JSON file to write."""
    report: Path | None = None
    """HTML page to write; default: beside --out, with .html (needs matplotlib)."""
    calibration: Path | None = None
    """PAIRS.jsonl of other prompts, to choose temperature and tie threshold on; default: the reward's own."""
    runs: Path | None = None
    """Folder of one or several fine-tuning runs whose metrics.jsonl have a gold reward: plots over-optimisation."""
    criterion: str | None = None
    """Only the pairs judged by this criterion, scored by the head trained on it; default: all pairs, the reward as it is."""
    gold_key: str = "gold_mean"
    """The gold reward's name in metrics.jsonl."""
    perturbed_pairs: int = 100
    """Pairs, drawn at random, whose images are recompressed, resized …; 0 leaves that out."""
    tie_threshold: float | None = None
    """Predict a tie where |2p - 1| is at most this; default: chosen on --calibration, else the reward's own, else 0."""
    seed: int = 0
    """Of the bootstrap, and of what is drawn."""
    batch_size: int = 32
    """Images scored at a time."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 …"""


def evaluate(config: EvalConfig) -> dict[str, Any]:
    """Measure, write the JSON file and the page, return what is in the JSON file."""
    pairs = read_comparisons(config.data)
    other_pairs = read_comparisons(config.calibration) if config.calibration else []
    report = report_path(config)
    check_config(config)
    curves = overoptimisation_details(config.runs, config.gold_key) if config.runs else None
    reward = load_on(config.reward, config.device)
    if config.criterion is not None:
        reward, pairs, other_pairs = of_criterion(config.criterion, reward, pairs, other_pairs)
    judged = score_pairs(reward, pairs, batch_size=config.batch_size, progress=True)
    fitted = None
    if config.calibration:
        fitted = fit_on(
            score_pairs(reward, other_pairs, batch_size=config.batch_size, progress=True), config.calibration, judged
        )
    temperature = fitted["change"] if fitted else 1.0
    chosen = fitted["tie_threshold"] if fitted else own_threshold(reward)
    threshold = float(chosen if config.tie_threshold is None else config.tie_threshold)
    settings: dict[str, Any] = {"temperature": temperature, "threshold": threshold}
    figures = {"reward": config.reward, "data": str(config.data)} | headline(judged, **settings, seed=config.seed)
    figures |= agreement_details(judged, **settings, seed=config.seed)
    figures["calibration"] = calibration_details(reward, judged, temperature=temperature, fitted=fitted)
    figures |= model_details(
        reward,
        judged,
        **settings,
        seed=config.seed,
        perturbed_pairs=config.perturbed_pairs,
        batch_size=config.batch_size,
    )
    figures |= {"overoptimisation": curves, "worst": worst_pairs(judged, **settings, out=config.out)}
    write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", config.out)
    if report is not None:
        from mmrlhf.rewards.evaluation.report import write_report

        write_report(figures, config.out, report)
    low, high = figures["agreement_ci95"]
    where = f"{config.out}, {report or 'no page without matplotlib: pip install mmrlhf[report]'}"
    print(f"agreement {figures['agreement']:.3f} (95% {low:.3f} … {high:.3f}), ECE {figures['ece']:.3f}: {where}")
    return figures


def evaluate_reward(
    reward: Reward,
    pairs: Sequence[Comparison],
    *,
    seed: int = 0,
    tie_threshold: float | None = None,
    temperature: float = 1.0,
    batch_size: int = 32,
    progress: bool = False,
) -> dict[str, Any]:
    """agreement, agreement_ci95, ece, nll, n, … of a reward on judged pairs; see `TIE_RULE` for ties.

    The tie threshold should come from other pairs (default: the reward's own, else 0), and so should `temperature`, which
    divides the margins. Pairs that nobody judged and pairs on which the reward abstains are left out. UserError where nothing
    is left.
    """
    threshold = own_threshold(reward) if tie_threshold is None else tie_threshold
    check_threshold(threshold)
    judged = score_pairs(reward, pairs, batch_size=batch_size, progress=progress)
    return headline(judged, temperature=temperature, threshold=threshold, seed=seed)


def headline(judged: ScoredPairs, *, temperature: float, threshold: float, seed: int) -> dict[str, Any]:
    """The figures that every report of a reward begins with."""
    labels, margins = judged.labels, judged.margins / temperature
    probabilities = expit(margins)
    credits = tie_credits(probabilities, labels, threshold)
    low, high = bootstrap_ci(unit_values(credits, judged.units), seed=seed)
    return {
        "agreement": float(credits.mean()),
        "agreement_ci95": [max(0.0, low), min(1.0, high)],
        "ece": ece(probabilities, labels),
        "nll": nll(margins, labels),
        "brier": brier(probabilities, labels),
        "n": len(judged.pairs),
        "prompts": len(set(judged.units)),
        "ties": int((labels == 0.5).sum()),
        "abstained": judged.abstained,
        "unlabelled": judged.unlabelled,
        "tie_threshold": threshold,
        "tie_rule": TIE_RULE,
        "reliability": [entry._asdict() for entry in reliability_curve(probabilities, labels)],
    }


def of_criterion(
    criterion: str, reward: Reward, pairs: list[Comparison], other_pairs: list[Comparison]
) -> tuple[Reward, list[Comparison], list[Comparison]]:
    """The reward's head for a criterion, and the pairs judged by it. UserError where there is no such head or pair."""
    if not hasattr(reward, "but"):
        raise UserError(f"--criterion got '{criterion}', but this reward has no heads: leave --criterion out")
    kept = [pair for pair in pairs if pair.criterion == criterion]
    if not kept:
        names = ", ".join(sorted({f"'{pair.criterion}'" for pair in pairs}))
        raise UserError(f"--criterion got '{criterion}', allowed is what the pairs were judged by: {names}")
    return reward.but(criterion=criterion), kept, [pair for pair in other_pairs if pair.criterion == criterion]


def own_threshold(reward: Reward) -> float:
    """The tie threshold that a reward was calibrated to, else 0."""
    return float(getattr(reward, "tie_threshold", 0.0))


def check_threshold(threshold: float) -> None:
    if not 0 <= threshold <= 1:
        raise UserError(f"--tie-threshold got {threshold}, allowed is from 0 to 1")


def check_config(config: EvalConfig) -> None:
    """UserError for what would fail only after the work."""
    check_output(config.out)
    if config.tie_threshold is not None:
        check_threshold(config.tie_threshold)
    if config.perturbed_pairs < 0:
        raise UserError(f"--perturbed-pairs got {config.perturbed_pairs}, allowed is 0 (none) or more")


def report_path(config: EvalConfig) -> Path | None:
    """Where the page goes; None where matplotlib is missing and nobody asked for a page. UserError where none can be made."""
    if importlib.util.find_spec("matplotlib") is None:
        if config.report is None:
            return None
        raise UserError(
            f"--report {config.report} needs matplotlib: pip install 'mmrlhf[report]', or leave the page out"
        )
    report = config.report or config.out.with_suffix(".html")
    if report == config.out:
        raise UserError(
            f"--out {config.out} is the name of the page: name the figures .json, or the page with --report"
        )
    if report.is_dir():
        raise UserError(f"--report {report} is a folder: give the name of a file to write")
    return report
