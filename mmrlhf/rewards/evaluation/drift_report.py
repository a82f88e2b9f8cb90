"""`mmrlhf reward drift`: whether a reward's scores and its agreement with people are still those of the round before."""

import importlib.util
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import norm

from mmrlhf.data import read_pairs, read_text, write_text
from mmrlhf.drift import kolmogorov_smirnov, mean_shift, population_stability
from mmrlhf.errors import UserError
from mmrlhf.page import ACCENT, MUTED, figure_uri, new_figure, render
from mmrlhf.rewards.evaluate import evaluate_reward
from mmrlhf.rewards.evaluation.drift_checks import checks_of, worst
from mmrlhf.rewards.evaluation.round_scores import Sample, read_scores
from mmrlhf.rewards.evaluation.run_metrics import read_runs
from mmrlhf.rewards.evaluation.targeted import targeted_pairs, write_targets
from mmrlhf.rewards.score import check_output, load_on


@dataclass(frozen=True)
class DriftConfig:
    """Compare the scores of two rounds: stability index, Kolmogorov–Smirnov, mean shift; and agreement on fresh labels."""

    before: Path
    """ITEMS.jsonl, or SCORES.jsonl of `mmrlhf reward score`, of the round before."""
    after: Path
    """The same of this round."""
    out: Path
    """JSON file to write."""
    report: Path | None = None
    """HTML page to write; default: beside --out, with .html (needs matplotlib)."""
    reward: str | None = None
    """Folder that `mmrlhf reward train` wrote, or a reward's name: for items without "score", and for --labels."""
    labels: Path | None = None
    """PAIRS.jsonl with fresh labels."""
    previous: Path | None = None
    """JSON file that `mmrlhf reward eval` wrote in the round before, to compare the agreement on --labels with."""
    run: Path | None = None
    """Folder of the fine-tuning run between the rounds, for the policy's KL."""
    kl_bound: float | None = None
    """Nats a sample beyond which that KL asks for a look; without, it is told and not judged."""
    targets: Path | None = None
    """PAIRS.jsonl to write where the verdict is not stable: the next questions for `mmrlhf rate --items`, about images of a kind
    that the round before had fewer of, each beside an earlier one of its prompt."""
    budget: int = 100
    """How many such pairs at most."""
    seed: int = 0
    """Of the bootstrap."""
    batch_size: int = 32
    """Images scored at a time."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 …"""


def drift(config: DriftConfig) -> dict[str, Any]:
    """Compare, write the JSON file and the page, return what is in the JSON file."""
    report = check_config(config)
    kl = policy_kl(config.run) if config.run else None
    previous = read_previous(config.previous) if config.previous else None
    pairs = read_pairs(config.labels) if config.labels else None
    reward = load_on(config.reward, config.device) if config.reward else None
    before, after = (read_scores(path, reward, config.batch_size) for path in (config.before, config.after))
    figures: dict[str, Any] = {"reward": config.reward} | score_figures(before, after, config.seed)
    figures |= {"agreement": None, "policy_kl": kl}
    if pairs is not None and reward is not None:
        changes = previous["settings"] if previous else {}
        fresh = evaluate_reward(reward, pairs, seed=config.seed, batch_size=config.batch_size, progress=True, **changes)
        figures["agreement"] = agreement_figures(fresh, previous)
    figures["checks"] = checks_of(figures, config.kl_bound)
    figures["verdict"] = worst(figures["checks"])
    figures["targets"] = propose(figures, before, after, config) if config.targets else None
    write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", config.out)
    if report is not None:
        plots = {"scores": score_plot(before, after), "bins": bin_plot(figures["stability"])}
        write_text(render("rewards/evaluation/drift_report.html", f=figures, plots=plots, config=config), report)
    where = f"{config.out}, {report or 'no page without matplotlib: pip install mmrlhf[report]'}"
    if config.targets:
        asked = figures["targets"]
        where += (
            f"; {asked} pairs to ask about: {config.targets}"
            if asked
            else "; nothing moved that people should be asked about"
        )
    print(f"{figures['verdict']}: stability index {figures['stability']['corrected']:.3f}: {where}")
    return figures


def propose(figures: dict[str, Any], before: Sample, after: Sample, config: DriftConfig) -> int:
    """How many pairs are in the targeted round; its file is written where there are any."""
    if figures["verdict"] == "stable" or config.targets is None:
        return 0
    pairs = targeted_pairs(before, after, population_stability(before.scores, after.scores), config.budget, config.seed)
    if pairs:
        write_targets(pairs, config.targets)
    return len(pairs)


def check_config(config: DriftConfig) -> Path | None:
    """The page's path, None where matplotlib is missing. UserError for what would fail only after the work."""
    check_output(config.out)
    if config.labels and not config.reward:
        raise UserError(f"--labels {config.labels} needs the reward whose agreement is measured: give --reward")
    if config.previous and not config.labels:
        raise UserError(f"--previous {config.previous} needs fresh labels to compare with: give --labels")
    if config.kl_bound is not None and (config.run is None or not config.kl_bound > 0):
        raise UserError(f"--kl-bound got {config.kl_bound:g}, allowed is above 0, with the --run whose KL it bounds")
    if config.budget < 1:
        raise UserError(f"--budget got {config.budget}, allowed is 1 or more")
    if config.targets in (config.out, config.before, config.after, config.labels) and config.targets is not None:
        raise UserError(f"--targets {config.targets} is another file of this command: give a name of its own")
    if config.report is None and importlib.util.find_spec("matplotlib") is None:
        return None
    report = config.report or config.out.with_suffix(".html")
    if report == config.out or report.is_dir():
        raise UserError(
            f"the page got the name {report}, which is taken: name the figures .json, or the page with --report"
        )
    return report


