"""A reward at each part of an answer, or all of it at the end: what PPO makes of the same answers, on tiny-llava.

Each seed: PPO with `--reward-at segments` and with `end`, everything else the same, once by the truth of the scenes and once by a
reward learned from 1,400 marked answers (`mmrlhf vlm reward`). Measured on held-out scenes: what the truth says an answer is
worth, CHAIR_i and coverage. The table of docs/vlm-hallucination.md comes from

OMP_NUM_THREADS=1 python -m benchmarks.vlm_dense_reward --seeds 0 1 2 --out runs/vlm-dense-reward

--out keeps what is finished; --marked DIR takes the marked answers of `benchmarks/vlm_hallucination.py --out DIR`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.vlm_hallucination import generated, prepare
from mmrlhf.data import write_text
from mmrlhf.rewards.language.inputs import Row
from mmrlhf.statistics import bootstrap_ci
from mmrlhf.tiny.scene_files import read_scenes
from mmrlhf.tiny.scene_text import DESCRIBE
from vlm import ppo
from vlm import reward as reward_training
from vlm.benchmarks.pooled import pooled
from vlm.benchmarks.scenes import counts, figures
from vlm.policy import VisionLanguagePolicy
from vlm.ppo_config import PPOConfig
from vlm.reward import RewardConfig
from vlm.scene_truth import SceneTruth
from vlm.segment_reward import load_answer_reward

OPTIONS: dict[str, Any] = {
    "model": "tiny-llava", "samples_per_epoch": 32, "train_batch_size": 32, "inner_epochs": 2, "max_new_tokens": 64,
    "lora_rank": 16, "learning_rate": 1e-3, "beta": 0.05, "kl_target": 6.0, "kl_horizon": 500,
}  # fmt: skip
PLACES = ("segments", "end")


def rewards(folder: Path, learned: Path, seed: int) -> dict[str, Any]:
    """By name, what judges answers about the scenes in a seed's folder; `learned` is where the learned one is kept."""
    if not (learned / "reward.json").exists():
        reward_training.train(RewardConfig("tiny-llava", folder / "marked.jsonl", learned, layers="both", seed=seed))
    return {"truth": SceneTruth(folder / "scenes" / "scenes.jsonl"), "learned": load_answer_reward(str(learned))}


def measured(adapter: Path | None, folder: Path, seed: int) -> dict[str, Any]:
    """What drawn answers about held-out scenes are worth by the truth, and their counts."""
    policy = VisionLanguagePolicy.load("tiny-llava", adapter=adapter)
    held = folder / "held-out" / "scenes.jsonl"
    scenes, truth = read_scenes(held), SceneTruth(held)
    rows = [Row(DESCRIBE, None, image) for image in scenes]
    texts = generated(policy, rows, seed, 1.0)
    worth = [each.total for each in truth([row._replace(answer=text) for row, text in zip(rows, texts, strict=True)])]
    return {"worth": worth, "counts": [counts(*each) for each in zip(texts, scenes.values(), strict=True)]}


def run(out: Path, marked: Path, seed: int, epochs: int) -> dict[str, dict[str, Any]]:
    """Every way of a seed, and the start."""
    folder = marked / f"seed-{seed}"
    prepare(seed, folder)
    found: dict[str, dict[str, Any]] = {}
    judges: dict[str, Any] = {}
    for judge, at in [("start", ""), *((judge, at) for judge in ("truth", "learned") for at in PLACES)]:
        name = f"{judge} {at}".strip()
        kept = out / f"seed-{seed}" / f"{name.replace(' ', '-')}.json"
        if not kept.exists():
            adapter = None
            if at:
                judges = judges or rewards(folder, kept.with_name("reward"), seed)
                adapter = kept.with_suffix("")
                ppo.train(PPOConfig(prompts=folder / "scenes" / "scenes.jsonl", reward=judge, out=adapter, epochs=epochs,
                                    reward_at=at, seed=seed, resume=True, **OPTIONS), reward=judges[judge])  # fmt: skip
            write_text(json.dumps(measured(adapter, folder, seed)) + "\n", kept)
        found[name] = json.loads(kept.read_text())
    return found


def main() -> None:
    """Print the table, with intervals that draw scenes again, the same ones for both ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("runs/vlm-dense-reward"))
    parser.add_argument("--marked", type=Path, help="--out of vlm_hallucination")
    options = parser.parse_args()
    seeds = [run(options.out, options.marked or options.out, seed, options.epochs) for seed in options.seeds]
    print("| reward | at | worth by the truth | parts less end (95 %) | CHAIR_i | coverage | by seed |")
    print("|---" * 7 + "|")
    for name in seeds[0]:
        worth = np.concatenate([found[name]["worth"] for found in seeds])
        judge, _, at = name.partition(" ")
        shown = pooled([each for found in seeds for each in found[name]["counts"]], figures)
        gain = ""
        if at == "segments":
            gains = worth - np.concatenate([found[f"{judge} end"]["worth"] for found in seeds])
            low, high = bootstrap_ci(gains, seed=0)
            gain = f"{gains.mean():+.2f} ({low:+.2f} … {high:+.2f})"
        own = ", ".join(f"{np.mean(found[name]['worth']):.2f}" for found in seeds)
        cells = [judge, at, f"{worth.mean():.2f}", gain, f"{shown['chair_i']:.1f}", f"{shown['coverage']:.1f}", own]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
