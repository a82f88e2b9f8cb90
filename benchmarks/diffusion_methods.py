"""Every way to fine-tune a diffusion model, on the same start, prompts and learned reward: what the hidden taste gains from it.

For each seed the quickstart makes pictures, ratings and a reward; each method then fine-tunes tiny-sd on the reward, or on the
rated pictures themselves. Held-out prompts are drawn before and after with the same noise. The table and plot of
docs/diffusion-methods.md come from

python benchmarks/diffusion_methods.py --seeds 0 1 2 --out runs/methods --report docs/diffusion-methods

and how much sooner than DDPO some reach its reward, from

python benchmarks/diffusion_methods.py --methods DDPO "GRPO, window of 4" SPO AlignProp ReFL --out runs/methods-timed
"""

import argparse
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from diffusers import UNet2DConditionModel
from matplotlib import pyplot
from torch.nn.modules.module import register_module_forward_hook

from diffusion import d3po, ddpo, dpo, draft, grpo, kto, nft, rwr, sft, spo
from diffusion.ddpo_config import DDPOConfig
from diffusion.draft_config import DRaFTConfig
from diffusion.grpo_config import GRPOConfig
from diffusion.policy import DiffusionPolicy
from diffusion.spo_config import SPOConfig
from mmrlhf.data import write_pairs, write_text
from mmrlhf.quickstart.candidates import generate_candidates, split_prompts
from mmrlhf.quickstart.learning import learn_reward
from mmrlhf.quickstart.rating import labelled_pairs, rate_first_pairs, rate_held_out_pairs, rate_second_pairs
from mmrlhf.quickstart.run import QuickstartConfig, Run, open_run
from mmrlhf.rewards import load_reward
from mmrlhf.seeding import seeded
from mmrlhf.statistics import bootstrap_ci
from mmrlhf.taste import taste
from mmrlhf.tiny.judge import Judge

SHARED: dict[str, Any] = {
    "model": "tiny-sd", "num_steps": 10, "guidance_scale": 1.0, "lora_rank": 8, "kl_samples": 2, "images_every": 0,
}  # fmt: skip
GROUPS: dict[str, Any] = {"samples_per_epoch": 96, "samples_per_prompt": 8, "sample_batch_size": 96}
IMAGES_PER_PROMPT = 2  # of a held-out prompt, each time it is drawn
POINTS = 2  # at which a run is measured


@dataclass(frozen=True)
class Method:
    """What trains, with which options; `data` says that it learns from the rated pictures and not from the reward."""

    config: type
    train: Callable[..., Any]
    options: dict[str, Any]
    data: bool = False


