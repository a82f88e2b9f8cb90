"""Why a run does not learn, read from its metrics."""

from collections.abc import Sequence
from typing import Any

PATIENCE = 3  # epochs in a row before the ratios are called stuck
SMALL_SPREAD = 1e-6


def diagnose(metrics: Sequence[dict[str, Any]], clip_range: float) -> dict[str, str]:
    """What is wrong in the latest epochs, as {name: a sentence that says what to change}; empty where nothing shows.

    Ratios can only leave the clip range from an epoch's second update on, so one update an epoch is no sign of anything.
    """
    found = {}
    last = metrics[-1]
    if last["reward_std"] <= SMALL_SPREAD * max(1.0, abs(last["reward_mean"])):
        found["flat reward"] = (
            f"all samples got nearly the same reward ({last['reward_mean']:.4g} ± {last['reward_std']:.1g}), so there is nothing "
            "to learn from: check the reward on two different images, or sample with more spread (--eta 1, more prompts)"
        )
    recent = metrics[-PATIENCE:]
    if len(recent) == PATIENCE and all(line["updates"] > 1 for line in recent):
        if all(line["clip_fraction"] == 0 for line in recent):
            found["no step"] = (
                f"no ratio left the clip range {clip_range:g} in {PATIENCE} epochs, so the policy hardly moves: raise "
                "--learning-rate"
            )
        if all(line["clip_fraction"] > 0.9 for line in recent):
            found["always clipped"] = (
                f"over 90 % of the ratios were outside the clip range {clip_range:g} in {PATIENCE} epochs, so most samples are "
                "ignored: lower --learning-rate, or raise --clip-range"
            )
    return found
