"""Why a run does not learn, read from its metrics."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from mmrlhf.rl import SMALL_SPREAD
from mmrlhf.sharding import full

PATIENCE = 3  # epochs in a row before something is called stuck
FEW_SAMPLES = 4  # a mean and a spread of fewer say little
SMALL_SHARE = 0.01  # of the spread of all rewards
OFTEN_CLIPPED = 0.2
KEPT_DIVERSITY = 0.5  # of that of the first epoch
SMALL_UPDATE, LARGE_UPDATE = 1e-5, 0.2  # of the weights' own size


def diagnose(metrics: Sequence[dict[str, Any]], clip_range: float) -> dict[str, str]:
    """What is wrong in the latest epochs, as {name: a sentence that says what to change}; empty where nothing shows.

    A line of metrics needs `reward_mean`, `reward_std`, `clip_fraction` and `updates`; what else a method measures
    (`group_std_mean`, `zero_spread_groups`, `rated_per_prompt`, `advantage_clipped`, `update_size`, `diversity`) is looked at
    where it is.
    """
    found = diagnose_samples(metrics) | too_few_samples(metrics)
    if "flat reward" in found:  # no learning rate makes anything of it
        return found
    return found | step_that_does_not_fit(metrics, clip_range)


def diagnose_samples(metrics: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The same of the samples and rewards alone, whatever is done with them."""
    return rewards_without_spread(metrics) | lost_diversity(metrics)


def rewards_without_spread(metrics: Sequence[dict[str, Any]]) -> dict[str, str]:
    """All rewards alike, or those of each prompt."""
    last = metrics[-1]
    if last["reward_std"] <= SMALL_SPREAD * max(1.0, abs(last["reward_mean"])):
        return {
            "flat reward": (
                f"all samples got nearly the same reward ({last['reward_mean']:.4g} ± {last['reward_std']:.1g}), so there is "
                "nothing to learn from: check the reward on two different images, or sample with more spread (--eta 1, more "
                "prompts)"
            )
        }
    if lasting(metrics, "zero_spread_groups", lambda line: line["zero_spread_groups"] > 0.5):
        return {
            "flat groups": (
                f"in {last['zero_spread_groups']:.0%} of the groups all samples of a prompt got the same reward, so these teach "
                "nothing: raise --samples-per-prompt or --eta, take out prompts that are too easy or too hard, or use a finer "
                "reward"
            )
        }
    if lasting(metrics, "group_std_mean", lambda line: line["group_std_mean"] <= SMALL_SHARE * line["reward_std"]):
        return {
            "flat groups": (
                f"rewards differ by prompt ({last['reward_std']:.2g}) but hardly within a prompt's samples "
                f"({last['group_std_mean']:.2g}), so advantages are mostly chance: raise --eta, or use a reward that tells "
                "samples of one prompt apart"
            )
        }
    return {}


def lost_diversity(metrics: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Samples of a prompt that become alike."""
    first, last = metrics[0].get("diversity", 0.0), metrics[-1]
    if first and lasting(metrics, "diversity", lambda line: line["diversity"] < KEPT_DIVERSITY * first):
        return {
            "lost diversity": (
                f"samples of a prompt differ by {last['diversity']:.2g}, at the start by {first:.2g}, so the policy gives up "
                "variety for the reward: look at samples/, and stop earlier (--kl-budget) or lower --learning-rate"
            )
        }
    return {}


def too_few_samples(metrics: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Groups too small to compare in, or a few samples so far out that they are cut."""
    found, last = {}, metrics[-1]
    if last.get("rated_per_prompt", FEW_SAMPLES) < FEW_SAMPLES:
        found["few samples"] = (
            f"a prompt's samples are compared among only {last['rated_per_prompt']:.3g} that have a reward, so advantages are "
            "mostly chance: raise --samples-per-prompt to 8 or more"
            + (", and see why the reward abstains" if last.get("abstained") else "")
        )
    if lasting(metrics, "advantage_clipped", lambda line: line["advantage_clipped"] > OFTEN_CLIPPED):
        found["clipped advantages"] = (
            f"{last['advantage_clipped']:.0%} of the advantages were cut to --advantage-clip, so the best samples count no more "
            "than good ones: raise --advantage-clip, or scale the reward down (with --algorithm rloo, which does not divide by "
            "the spread, grpo does it)"
        )
    return found


def step_that_does_not_fit(metrics: Sequence[dict[str, Any]], clip_range: float) -> dict[str, str]:
    """Updates too small or too large, beside the clip range and beside the weights.

    Ratios can only leave the clip range from an epoch's second update on, so one update an epoch is no sign of anything.
    """
    found, last = {}, metrics[-1]
    if lasting(metrics, "clip_fraction", lambda line: line["updates"] > 1 and line["clip_fraction"] == 0):
        found["no step"] = (
            f"no ratio left the clip range {clip_range:g} in {PATIENCE} epochs, so the policy hardly moves: raise "
            "--learning-rate"
        )
    if lasting(metrics, "clip_fraction", lambda line: line["updates"] > 1 and line["clip_fraction"] > 0.9):
        found["always clipped"] = (
            f"over 90 % of the ratios were outside the clip range {clip_range:g} in {PATIENCE} epochs, so most samples are "
            "ignored: lower --learning-rate, or raise --clip-range"
        )
    if lasting(metrics, "update_size", lambda line: line["update_size"] < SMALL_UPDATE):
        found["small updates"] = (
            f"an update changes the weights by {last['update_size']:.1g} of their size, so it takes tens of thousands to get "
            "anywhere: raise --learning-rate"
        )
    if lasting(metrics, "update_size", lambda line: line["update_size"] > LARGE_UPDATE):
        found["large updates"] = (
            f"an update changes the weights by {last['update_size']:.1g} of their size, so each undoes what was learned before: "
            "lower --learning-rate"
        )
    return found


def lasting(metrics: Sequence[dict[str, Any]], name: str, holds: Callable[[dict[str, Any]], bool]) -> bool:
    """Whether something was so in each of the latest epochs, all of which measured `name`."""
    recent = metrics[-PATIENCE:]
    return len(recent) == PATIENCE and all(name in line and holds(line) for line in recent)


@torch.no_grad()
def update_size(optimizer: torch.optim.Optimizer) -> float:
    """‖Δw‖/‖w‖ of the latest update over all weights of an Adam, weight decay aside; 0 where it has made none.

    From the optimizer's moments (Kingma & Ba 2015, algorithm 1), so that no copy of the weights is needed.
    """
    moved, size = [], []
    for group in optimizer.param_groups:
        for weight in group["params"]:
            state = optimizer.state.get(weight, {})
            if "exp_avg" not in state:
                continue
            first, second = (1 - beta ** float(state["step"]) for beta in group["betas"])
            width = (state["exp_avg_sq"] / second).sqrt() + group["eps"]
            moved.append(full((group["lr"] * state["exp_avg"] / first / width).norm()))
            size.append(full(weight.norm()))
    return float(torch.stack(moved).norm() / torch.stack(size).norm().clamp_min(1e-12)) if moved else 0.0