METHODS = {
    "DDPO": Method(DDPOConfig, ddpo.train, GROUPS | {
        "samples_per_prompt": 4, "prompt_min_count": 4, "epochs": 4, "train_batch_size": 48, "learning_rate": 4e-3,
        "clip_range": 1e-3}),
    "DDPO, score function": Method(DDPOConfig, ddpo.train, GROUPS | {
        "samples_per_prompt": 4, "prompt_min_count": 4, "epochs": 4, "train_batch_size": 48, "learning_rate": 4e-3,
        "algorithm": "score-function"}),
    "GRPO": Method(GRPOConfig, grpo.train, {
        "prompts_per_epoch": 12, "samples_per_prompt": 8, "sample_batch_size": 96, "eta": 1.0, "epochs": 4,
        "train_batch_size": 48, "learning_rate": 4e-3, "clip_range": 1e-3, "kl_weight": 0.0}),
    "GRPO, window of 4": Method(GRPOConfig, grpo.train, {
        "prompts_per_epoch": 12, "samples_per_prompt": 8, "sample_batch_size": 96, "eta": 1.0, "epochs": 4,
        "train_batch_size": 48, "learning_rate": 4e-3, "clip_range": 1e-3, "kl_weight": 0.0, "window": 4}),
    "NFT": Method(nft.NFTConfig, nft.train, GROUPS | {
        "eta": 1.0, "epochs": 4, "train_batch_size": 96, "inner_epochs": 8, "learning_rate": 1e-3}),
    "reward-weighted": Method(rwr.RWRConfig, rwr.train, GROUPS | {
        "eta": 1.0, "epochs": 4, "train_batch_size": 96, "inner_epochs": 8, "learning_rate": 1e-3, "temperature": 1.0}),
    "best of 8": Method(rwr.RWRConfig, rwr.train, GROUPS | {
        "eta": 1.0, "epochs": 4, "train_batch_size": 24, "inner_epochs": 8, "learning_rate": 1e-3, "top": 1}),
    "D3PO": Method(dpo.DPOConfig, d3po.train, {
        "method": "d3po", "pairs_per_epoch": 48, "sample_batch_size": 48, "epochs": 4, "train_batch_size": 24,
        "learning_rate": 4e-3, "beta": 50.0}),
    "SPO": Method(SPOConfig, spo.train, {
        "epochs": 4, "samples_per_epoch": 48, "sample_batch_size": 48, "train_batch_size": 24, "learning_rate": 2e-3,
        "beta": 50.0, "eta": 1.0}),
    "DRaFT-1": Method(DRaFTConfig, draft.train, {
        "epochs": 4, "samples_per_epoch": 64, "train_batch_size": 32, "gradient_accumulation": 1, "learning_rate": 1e-3}),
    "DRaFT-LV": Method(DRaFTConfig, draft.train, {
        "method": "draft-lv", "epochs": 4, "samples_per_epoch": 64, "train_batch_size": 32, "gradient_accumulation": 1,
        "learning_rate": 1e-3}),
    "AlignProp": Method(DRaFTConfig, draft.train, {
        "method": "alignprop", "epochs": 4, "samples_per_epoch": 64, "train_batch_size": 32, "gradient_accumulation": 1,
        "learning_rate": 1e-3}),
    "ReFL": Method(DRaFTConfig, draft.train, {
        "method": "refl", "epochs": 4, "samples_per_epoch": 64, "train_batch_size": 32, "gradient_accumulation": 1,
        "learning_rate": 1e-3, "refl_weight": 1.0}),
    "Diffusion-DPO": Method(dpo.DPOConfig, dpo.train, {
        "validation": 0.0, "epochs": 4, "train_batch_size": 48, "learning_rate": 1e-3, "beta": 2000.0}, data=True),
    "Diffusion-KTO": Method(kto.KTOConfig, kto.train, {
        "validation": 0.0, "epochs": 4, "train_batch_size": 96, "learning_rate": 1e-3, "beta": 2000.0}, data=True),
    "SFT on winners": Method(sft.SFTConfig, sft.train, {
        "epochs": 4, "train_batch_size": 48, "learning_rate": 1e-3}, data=True),
}  # fmt: skip


def prepare(out: Path, seed: int) -> Run:
    """The quickstart up to its reward, and the ratings of training pictures as PAIRS.jsonl."""
    folder = out / f"seed-{seed}"
    run = open_run(QuickstartConfig(out=folder, seed=seed, only="diffusion", resume=folder.exists()))
    run.stage("generate", generate_candidates)
    asked = run.stage("rate-first", rate_first_pairs)["pairs"] + run.stage("rate-second", rate_second_pairs)["pairs"]
    run.stage("rate-held-out", rate_held_out_pairs)
    run.stage("reward", learn_reward)
    write_pairs(labelled_pairs(run, asked), folder / "pairs.jsonl")
    write_text("\n".join(split_prompts(run.config)[0]) + "\n", folder / "prompts.txt")
    return run


