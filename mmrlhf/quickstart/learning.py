"""Fourth stage: the reward, its calibration, and how far it agrees with the raters."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mmrlhf.agreement import pair_agreement
from mmrlhf.calibration import ece, reliability_curve
from mmrlhf.quickstart.rating import answers, fit, pictures, simulated_answers, within_prompt_pairs
from mmrlhf.quickstart.run import Run
from mmrlhf.rewards.calibrate import fit_temperature
from mmrlhf.rewards.clip import CLIPReward
from mmrlhf.statistics import bootstrap_ci
from mmrlhf.store import Task

TIE_THRESHOLDS = np.linspace(0, 1, 11)


def learn_reward(run: Run) -> dict[str, Any]:
    """Train on every rating of training pairs, calibrate on held-back training prompts, measure on held-out prompts."""
    asked = [*run.result("rate-first")["pairs"], *run.result("rate-second")["pairs"]]
    held_out = run.result("rate-held-out")["pairs"]
    reward, temperature, threshold = calibrated(run, asked)
    reward.save(run.folder / "reward")
    margins = pair_margins(run, reward, held_out, "held_out")
    probabilities = torch.sigmoid(margins)
    credits = [agreements(p, pair["labels"], threshold) for p, pair in zip(probabilities.tolist(), held_out, strict=True)]
    flat_p = np.concatenate([np.full(len(pair["labels"]), p) for p, pair in zip(probabilities, held_out, strict=True)])
    raw_p = np.concatenate([np.full(len(pair["labels"]), p) for p, pair in zip(torch.sigmoid(margins * temperature), held_out, strict=True)])
    labels = np.concatenate([pair["labels"] for pair in held_out])
    by_prompt = group_means(credits, [pair["prompt"] for pair in held_out])
    return {
        "temperature": temperature,
        "tie_threshold": threshold,
        "agreement": float(np.mean(np.concatenate(credits))),
        "agreement_ci95": list(bootstrap_ci(np.array(by_prompt), seed=run.config.seed)),
        "random_agreement": random_baseline(run, len(asked), held_out),
        "rater_agreement": rater_agreement_of(held_out),
        "rater_table": rater_table(held_out, credits),
        "ece_before": float(ece(raw_p, labels)),
        "ece_after": float(ece(flat_p, labels)),
        "reliability": {"before": reliability_points(raw_p, labels), "after": reliability_points(flat_p, labels)},
        "labels_used": sum(len(pair["labels"]) for pair in asked),
    }


def calibrated(run: Run, asked: Sequence[dict[str, Any]]) -> tuple[CLIPReward, float, float]:
    """The reward, its temperature and its tie threshold.

    Both are fitted on a fifth of the training prompts with a reward that did not see them; the reward that is kept is
    then trained on everything.
    """
    prompts = sorted({pair["prompt"] for pair in asked})
    order = np.random.default_rng(run.config.seed).permutation(len(prompts))
    kept_back = {prompts[i] for i in order[: max(1, len(prompts) // 5)]}
    fitting = [pair for pair in asked if pair["prompt"] not in kept_back]
    checking = [pair for pair in asked if pair["prompt"] in kept_back]
    margins = pair_margins(run, fit(run, fitting), checking, "train")
    repeated = torch.repeat_interleave(margins, torch.tensor([len(pair["labels"]) for pair in checking]))
    temperature = fit_temperature(repeated, torch.tensor([label for pair in checking for label in pair["labels"]]))
    probabilities = torch.sigmoid(margins / temperature).tolist()
    threshold = max(
        TIE_THRESHOLDS,
        key=lambda t: np.mean(
            np.concatenate([agreements(p, pair["labels"], t) for p, pair in zip(probabilities, checking, strict=True)])
        ),
    )
    return fit(run, asked).with_temperature(temperature), temperature, float(threshold)


def pair_margins(
    run: Run, reward: CLIPReward, pairs: Sequence[dict[str, Any]], split: str
) -> Float[Tensor, " pairs"]:
    """Score of the first picture minus score of the second."""
    scores = reward(pictures(run, split), [row["prompt"] for row in run.result("generate")[split]]).detach()
    rows = torch.tensor([pair["rows"] for pair in pairs])
    return scores[rows[:, 0]] - scores[rows[:, 1]]


def agreements(probability: float, labels: Sequence[float], threshold: float) -> Any:
    """Credit of the reward's answer against each rater's: see `mmrlhf.agreement.pair_agreement`."""
    answer = 0.5 if abs(2 * probability - 1) <= threshold else float(probability > 0.5)
    return np.array([pair_agreement(answer, label) for label in labels])


def group_means(credits: Sequence[Any], groups: Sequence[str]) -> list[float]:
    """Mean credit of each prompt, the unit that is resampled for the interval."""
    return [
        float(np.mean(np.concatenate([credit for credit, group in zip(credits, groups, strict=True) if group == name])))
        for name in dict.fromkeys(groups)
    ]


def rater_agreement_of(pairs: Sequence[dict[str, Any]]) -> float | None:
    """Mean agreement of two raters on the same pair; None where no pair has two answers."""
    credits = [
        float(pair_agreement(first, second))
        for pair in pairs
        for first, second in itertools.combinations(pair["labels"], 2)
    ]
    return float(np.mean(credits)) if credits else None


def rater_table(pairs: Sequence[dict[str, Any]], credits: Sequence[Any]) -> list[dict[str, Any]]:
    """A row a rater: pairs judged, share of ties, agreement with the other raters and with the reward."""
    rows = []
    for name in sorted({name for pair in pairs for name in pair["annotators"]}):
        judged = [(pair, pair["annotators"].index(name), own) for pair, own in zip(pairs, credits, strict=True)
                  if name in pair["annotators"]]  # fmt: skip
        others = [
            float(pair_agreement(pair["labels"][at], label))
            for pair, at, _ in judged
            for i, label in enumerate(pair["labels"])
            if i != at
        ]
        rows.append(
            {
                "annotator": name,
                "pairs": len(judged),
                "ties": float(np.mean([pair["labels"][at] == 0.5 for pair, at, _ in judged])),
                "others": float(np.mean(others)) if others else None,
                "reward": float(np.mean([own[at] for _, at, own in judged])),
            }
        )
    return rows


def random_baseline(run: Run, count: int, held_out: Sequence[dict[str, Any]]) -> float | None:
    """Held-out agreement of a reward trained on as many random pairs; only simulated raters answer that often.

    Their answers to these pairs are used for nothing else and are not in the store.
    """
    if run.config.rater != "simulated":
        return None
    rows = run.result("generate")["train"]
    candidates = within_prompt_pairs([row["prompt"] for row in rows])
    order = torch.randperm(len(candidates), generator=run.generator(6))[:count].tolist()
    tasks = [Task(rows[i]["prompt"], rows[i]["hash"], rows[j]["hash"]) for i, j in (candidates[k] for k in order)]
    preferences = simulated_answers(run, tasks, "random")
    pairs = [{"rows": candidates[k], "prompt": rows[candidates[k][0]]["prompt"]} for k in order]
    asked = [pair | answers(pair, rows, preferences) for pair in pairs]
    reward, _, threshold = calibrated(run, asked)
    probabilities = torch.sigmoid(pair_margins(run, reward, held_out, "held_out")).tolist()
    credits = [agreements(p, pair["labels"], threshold) for p, pair in zip(probabilities, held_out, strict=True)]
    return float(np.mean(np.concatenate(credits)))


def reliability_points(probabilities: Any, labels: Any) -> list[list[float]]:
    """(mean prediction, observed share) of each bin that holds anything."""
    return [[float(x), float(y)] for x, y, count in reliability_curve(probabilities, labels) if count]