def score_figures(before: Sample, after: Sample, seed: int) -> dict[str, Any]:
    """Sizes, stability, Kolmogorov–Smirnov and mean shift of two samples."""
    stability = population_stability(before.scores, after.scores)
    d, p = kolmogorov_smirnov(before.scores, after.scores)
    shift = mean_shift(before.scores, after.scores, before.prompts, after.prompts, seed=seed)
    sizes = {
        name: {
            "n": len(sample.scores),
            "prompts": len(set(sample.prompts)),
            "abstained": sample.abstained,
            "mean": float(sample.scores.mean()),
            "sd": float(sample.scores.std()),
        }
        for name, sample in (("before", before), ("after", after))
    }
    return sizes | {
        "shared_prompts": len(set(before.prompts) & set(after.prompts)),
        "stability": {name: list(v) if isinstance(v, tuple) else v for name, v in stability._asdict().items()},
        "kolmogorov_smirnov": {"d": d, "p": p},
        "shift": shift._asdict() | {"ci95": list(shift.ci95)},
    }


def read_previous(path: Path) -> dict[str, Any]:
    """agreement, agreement_ci95, and the settings by which the file of `mmrlhf reward eval` was made."""
    text = read_text(path, "the JSON file that `mmrlhf reward eval` wrote")
    try:
        found = json.loads(text)
        low, high = (float(value) for value in found["agreement_ci95"])
        settings = {"tie_threshold": float(found["tie_threshold"])}
        settings["temperature"] = float(found["calibration"]["change"]) if "calibration" in found else 1.0
        return {"agreement": float(found["agreement"]), "agreement_ci95": [low, high], "settings": settings}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--previous {path} is not what `mmrlhf reward eval` wrote ({error}): give its --out"
        ) from error


def agreement_figures(fresh: dict[str, Any], previous: dict[str, Any] | None) -> dict[str, Any]:
    """Agreement on the fresh labels, and its difference from the round before: 95 % normal interval, the rounds independent."""
    found = {name: fresh[name] for name in ("agreement", "agreement_ci95", "n", "prompts", "tie_threshold")}
    if previous is None:
        return found | {"previous": None, "difference": None, "difference_ci95": None}
    difference = fresh["agreement"] - previous["agreement"]
    z = float(norm.ppf(0.975))
    errors = [(high - low) / (2 * z) for low, high in (fresh["agreement_ci95"], previous["agreement_ci95"])]
    half = z * math.hypot(*errors)
    previous_figures = {name: previous[name] for name in ("agreement", "agreement_ci95")}
    return found | {
        "previous": previous_figures,
        "difference": difference,
        "difference_ci95": [difference - half, difference + half],
    }


def policy_kl(run: Path) -> dict[str, float]:
    """The last and the largest KL to the start in a run's metrics.jsonl, nats a sample."""
    columns = read_runs(run, ("kl",))
    if len(columns) > 1:
        raise UserError(f"--run {run} holds {len(columns)} runs, allowed is one: give one of {', '.join(columns)}")
    (column,) = columns.values()
    return {"last": float(column["kl"][-1]), "largest": float(column["kl"].max())}


def score_plot(before: Sample, after: Sample) -> str:
    """Histograms of the scores of both rounds."""
    figure, (axes,) = new_figure((5.4, 3.6))
    edges = np.histogram_bin_edges(np.concatenate([before.scores, after.scores]), bins=30)
    for sample, colour, label in ((before, MUTED, "before"), (after, ACCENT, "after")):
        share = np.full(len(sample.scores), 1 / len(sample.scores))
        axes.hist(sample.scores, edges, weights=share, color=colour, alpha=0.3)
        axes.hist(sample.scores, edges, weights=share, color=colour, histtype="step", lw=1.5, label=label)
    axes.set_xlabel("score")
    axes.set_ylabel("share of the images")
    axes.legend(frameon=False)
    return figure_uri(figure)


def bin_plot(stability: dict[str, Any]) -> str:
    """The share of each round in the bins of the stability index."""
    figure, (axes,) = new_figure((5.4, 3.6))
    places = np.arange(len(stability["before"]))
    for shift, name, colour in ((-0.2, "before", MUTED), (0.2, "after", ACCENT)):
        axes.bar(places + shift, stability[name], 0.38, color=colour, label=name)
    edges = [f"{edge:.2g}" for edge in stability["edges"]]
    names = [f"≤ {edge}" for edge in edges] + [f"> {edges[-1]}" if edges else "all"]
    axes.set_xticks(places, names, fontsize=8, rotation=45, ha="right")
    axes.set_xlabel("bins of equal share before")
    axes.set_ylabel("share of the images")
    axes.legend(frameon=False)
    return figure_uri(figure)
