"""What a hallucination reward tells by a model's own states, and by an image-text model: AUROC of misleading sentences.

500 answers of tiny-llava about scenes, marked by the truth; 300 to learn from, 100 to calibrate on, 100 to measure on, split five
times. The figures of docs/vlm.md come from

OMP_NUM_THREADS=2 python benchmarks/reward_features.py --out runs/reward-features
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmrlhf.data import write_text
from mmrlhf.segments import read_segments, write_segments
from mmrlhf.tiny.scene_files import write_scenes
from mmrlhf.tiny.scenes import SIDE
from vlm.generate import GenerateConfig, generate
from vlm.reward import RewardConfig, train
from vlm.scenes import MarkConfig, mark

ANSWERS = 500
CLIP: dict[str, Any] = {"model": "tiny-clip", "features": "clip"}
WAYS: dict[str, dict[str, Any]] = {
    "tiny-llava's states": {"model": "tiny-llava"},
    "tiny-clip": CLIP,
    "tiny-clip, 3×3 crops": CLIP | {"crops": 3},
    "tiny-clip, 3×3 crops, linear": CLIP | {"crops": 3, "hidden": 0},
    "tiny-clip, every picture grey": CLIP,
}


def main() -> None:
    """Measure what is not measured yet, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, default=Path("runs/reward-features"))
    options = parser.parse_args()
    prepare(options.out)
    print("| features | mean AUROC | by split |\n|---|---|---|")
    for way, how in WAYS.items():
        found = [auroc(way, how, seed, options.out) for seed in options.seeds]
        print(f"| {way} | {np.mean(found):.3f} | {', '.join(f'{value:.3f}' for value in found)} |", flush=True)


def prepare(folder: Path) -> None:
    """Scenes, answers about them, and their marks; and the same marks beside grey pictures."""
    marked = folder / "marked.jsonl"
    if not (folder / "scenes" / "scenes.jsonl").exists():
        write_scenes(folder / "scenes", ANSWERS, seed=0)
    scenes, answers = folder / "scenes" / "scenes.jsonl", folder / "scenes" / "answers.jsonl"
    if not marked.exists():
        generate(
            GenerateConfig(
                "tiny-llava", scenes, answers, batch_size=50, temperature=1.0, max_new_tokens=120, resume=True
            )
        )
        mark(MarkConfig(answers, scenes, marked))
    if not (folder / "grey.jsonl").exists():
        items = []
        for number, item in enumerate(read_segments(marked)):
            picture = (
                folder / "grey" / f"{number}.png"
            )  # its own file, so that answers are held out as they are with pictures
            picture.parent.mkdir(exist_ok=True)
            Image.new("RGB", (SIDE, SIDE), (128, 128, 128)).save(picture)
            items.append(replace(item, image=picture))
        write_segments(items, folder / "grey.jsonl")


def auroc(way: str, how: dict[str, Any], seed: int, folder: Path) -> float:
    """That of one split."""
    kept = folder / f"{way.replace(' ', '-').replace(',', '')}-{seed}.json"
    if not kept.exists():
        data = folder / ("grey.jsonl" if way.endswith("grey") else "marked.jsonl")
        figures = train(RewardConfig(data=data, out=kept.with_suffix(""), validation=0.4, seed=seed, **how))
        write_text(json.dumps(figures) + "\n", kept)
    return float(json.loads(kept.read_text())["auroc"])


if __name__ == "__main__":
    main()
