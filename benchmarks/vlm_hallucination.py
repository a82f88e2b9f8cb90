"""Fewer hallucinations from marked answers: tiny-llava before and after each way to learn from them, on held-out scenes.

For each seed tiny-llava answers about 1,400 scenes, the truth marks what is wrong in each answer and writes what should stand
there, and every method learns from these marks alone. The table and plot of docs/vlm-hallucination.md come from

python benchmarks/vlm_hallucination.py --seeds 0 1 2 --out runs/vlm-hallucination --report docs/vlm-hallucination
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib import pyplot

from mmrlhf.data import write_text
from mmrlhf.rewards.language.inputs import Row
from mmrlhf.tiny.scene_files import read_scenes, write_scenes
from mmrlhf.tiny.scene_text import DESCRIBE
from vlm import dense_dpo, dpo, sft
from vlm.benchmarks.pooled import pooled
from vlm.benchmarks.pope import build_questions, says_yes
from vlm.benchmarks.scenes import changes, counts, figures
from vlm.dense_dpo import DenseDPOConfig
from vlm.dpo import DPOConfig
from vlm.generate import GenerateConfig, generate
from vlm.policy import VisionLanguagePolicy
from vlm.scenes import MarkConfig, mark
from vlm.sft import SFTConfig

MARKED, HELD_OUT = 1400, 400
TUNING: dict[str, Any] = {"model": "tiny-llava", "lora_rank": 16, "train_batch_size": 32, "validation": 0.05}


@dataclass(frozen=True)
class Method:
    """What trains on the marked answers, with which options, and how much of what it trained answers."""

    config: type
    train: Callable[..., Any]
    options: dict[str, Any] = field(default_factory=dict)
    scale: float = 1.0


IMITATING: dict[str, Any] = {"learning_rate": 4e-4, "epochs": 3}
DENSE = IMITATING | {"beta": 5.0, "sft_weight": 3.0}
SCALED = 0.6
"""How much of an adapter the rows called "at 0.6" answer with; chosen on the held-out scenes of seed 0, of 0.4 and 0.6."""
METHODS = {
    "SFT on corrected, 1 epoch": Method(SFTConfig, sft.train, {"learning_rate": 5e-4, "epochs": 1}),
    "SFT on corrected": Method(SFTConfig, sft.train, {"learning_rate": 5e-4, "epochs": 3}),
    "DPO": Method(DPOConfig, dpo.train, {"learning_rate": 1e-4, "epochs": 2, "beta": 0.1}),
    "Dense DPO": Method(DenseDPOConfig, dense_dpo.train, {"learning_rate": 2e-4, "epochs": 2, "beta": 2.0}),
    "DPO, imitating": Method(DPOConfig, dpo.train, IMITATING | {"beta": 0.1, "sft_weight": 5.0}),
    "Dense DPO, γ 5, imitating": Method(DenseDPOConfig, dense_dpo.train, DENSE | {"gamma": 5.0}),
    "Dense DPO, γ 5, imitating, 1 epoch": Method(DenseDPOConfig, dense_dpo.train, DENSE | {"gamma": 5.0, "epochs": 1}),
    "SFT on corrected, at 0.6": Method(SFTConfig, sft.train, {"learning_rate": 5e-4, "epochs": 3}, SCALED),
    "Dense DPO, γ 5, imitating, at 0.6": Method(DenseDPOConfig, dense_dpo.train, DENSE | {"gamma": 5.0}, SCALED),
    "Dense DPO, γ 1, imitating": Method(DenseDPOConfig, dense_dpo.train, DENSE | {"gamma": 1.0}),
}


def main() -> None:
    """Measure what is not measured yet, then write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--out", type=Path, default=Path("runs/vlm-hallucination"))
    parser.add_argument("--report", type=Path, help="folder for figures.json, table.md and plot.png")
    options = parser.parse_args()
    found = {seed: measure_seed(seed, options.methods, options.out / f"seed-{seed}") for seed in options.seeds}
    rows = summary(found, options.methods)
    shown = table(rows) + "\n" + likeliest(rows) + "\n" + density(found, options.methods)
    print(shown)
    if options.report:
        write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", options.report / "figures.json")
        write_text(shown, options.report / "table.md")
        draw(rows, options.report / "plot.png")