class Measure:
    """Held-out prompts drawn by the start, and by what was trained, with the same noise."""

    def __init__(self, run: Run) -> None:
        self.run, self.prompts = run, split_prompts(run.config)[1]
        self.reward, self.judge = load_reward(str(run.folder / "reward")), Judge.load()
        self.start = self.values(policy())
        self.spread = self.start["gold"].std(ddof=1)

    def values(self, model: DiffusionPolicy) -> dict[str, np.ndarray]:
        """Hidden taste, learned reward and similarity to the prompt of each picture (prompts × pictures)."""
        prompts = [prompt for prompt in self.prompts for _ in range(IMAGES_PER_PROMPT)]
        images = model.sample(prompts, seeded(self.run.config.seed, 1)).images.cpu()
        found = {
            "gold": taste(images),
            "reward": self.reward(images, prompts),
            "similarity": self.judge(images, prompts),
        }
        return {name: value.detach().numpy().reshape(len(self.prompts), -1) for name, value in found.items()}

    def point(self, lora: Path) -> dict[str, Any]:
        """What the weights in `lora` gained, a mean and a value a prompt, and their distance to the start."""
        tuned = policy(lora)
        after = self.values(tuned)
        gained = (after["gold"] - self.start["gold"]).mean(axis=1) / self.spread
        learned = (after["reward"] - self.start["reward"]).mean() / self.start["reward"].std(ddof=1)
        similar = np.nanmean(after["similarity"]) / np.nanmean(self.start["similarity"]) - 1
        kl = tuned.kl_to_reference(tuned.sample(self.prompts, seeded(self.run.config.seed, 2)))
        return {"gold": gained.tolist(), "reward": float(learned), "similarity": float(similar), "kl": float(kl)}


def policy(lora: Path | None = None) -> DiffusionPolicy:
    """The start, or what was trained from it, to sample with."""
    return DiffusionPolicy.load(
        SHARED["model"], num_steps=SHARED["num_steps"], guidance_scale=SHARED["guidance_scale"], lora=lora
    )


