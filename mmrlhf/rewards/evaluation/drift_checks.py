"""What the figures of two rounds mean: stable, look, or retrain, a line a check."""

from typing import Any

from mmrlhf.drift import stability_verdict

FALL = 0.05  # of agreement, that fresh labels should be able to rule out
SIGNIFICANT = 0.05
ORDER = ("stable", "look", "retrain")


def checks_of(figures: dict[str, Any], kl_bound: float | None = None) -> list[dict[str, str]]:
    """A line a check: its name, verdict, and what was found."""
    stability, ks, shift = figures["stability"], figures["kolmogorov_smirnov"], figures["shift"]
    low, high = shift["ci95"]
    found = [
        (
            "stability index",
            stability_verdict(stability["corrected"]),
            f"{stability['corrected']:.3f} (below 0.1 stable, up to 0.25 look, above it retrain)",
        ),
        (
            "Kolmogorov–Smirnov",
            "look" if ks["p"] < SIGNIFICANT else "stable",
            f"D {ks['d']:.3f}, p {ks['p']:.2g} (below {SIGNIFICANT} look)",
        ),
        (
            "mean of the scores",
            "stable" if low <= 0 <= high else "look",
            f"moved by {shift['value']:+.3f} (95 % {low:+.3f} to {high:+.3f}; look where that leaves out 0)",
        ),
    ]
    agreement = figures["agreement"]
    if agreement and agreement["difference"] is not None:
        low, high = agreement["difference_ci95"]
        found.append(
            (
                "agreement on fresh labels",
                "retrain" if high < 0 else "stable" if low >= -FALL else "look",
                f"changed by {100 * agreement['difference']:+.1f} points (95 % {100 * low:+.1f} to {100 * high:+.1f}; retrain "
                f"where it fell for certain, look where a fall of {100 * FALL:.0f} cannot be ruled out)",
            )
        )
    if figures.get("policy_kl") and kl_bound is not None:
        last = figures["policy_kl"]["last"]
        found.append(
            (
                "KL of the policy",
                "look" if last > kl_bound else "stable",
                f"{last:.3g} nats a sample at the end (above {kl_bound:g} look)",
            )
        )
    return [{"check": name, "verdict": verdict, "says": says.replace("-", "−")} for name, verdict, says in found]


def worst(checks: list[dict[str, str]]) -> str:
    """The verdict that asks for most."""
    return max((check["verdict"] for check in checks), key=ORDER.index)
