"""The page of `mmrlhf reward eval`: figures, tables and the worst mistakes in one HTML file."""

from pathlib import Path
from typing import Any

import numpy as np

from mmrlhf.data import write_text
from mmrlhf.overoptimisation import Fit, predicted
from mmrlhf.page import ACCENT, MUTED, SECOND, figure_uri, new_figure, render, thumbnail_uri

SHOWN_GROUPS = 12


def write_report(figures: dict[str, Any], out: Path, report: Path) -> None:
    """Write the page of what `evaluate` returned; paths in it are relative to `out`."""
    plots = {
        "breakdown": breakdown_plot(figures),
        "reliability": reliability_plot(figures["calibration"]),
        "abstention": abstention_plot(figures),
        "sensitivity": sensitivity_plot(figures["sensitivity"]) if figures["sensitivity"] else None,
        "overoptimisation": overoptimisation_plot(figures["overoptimisation"]) if figures["overoptimisation"] else None,
    }
    worst = [shown_pair(pair, out) for pair in figures["worst"]]
    page = render("rewards/evaluation/report.html", f=figures, plots=plots, worst=worst, shown_groups=SHOWN_GROUPS)
    write_text(page, report)


def shown_pair(pair: dict[str, Any], out: Path) -> dict[str, Any]:
    """A wrong pair with its pictures or answers, the annotator's choice, and the probability that the reward gave the other."""
    chosen = 0 if pair["label_0"] > 0.5 else 1
    probability = 1 - pair["probability"] if chosen == 0 else pair["probability"]
    names = [name for name in ("image_0", "image_1", "image") if name in pair]
    images = [thumbnail_uri(out.parent / pair[name]) for name in names]
    answers = [pair[name] for name in ("answer_0", "answer_1") if name in pair]
    return pair | {"images": images, "answers": answers, "chosen": chosen, "probability": probability}


def breakdown_plot(figures: dict[str, Any]) -> str:
    """Agreement of every group with its interval, one under the other, and the whole as a line."""
    rows = [(part["by"], group) for part in figures["breakdown"] for group in part["groups"][:SHOWN_GROUPS]]
    figure, (axes,) = new_figure((5.6, 1.2 + 0.27 * (len(rows) + len(figures["breakdown"]))))
    axes.axvspan(*figures["agreement_ci95"], color=MUTED, alpha=0.25, lw=0)
    axes.axvline(figures["agreement"], color=MUTED, lw=1.5)
    places, labels, place, last = [], [], 0, None
    for by, group in rows:
        if by != last:  # a line for the heading
            axes.text(
                0.0, place, f"by {by}", transform=axes.get_yaxis_transform(), fontweight="bold", va="center", fontsize=9
            )
            place, last = place + 1, by
        if group["ci95"]:
            axes.plot(group["ci95"], [place, place], color=ACCENT, lw=2, solid_capstyle="round")
        axes.plot(group["agreement"], place, "o", color=ACCENT, ms=5)
        places.append(place)
        labels.append(f"{short(group['name'])} ({group['n']})")
        place += 1
    axes.set_yticks(places, labels, fontsize=9)
    axes.set_ylim(place - 0.4, -0.6)
    axes.set_xlabel("agreement")
    return figure_uri(figure)


def short(name: str, length: int = 30) -> str:
    """A name that fits beside a plot; $ would start mathematics."""
    return (name if len(name) <= length else name[: length - 1] + "…").replace("$", r"\$")


def reliability_plot(calibration: dict[str, Any]) -> str:
    """Predicted against observed preference, before and after temperature scaling; larger points hold more pairs."""
    figure, (axes,) = new_figure((5.2, 4.4))
    axes.plot([0, 1], [0, 1], color="#cbd5e1", lw=1)
    for name, colour in (("before", MUTED), ("after", ACCENT)):
        curve = calibration[name]["reliability"]
        x, y = ([entry[key] for entry in curve] for key in ("predicted", "observed"))
        sizes = np.array([entry["size"] for entry in curve], dtype=float)
        axes.plot(x, y, color=colour, lw=1.5, label=name)
        axes.scatter(x, y, s=8 + 90 * sizes / sizes.max(), color=colour, alpha=0.8, lw=0)
    axes.set_xlabel("predicted P(first preferred)")
    axes.set_ylabel("observed share")
    axes.legend(frameon=False)
    return figure_uri(figure)


def abstention_plot(figures: dict[str, Any]) -> str:
    """Agreement against the share of pairs kept, with the band of its interval."""
    figure, (axes,) = new_figure((5.2, 3.6))
    curves = [(figures["abstention"], ACCENT, "by |2p − 1|")]
    if figures["ensemble"]:
        curves.append((figures["ensemble"]["abstention"], SECOND, "by the ensemble's agreement"))
    for details, colour, label in curves:
        points = details["curve"]
        x = [100 * point["coverage"] for point in points]
        axes.plot(x, [point["agreement"] for point in points], color=colour, marker="o", ms=4, label=label)
        banded = [(100 * point["coverage"], *point["ci95"]) for point in points if point["ci95"]]
        if banded:
            axes.fill_between(*zip(*banded, strict=True), color=colour, alpha=0.12, lw=0)
    axes.axhline(figures["agreement"], color=MUTED, lw=1, ls="--")
    axes.set_xlim(103, 7)
    axes.set_xlabel("pairs kept, %")
    axes.set_ylabel("agreement on them")
    axes.legend(frameon=False, loc="upper left")
    return figure_uri(figure)


def sensitivity_plot(details: dict[str, Any]) -> str:
    """Mean |Δscore| and share of changed verdicts of each change."""
    figure, axes = new_figure((5.6, 3.2), columns=2)
    names = [row["change"] for row in details["changes"]]
    shown = (("mean_abs", "mean |Δ|, standard deviations", 1, 0.1), ("flips", "verdicts changed, %", 100, 5))
    for side, (key, label, factor, least) in enumerate(shown):
        values = [factor * (row[key] or 0.0) for row in details["changes"]]
        axes[side].barh(range(len(names)), values, color=ACCENT, alpha=0.85)
        axes[side].set_yticks(range(len(names)), names if side == 0 else [""] * len(names), fontsize=9)
        axes[side].set_ylim(len(names) - 0.4, -0.6)
        axes[side].set_xlim(0, max(*values, least) * 1.05)
        axes[side].set_xlabel(label, fontsize=9)
    return figure_uri(figure)


def overoptimisation_plot(details: dict[str, Any]) -> str:
    """Gold and learned reward of each run against d = √KL, each on its own scale, and the two forms fitted to the gold."""
    figure, (axes,) = new_figure((5.4, 3.8))
    learned = axes.twinx()
    learned.spines["top"].set_visible(False)
    for run in details["runs"]:
        distance = np.sqrt(run["kl"])
        axes.plot(distance, run["gold"], "o", color=ACCENT, ms=4)
        learned.plot(distance, run["learned"], "^", color=MUTED, ms=5)
    grid = np.linspace(0, details["largest_distance"], 200)
    for fit, style in zip(details["fits"], ("-", ":"), strict=True):
        form = "d(α − β log d)" if fit["form"] == "rl" else "d(α − β d)"
        axes.plot(grid, predicted(Fit(**fit), grid**2), style, color=ACCENT, lw=1.5, label=f"gold ≈ start + {form}")
    axes.set_xlabel("d = √KL, √nats")
    axes.set_ylabel("● gold reward", color=ACCENT)
    learned.set_ylabel("▲ learned reward", color=MUTED)
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    return figure_uri(figure)
