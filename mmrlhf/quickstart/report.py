"""The quickstart's report: one self-contained HTML page of pictures, curves and tables."""

import base64
import io
import os
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from jaxtyping import Float
from torch import Tensor

from mmrlhf.images import grid, load_images, save_image
from mmrlhf.quickstart.hallucinations import ADAPTER_SCALE
from mmrlhf.quickstart.rating import IMAGE_SIZE

TEMPLATE = Path(__file__).parent / "report.html"
ACCENT, MUTED = "#c2410c", "#94a3b8"
SHOWN_PROMPTS, SHOWN_PAIRS, SHEET_PROMPTS = 16, 12, 12


def write_report(folder: Path, metrics: dict[str, Any], results: dict[str, Any]) -> Path:
    """Write `folder/report.html`, and before_after.png of pictures, from the metrics and the stages' results; gives the page."""
    drew, answered = "evaluate" in results, "vlm-evaluate" in results
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(TEMPLATE.read_text()).render(
        metrics=metrics,
        drawing=drawing_half(folder, results) if drew else None,
        answering=answering_half(folder, results) if answered else None,
    )
    if drew:
        save_image(sheet(folder, results["evaluate"]), folder / "before_after.png")
    path = folder / "report.html"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(page)
    os.replace(temporary, path)
    return path


def drawing_half(folder: Path, results: dict[str, Any]) -> dict[str, Any]:
    """What the page shows of pictures."""
    return {
        "prompts": before_and_after(folder, results["evaluate"]),
        "pairs": shown_pairs(folder, results),
        "raters": results["reward"]["rater_table"],
        "reward": results["reward"],
        "config": results["evaluate"]["config"],
        "learning_curve": learning_curve(results["fine-tune"]["epochs"]),
        "gold_change": gold_change(results["evaluate"]["by_prompt"]),
        "reliability": reliability(results["reward"]["reliability"]),
    }


def answering_half(folder: Path, results: dict[str, Any]) -> dict[str, Any]:
    """What the page shows of answers: the same pictures, what was said of them before and after, and what was wrong in it."""
    evaluation = results["vlm-evaluate"]
    pairs = zip(evaluation["before"]["shown"], evaluation["after"]["shown"], strict=True)
    answers = [
        {"image": data_uri(folder / before["image"]), "before": before["parts"], "after": after["parts"]}
        for before, after in pairs
    ]
    return {
        "answers": answers,
        "marks": results["vlm-mark"],
        "adapter_scale": ADAPTER_SCALE,
        "before": evaluation["before"]["figures"],
        "after": evaluation["after"]["figures"],
        "learning_curve": accuracy_curve(results["vlm-fine-tune"]["epochs"]),
    }