def measure_seed(seed: int, methods: list[str], folder: Path) -> dict[str, Any]:
    """Counts of each held-out answer before and after each method; what a stopped command measured is taken up."""
    prepare(seed, folder)
    found = {"tiny-llava": measured(None, seed, folder, "before")}
    for name in methods:
        method, out = METHODS[name], folder / name.removesuffix(", at 0.6").replace(" ", "-").replace(",", "")
        if not (out / "answers.json").exists():
            data = {"data": folder / "marked.jsonl"} if "data" in method.config.__dataclass_fields__ else {}
            method.train(method.config(out=out, seed=seed, resume=True, **TUNING | data | method.options))
        found[name] = measured(out, seed, folder, out.name, method.scale)
    return found


def prepare(seed: int, folder: Path) -> None:
    """Scenes, tiny-llava's answers about them, and their marks."""
    if not (folder / "held-out" / "scenes.jsonl").exists():
        write_scenes(folder / "scenes", MARKED, seed=1000 + seed)
        write_scenes(folder / "held-out", HELD_OUT, seed=2000 + seed)
    answers = folder / "scenes" / "answers.jsonl"
    if not answers.exists():
        generate(GenerateConfig("tiny-llava", folder / "scenes" / "scenes.jsonl", answers, batch_size=64,
                                temperature=1.0, max_new_tokens=120, seed=seed, resume=True))  # fmt: skip
    if not (folder / "marked.jsonl").exists():
        mark(MarkConfig(answers, folder / "scenes" / "scenes.jsonl", folder / "marked.jsonl"))


def measured(adapter: Path | None, seed: int, folder: Path, name: str, scale: float = 1.0) -> dict[str, Any]:
    """Counts of the answers about held-out scenes, drawn and likeliest, and of yes/no questions."""
    kept = folder / f"{name}.json" if adapter is None else adapter / f"answers{'' if scale == 1 else f'-{scale}'}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    policy = VisionLanguagePolicy.load("tiny-llava", adapter=adapter, adapter_scale=scale)
    scenes = read_scenes(folder / "held-out" / "scenes.jsonl")
    rows = [Row(DESCRIBE, None, image) for image in scenes]
    found: dict[str, Any] = {}
    for way, temperature in (("drawn", 1.0), ("likeliest", 0.0)):
        texts = generated(policy, rows, seed, temperature)
        found[way] = {"texts": texts, "counts": [counts(*each) for each in zip(texts, scenes.values(), strict=True)]}
    found["yes_no"] = yes_no(policy, scenes, seed)
    write_text(json.dumps(found) + "\n", kept)
    return found


def yes_no(policy: VisionLanguagePolicy, scenes: dict[Path, Any], seed: int) -> dict[str, float]:
    """POPE's questions about the scenes: accuracy and F1 in percent, over its three subsets."""
    asked = build_questions({str(path): sorted(scene.kinds) for path, scene in scenes.items()}, per_image=2, seed=seed)
    rows = [Row(each["text"], None, Path(each["image"])) for each in asked]
    truths = [each["label"] == "yes" for each in asked]
    said = [says_yes(text) for text in generated(policy, rows, seed, 0.0, max_new_tokens=4)]
    right = float(np.mean([a == b for a, b in zip(said, truths, strict=True)]))
    both = sum(a and b for a, b in zip(said, truths, strict=True))
    return {"accuracy": 100 * right, "f1": 200 * both / max(1, sum(said) + sum(truths))}


def generated(
    policy: VisionLanguagePolicy,
    rows: list[Row],
    seed: int,
    temperature: float,
    max_new_tokens: int = 120,
    size: int = 100,
) -> list[str]:
    """What the policy says to each row, `size` at a time."""
    parts = (rows[first : first + size] for first in range(0, len(rows), size))
    how: dict[str, Any] = {"seed": seed, "temperature": temperature, "max_new_tokens": max_new_tokens}
    return [text for part in parts for text in policy.generate(part, **how).texts]