class Passes:
    """Inside, counts the samples that go through a UNet; one with gradients counts three, for the way back costs two."""

    def __init__(self) -> None:
        self.count, self.counting = 0, True

    def __enter__(self) -> "Passes":
        self.handle = register_module_forward_hook(self.add)
        return self

    def __exit__(self, *error: object) -> None:
        self.handle.remove()

    def add(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if self.counting and isinstance(module, UNet2DConditionModel):
            self.count += len(output[0]) * (3 if output[0].requires_grad else 1)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, nothing counts."""
        self.counting = False
        yield
        self.counting = True


def compare(run: Run, measure: Measure, name: str, method: Method) -> dict[str, Any]:
    """One method on one seed, measured `POINTS` times."""
    folder = run.folder / "methods" / name.replace(" ", "-").replace(",", "")
    finished = folder / "measured.json"
    if finished.exists():
        return json.loads(finished.read_text())
    source: dict[str, Any] = {"data": run.folder / "pairs.jsonl"}
    if not method.data:
        source = {"prompts": run.folder / "prompts.txt", "reward": str(run.folder / "reward")}
    config = method.config(**SHARED | source | method.options | {"out": folder / "run", "seed": run.config.seed})
    shutil.rmtree(folder, ignore_errors=True)
    points, passes, spent = [], Passes(), []

    def after_an_epoch(line: dict[str, Any]) -> None:
        spent.append(line["seconds"])  # sampling and training
        if (line["epoch"] + 1) % max(1, config.epochs // POINTS) == 0:
            with passes.paused():
                points.append(
                    {"epoch": line["epoch"] + 1, "passes": passes.count, "seconds": sum(spent)}
                    | measure.point(config.out)
                )

    with passes:
        method.train(config, on_epoch=after_an_epoch)
    found = {"method": name, "seed": run.config.seed, "points": points}
    write_text(json.dumps(found), finished)
    return found


def summary(name: str, runs: Sequence[dict[str, Any]], point: int) -> dict[str, Any]:
    """Figures of a method at one point, over all prompts of all seeds; lowest and highest are of whole seeds."""
    at = [run["points"][point] for run in runs]
    gains = [float(np.mean(each["gold"])) for each in at]
    low, high = bootstrap_ci(np.concatenate([each["gold"] for each in at]))
    means = {
        key: float(np.mean([each[key] for each in at])) for key in ("epoch", "passes", "reward", "similarity", "kl")
    }
    return {"method": name, "gain": float(np.mean(gains)), "low": low, "high": high, "seeds": gains} | means


def table(last: Sequence[dict[str, Any]]) -> str:
    """The last points, in Markdown; with the passes of samples through the network."""
    lines = [
        "| method | hidden taste, sd | 95 % interval | each seed | learned reward | KL, nats | similarity | passes, thousands |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in last:
        seeds = ", ".join(f"{gain:+.2f}" for gain in row["seeds"])
        lines.append(
            f"| {row['method']} | {row['gain']:+.2f} | {row['low']:+.2f} … {row['high']:+.2f} | {seeds} | {row['reward']:+.2f} | "
            f"{row['kl']:.1f} | {row['similarity']:+.1%} | {row['passes'] / 1000:.0f} |"
        )
    return "\n".join(lines) + "\n"


def seconds_to(run: dict[str, Any], reward: float) -> float:
    """Of sampling and training, until the learned reward has gained so much; between measurements by straight lines."""
    points = [{"seconds": 0.0, "reward": 0.0}, *run["points"]]
    for before, after in pairwise(points):
        if after["reward"] >= reward:
            share = (reward - before["reward"]) / (after["reward"] - before["reward"])
            return before["seconds"] + share * (after["seconds"] - before["seconds"])
    return float("nan")


def times(found: dict[str, list[dict[str, Any]]], against: str = "DDPO") -> str:
    """How many times as fast as DDPO each method reaches the learned reward of DDPO's end, in Markdown."""
    lines = [f"| method | times as fast as {against} to its reward, each seed |", "|---|---|"]
    for name, runs in found.items():
        ratios = [slow["points"][-1]["seconds"] / seconds_to(run, slow["points"][-1]["reward"])
                  for slow, run in zip(found[against], runs, strict=True)]  # fmt: skip
        lines.append(f"| {name} | {', '.join(f'{ratio:.1f}' for ratio in ratios)} |")
    return "\n".join(lines) + "\n"


def plot(curves: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Gain against the distance to the start, and against compute."""
    matplotlib.use("Agg")
    figure, axes = pyplot.subplots(1, 2, figsize=(13, 5.5), sharey=True)
    colours = pyplot.get_cmap("tab20")
    for number, (name, curve) in enumerate(curves.items()):
        gains = [0.0] + [row["gain"] for row in curve]
        style = {"color": colours(number % 20), "marker": "os^v"[number % 4], "markersize": 4, "label": name}
        axes[0].plot([0.0] + [row["kl"] ** 0.5 for row in curve], gains, **style)
        axes[1].plot([0.0] + [row["passes"] / 1000 for row in curve], gains, **style)
    axes[0].set(xlabel="√KL to the start (√nats)", ylabel="hidden taste gained (sd of the start)")
    axes[1].set(xlabel="thousands of passes through the network (with gradients: three)")
    for axis in axes:
        axis.axhline(0, color="grey", linewidth=0.5)
    axes[1].legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("--report", type=Path, help="folder for figures.json, table.md and plot.png")
    given = parser.parse_args()

    found: dict[str, list[dict[str, Any]]] = {name: [] for name in given.methods}
    for seed in given.seeds:
        run = prepare(given.out, seed)
        measure = Measure(run)
        for name in given.methods:
            torch.manual_seed(seed)
            found[name].append(compare(run, measure, name, METHODS[name]))
            print(json.dumps(summary(name, found[name][-1:], -1)), flush=True)
    curves = {
        name: [summary(name, runs, point) for point in range(len(runs[0]["points"]))] for name, runs in found.items()
    }
    if given.report and (earlier := given.report / "figures.json").exists():  # of the methods that were not run now
        kept = json.loads(earlier.read_text())
        curves = {name: curves.get(name) or kept[name] for name in METHODS if name in curves or name in kept}
    rows = table([curve[-1] for curve in curves.values()])
    print(rows)
    if "DDPO" in found:
        print(times(found))
    if given.report:
        given.report.mkdir(parents=True, exist_ok=True)
        write_text(json.dumps(curves, indent=1) + "\n", given.report / "figures.json")
        write_text(rows, given.report / "table.md")
        plot(curves, given.report / "plot.png")


if __name__ == "__main__":
    main()