def data_uri(path: Path) -> str:
    """A picture file as a string that goes into the page."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def sheet(folder: Path, evaluation: dict[str, Any]) -> Float[Tensor, "3 height width"]:
    """Twelve held-out prompts: before in the upper row, after in the lower, every pixel drawn as four."""
    shown = evaluation["by_prompt"][:SHEET_PROMPTS]
    files = [folder / prompt[f"{when}_images"][0] for when in ("before", "after") for prompt in shown]
    pictures = load_images(files, IMAGE_SIZE).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    return grid(pictures, columns=len(shown))


def before_and_after(folder: Path, evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """For the first held-out prompts: the same noise through the model as it was and as it is."""
    rows = []
    for prompt in evaluation["by_prompt"][:SHOWN_PROMPTS]:
        rows.append(
            {
                "prompt": prompt["prompt"],
                "before": [data_uri(folder / path) for path in prompt["before_images"][:3]],
                "after": [data_uri(folder / path) for path in prompt["after_images"][:3]],
                "gain": np.mean(prompt["gold_after"]) - np.mean(prompt["gold_before"]),
            }
        )
    return rows


def shown_pairs(folder: Path, results: dict[str, Any]) -> list[dict[str, Any]]:
    """A few of the selected pairs, from both rounds, with why they were picked and what the raters said."""
    images = results["generate"]["train"]
    half = SHOWN_PAIRS // 2
    picked = [*results["rate-first"]["pairs"][:half], *results["rate-second"]["pairs"][:half]]
    return [
        {
            "prompt": images[pair["rows"][0]]["prompt"],
            "images": [data_uri(folder / images[row]["image"]) for row in pair["rows"]],
            "why": pair["why"],
            "labels": pair["labels"],
        }
        for pair in picked
    ]


def figure_uri(figure: Any) -> str:
    """A matplotlib figure as an SVG string that goes into the page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def new_axes(xlabel: str, ylabel: str, size: tuple[float, float] = (5.2, 3.2)) -> tuple[Any, Any]:
    """A figure without window or global state, and its one axes in the report's style."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.25)
    return figure, axes


def learning_curve(epochs: list[dict[str, Any]]) -> str:
    """Learned reward and KL to the start, epoch by epoch."""
    figure, axes = new_axes("epoch of fine-tuning", "learned reward (mean of samples)")
    axes.xaxis.get_major_locator().set_params(integer=True)
    numbers = [row["epoch"] for row in epochs]
    axes.plot(numbers, [row["reward_mean"] for row in epochs], color=ACCENT, marker="o", ms=4)
    right = axes.twinx()
    right.plot(numbers, [row["kl"] for row in epochs], color=MUTED, linestyle="--")
    right.set_ylabel("KL to the start, nats a sample", color=MUTED)
    right.spines["top"].set_visible(False)
    return figure_uri(figure)


def gold_change(by_prompt: list[dict[str, Any]]) -> str:
    """Hidden taste before and after, one line a held-out prompt."""
    figure, axes = new_axes("", "hidden taste (mean of the prompt's pictures)")
    for prompt in by_prompt:
        before, after = np.mean(prompt["gold_before"]), np.mean(prompt["gold_after"])
        axes.plot([0, 1], [before, after], color=ACCENT if after > before else MUTED, alpha=0.6, lw=1.2)
    means = [np.mean([np.mean(p[key]) for p in by_prompt]) for key in ("gold_before", "gold_after")]
    axes.plot([0, 1], means, color="black", lw=3)
    axes.set_xticks([0, 1], ["before", "after"])
    return figure_uri(figure)


def reliability(curves: dict[str, list[dict[str, float]]]) -> str:
    """Predicted against observed preference, before and after temperature scaling."""
    figure, axes = new_axes("predicted P(first preferred)", "observed share", size=(4.2, 3.6))
    axes.plot([0, 1], [0, 1], color="#cbd5e1", lw=1)
    for name, colour in (("before", MUTED), ("after", ACCENT)):
        points = [(entry["predicted"], entry["observed"]) for entry in curves[name]]
        axes.plot(*zip(*points, strict=True), marker="o", ms=4, color=colour, label=f"{name} calibration")
    axes.legend(frameon=False)
    return figure_uri(figure)


def accuracy_curve(epochs: list[dict[str, Any]]) -> str:
    """Share of held-out corrections that the policy prefers to what was marked, and the margin, pass by pass."""
    figure, axes = new_axes("pass over the marked answers", "corrected answer preferred, held-out")
    axes.xaxis.get_major_locator().set_params(integer=True)
    numbers = [row["epoch"] + 1 for row in epochs]
    axes.plot(numbers, [row["validation_implicit_accuracy"] for row in epochs], color=ACCENT, marker="o", ms=4)
    axes.set_ylim(0, 1.03)
    right = axes.twinx()
    right.plot(numbers, [row["validation_implicit_margin"] for row in epochs], color=MUTED, linestyle="--")
    right.set_ylabel("implicit margin", color=MUTED)
    right.spines["top"].set_visible(False)
    return figure_uri(figure)