def summary(found: dict[int, dict[str, Any]], methods: list[str]) -> list[dict[str, Any]]:
    """Figures over all seeds' scenes, with intervals, and the change of CHAIR_i against the start, paired by scene."""
    rows = []
    for name in ["tiny-llava", *methods]:
        row: dict[str, Any] = {"method": name}
        for way in ("drawn", "likeliest"):
            own = [each for seed in found for each in found[seed][name][way]["counts"]]
            before = [each for seed in found for each in found[seed]["tiny-llava"][way]["counts"]]
            row[way] = pooled(own, figures)
            row[way] |= {f"{key}_change": value for key, value in changes(before, own).items()}
        row["yes_no"] = {
            key: float(np.mean([found[seed][name]["yes_no"][key] for seed in found])) for key in ("accuracy", "f1")
        }
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The figures of drawn answers as Markdown."""
    columns = ("method", "CHAIR_i %", "change", "CHAIR_s %", "coverage %", "false sentences %", "words",
               "yes/no accuracy %")  # fmt: skip
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for row in rows:
        own = row["drawn"]
        low, high = own["chair_i_ci95"]
        moved, first, last = own["chair_i_change"]
        told = "" if row["method"] == "tiny-llava" else f"{moved:+.0f} % ({first:+.0f} … {last:+.0f})"
        lines.append(
            f"| {row['method']} | {own['chair_i']:.1f} ({low:.1f} … {high:.1f}) | {told} | {own['chair_s']:.1f} | "
            f"{own['coverage']:.1f} | {own['false_sentences']:.1f} | {own['length']:.1f} | "
            f"{row['yes_no']['accuracy']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def likeliest(rows: list[dict[str, Any]]) -> str:
    """The figures of the likeliest answers, and how they changed."""
    lines = [
        "| likeliest answers | CHAIR_i % | change | coverage % | change in points | false sentences % |",
        "|---" * 6 + "|",
    ]
    for row in rows:
        own = row["likeliest"]
        moved = ["", ""] if row["method"] == "tiny-llava" else both(own["chair_i_change"], own["coverage_change"])
        cells = [row["method"], f"{own['chair_i']:.1f}", moved[0], f"{own['coverage']:.1f}", moved[1],
                 f"{own['false_sentences']:.1f}"]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def density(found: dict[int, dict[str, Any]], methods: list[str]) -> str:
    """Dense DPO beside the same with every token alike, and beside DPO: paired by scene, drawn answers."""
    dense = "Dense DPO, γ 5, imitating"
    lines = ["| Dense DPO, γ 5, imitating, against | CHAIR_i | coverage, points |", "|---|---|---|"]
    for other in ("Dense DPO, γ 1, imitating", "DPO, imitating", "SFT on corrected"):
        if {dense, other} <= set(methods):
            before, after = (
                [each for seed in found for each in found[seed][name]["drawn"]["counts"]] for name in (other, dense)
            )
            moved = changes(before, after)
            lines.append(f"| {other} | {' | '.join(both(moved['chair_i'], moved['coverage']))} |")
    return "\n".join(lines) + "\n"


def both(chair: list[float], coverage: list[float]) -> list[str]:
    """A change of CHAIR_i in percent and one of coverage in points, with their intervals."""
    (value, low, high), (points, least, most) = chair, coverage
    return [f"{value:+.0f} % ({low:+.0f} … {high:+.0f})", f"{points:+.1f} ({least:+.1f} … {most:+.1f})"]


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    """CHAIR_i against coverage of drawn answers, a point a method."""
    matplotlib.use("Agg")
    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for row in rows:
        own = row["drawn"]
        axes.errorbar(
            own["coverage"], own["chair_i"], marker="o", capsize=3, label=row["method"],
            color="black" if row["method"] == "tiny-llava" else None,
            yerr=np.abs(np.array(own["chair_i_ci95"])[:, None] - own["chair_i"]),
            xerr=np.abs(np.array(own["coverage_ci95"])[:, None] - own["coverage"]),
        )  # fmt: skip
    axes.set(xlabel="coverage: true objects named, %", ylabel="CHAIR_i: named objects that are not there, %")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120, bbox_inches="tight")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
