"""Fourth stage: the reward, its calibration, and how far it agrees with the raters."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.special import expit

from mmrlhf.agreement import rater_agreement
from mmrlhf.quickstart.rating import answers, fit, labelled_pairs, simulated_answers, within_prompt_pairs
from mmrlhf.quickstart.run import Run
from mmrlhf.rewards.calibrate import fit_temperature, fit_tie_threshold
from mmrlhf.rewards.clip import CLIPReward
from mmrlhf.rewards.evaluate import evaluate_reward
from mmrlhf.rewards.evaluation.measures import tie_credits
from mmrlhf.rewards.evaluation.scored_pairs import pair_margins
from mmrlhf.store import Store, Task
from mmrlhf.types import Preference


def learn_reward(run: Run) -> dict[str, Any]:
    """Train on every rating of training pairs, calibrate on held-back training prompts, measure on held-out prompts."""
    asked = [*run.result("rate-first")["pairs"], *run.result("rate-second")["pairs"]]
    held_out = run.result("rate-held-out")["pairs"]
    reward = calibrated(run, asked)
    reward.save(run.folder / "reward")
    judged = labelled_pairs(run, held_out, "held_out")
    before = evaluate_reward(reward.with_temperature(1.0), judged, seed=run.config.seed)
    after = evaluate_reward(reward, judged, seed=run.config.seed)
    between = held_out_preferences(run)
    return {
        "temperature": reward.temperature,
        "agreement": after["agreement"],
        "agreement_ci95": after["agreement_ci95"],
        "tie_threshold": after["tie_threshold"],
        "tie_rule": after["tie_rule"],
        "random_agreement": random_baseline(run, len(asked), held_out),
        "rater_agreement": none_if_nan(rater_agreement(between)[0]),
        "rater_table": rater_table(run, reward, held_out, between),
        "ece_before": before["ece"],
        "ece_after": after["ece"],
        "reliability": {"before": before["reliability"], "after": after["reliability"]},
        "labels_used": sum(len(pair["labels"]) for pair in asked),
    }


def calibrated(run: Run, asked: Sequence[dict[str, Any]]) -> CLIPReward:
    """A reward trained on all the ratings, at a temperature and tie threshold found without those it was trained on.

    Both come from a second reward, trained without a fifth of the prompts and looked at on that fifth.
    """
    prompts = sorted({pair["prompt"] for pair in asked if pair["labels"]})
    order = np.random.default_rng(run.config.seed).permutation(len(prompts))
    kept_back = {prompts[i] for i in order[: max(1, len(prompts) // 5)]}
    fitting = [pair for pair in asked if pair["prompt"] not in kept_back]
    checking = labelled_pairs(run, [pair for pair in asked if pair["prompt"] in kept_back])
    margins = pair_margins(fit(run, fitting), checking)
    labels = np.array([pair.label_0 for pair in checking])
    temperature = fit_temperature(margins, labels)
    threshold = fit_tie_threshold(expit(margins / temperature), labels)
    return fit(run, asked).with_temperature(temperature, threshold)


def held_out_preferences(run: Run) -> list[Preference]:
    """The answers in the store about held-out pictures."""
    pictures = {row["hash"] for row in run.result("generate")["held_out"]}
    store = Store(run.store_url)
    try:
        return [preference for preference in store.preferences() if set(preference.items) <= pictures]
    finally:
        store.close()


def rater_table(
    run: Run, reward: CLIPReward, pairs: Sequence[dict[str, Any]], preferences: Sequence[Preference]
) -> list[dict[str, Any]]:
    """A row a rater: pairs judged, share of ties, agreement with the other raters and with the reward."""
    _, between = rater_agreement(preferences)
    rows = []
    for name in sorted({name for pair in pairs for name in pair["annotators"]}):
        own = [
            pair
            | {"labels": [label for label, who in zip(pair["labels"], pair["annotators"], strict=True) if who == name]}
            for pair in pairs
        ]
        judged = labelled_pairs(run, own, "held_out")
        labels = np.array([pair.label_0 for pair in judged])
        credits = tie_credits(expit(pair_margins(reward, judged)), labels, reward.tie_threshold)
        shared = [row for row in between if name in (row.rater_0, row.rater_1)]
        others = (
            np.average([row.agreement for row in shared], weights=[row.pairs for row in shared]) if shared else None
        )
        rows.append(
            {
                "annotator": name,
                "pairs": len(judged),
                "ties": float((labels == 0.5).mean()),
                "others": None if others is None else float(others),
                "reward": float(credits.mean()),
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
    pairs = [{"rows": list(candidates[k]), "prompt": rows[candidates[k][0]]["prompt"]} for k in order]
    tasks = [Task(rows[i]["prompt"], (rows[i]["hash"], rows[j]["hash"])) for i, j in (pair["rows"] for pair in pairs)]
    preferences = simulated_answers(run, tasks, "random")
    reward = calibrated(run, [pair | answers(pair, rows, preferences) for pair in pairs])
    return evaluate_reward(reward, labelled_pairs(run, held_out, "held_out"), seed=run.config.seed)["agreement"]


def none_if_nan(value: float) -> float | None:
    """JSON has no NaN: None where a figure is not defined."""
    return None if np.isnan(value) else float(value)
