"""What `mmrlhf reward eval` says beyond the headline: each section of the page as numbers."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import expit

from mmrlhf.answers import Comparison
from mmrlhf.calibration import ece, reliability_curve
from mmrlhf.data import Pair, relative
from mmrlhf.datasets.judgements import question_of
from mmrlhf.overoptimisation import Form, fit_overoptimisation
from mmrlhf.rewards.calibrate import fit_temperature, fit_tie_threshold
from mmrlhf.rewards.evaluation.abstention import abstention, ensemble_figures
from mmrlhf.rewards.evaluation.batches import member_scores
from mmrlhf.rewards.evaluation.breakdown import breakdowns
from mmrlhf.rewards.evaluation.ceiling import ceilings
from mmrlhf.rewards.evaluation.measures import brier, nll, tie_credits, verdicts
from mmrlhf.rewards.evaluation.position import first_preferred
from mmrlhf.rewards.evaluation.run_metrics import read_runs
from mmrlhf.rewards.evaluation.scored_pairs import ScoredPairs, pair_items
from mmrlhf.rewards.evaluation.sensitivity import sensitivity
from mmrlhf.types import Reward

WORST = 12
FORMS: tuple[Form, ...] = ("rl", "best-of-n")


def agreement_details(judged: ScoredPairs, *, temperature: float, threshold: float, seed: int) -> dict[str, Any]:
    """breakdown, ceilings, abstention and position (of the annotators)."""
    probabilities = expit(judged.margins / temperature)
    credits = tie_credits(probabilities, judged.labels, threshold)
    return {
        "breakdown": breakdowns(judged.pairs, judged.margins / temperature, credits, seed),
        "ceilings": ceilings(judged.pairs, verdicts(probabilities, threshold), seed),
        "abstention": abstention(credits, np.abs(2 * probabilities - 1), judged.units, seed),
        "position": first_preferred(judged.labels),
    }


def model_details(
    reward: Reward,
    judged: ScoredPairs,
    *,
    temperature: float,
    threshold: float,
    seed: int,
    perturbed_pairs: int,
    batch_size: int,
) -> dict[str, Any]:
    """ensemble (None for a single scorer) and sensitivity (None for no pairs, and for answers): what needs the reward again."""
    members = member_scores(reward, pair_items(judged.pairs), batch_size)
    ensemble = None
    if members is not None:
        credits = tie_credits(expit(judged.margins / temperature), judged.labels, threshold)
        scaled = members.reshape(len(members), -1, 2) / temperature
        ensemble = ensemble_figures(scaled, judged.labels, credits, judged.units, threshold=threshold, seed=seed)
    drawn = np.random.default_rng(seed).permutation(len(judged.pairs))[:perturbed_pairs]
    shown = [pair for row in np.sort(drawn) if isinstance(pair := judged.pairs[row], Pair)]
    effects = (
        sensitivity(
            reward, shown, temperature=temperature, threshold=threshold, seed=seed, batch_size=batch_size, progress=True
        )
        if shown
        else None
    )
    return {"ensemble": ensemble, "sensitivity": effects}


def calibration_details(
    reward: Reward, judged: ScoredPairs, *, temperature: float, fitted: dict[str, Any] | None
) -> dict[str, Any]:
    """Likelihood, Brier score, ECE and reliability before and after temperature scaling, and the temperature itself.

    Where it was `fitted` for this evaluation, before is the reward as it is; else before is the reward at temperature 1.
    """
    own = float(getattr(reward, "temperature", 1.0))
    before = judged.margins if fitted else judged.margins * own
    return {
        "temperature": own * temperature,
        "change": temperature,
        "fitted": fitted,
        "before": calibration_figures(before, judged.labels),
        "after": calibration_figures(judged.margins / temperature, judged.labels),
    }


def calibration_figures(margins: Float[np.ndarray, " n"], labels: Float[np.ndarray, " n"]) -> dict[str, Any]:
    """nll, brier, ece and the reliability curve of σ(margin)."""
    probabilities = expit(margins)
    curve = [entry._asdict() for entry in reliability_curve(probabilities, labels)]
    return {"nll": nll(margins, labels), "brier": brier(probabilities, labels), "ece": ece(probabilities, labels),
            "reliability": curve}  # fmt: skip


def fit_on(judged: ScoredPairs, data: Path, tested: ScoredPairs) -> dict[str, Any]:
    """Temperature and tie threshold chosen on the pairs of `data`, and how many of its prompts are among those `tested`."""
    change = fit_temperature(judged.margins, judged.labels)
    shared = {pair.unit for pair in judged.pairs} & {pair.unit for pair in tested.pairs}
    return {
        "data": str(data),
        "n": len(judged.pairs),
        "change": change,
        "tie_threshold": fit_tie_threshold(expit(judged.margins / change), judged.labels),
        "shared_prompts": len(shared),
    }


def overoptimisation_details(folder: Path, gold_key: str) -> dict[str, Any]:
    """kl, learned and gold reward of each run in `folder`, and both of Gao et al.'s forms fitted to the gold of all."""
    keys = ("kl", "reward_mean", gold_key)
    runs = read_runs(folder, keys)
    kl, gold = (np.concatenate([run[key] for run in runs.values()]) for key in ("kl", gold_key))
    kl = np.maximum(kl, 0.0)  # an estimate from few samples may fall below 0
    fits = [fit_overoptimisation(kl, gold, form)._asdict() for form in FORMS]
    columns = [
        {
            "run": name,
            "kl": np.maximum(run["kl"], 0.0).tolist(),
            "learned": run["reward_mean"].tolist(),
            "gold": run[gold_key].tolist(),
        }
        for name, run in runs.items()
    ]
    return {"gold_key": gold_key, "runs": columns, "fits": fits, "largest_distance": float(np.sqrt(kl.max()))}


def worst_pairs(judged: ScoredPairs, *, temperature: float, threshold: float, out: Path) -> list[dict[str, Any]]:
    """The pairs on which the reward was surest of what the annotator did not say, surest first; paths relative to `out`."""
    probabilities = expit(judged.margins / temperature)
    credits = tie_credits(probabilities, judged.labels, threshold)
    order = np.argsort(-np.abs(2 * probabilities - 1), kind="stable")
    wrong: dict[Any, int] = {}
    for row in order[credits[order] == 0]:
        wrong.setdefault(question_of(judged.pairs[row]), row)  # one of several wrong answers to the same pair
    rows = []
    for row in list(wrong.values())[:WORST]:
        pair = judged.pairs[row]
        rows.append(
            {"prompt": pair.prompt, "label_0": pair.label_0, "probability": float(probabilities[row]),
             "annotator": pair.annotator} | shown_sides(pair, out)
        )  # fmt: skip
    return rows


def shown_sides(pair: Comparison, out: Path) -> dict[str, str]:
    """image_0 and image_1, relative to `out`; or answer_0 and answer_1, and image where there is one."""
    if isinstance(pair, Pair):
        return {"image_0": relative(pair.image_0, out), "image_1": relative(pair.image_1, out)}
    about = {} if pair.image is None else {"image": relative(pair.image, out)}
    return {"answer_0": pair.answer_0, "answer_1": pair.answer_1} | about
