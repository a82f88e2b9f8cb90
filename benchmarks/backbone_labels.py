"""Which backbone saves ratings? Held-out agreement over the number of ratings, for a head on frozen embeddings of each.

A network with random weights, the same pretrained by `mmrlhf select pretrain` on unlabelled pictures of other prompts, and
tiny-clip, which knows emoji. Pictures of tiny-sd, simulated raters, pairs drawn at random, the Bradley-Terry head of
`label_savings`. Prints a table:

OMP_NUM_THREADS=2 python -m benchmarks.backbone_labels [--seeds 5] [--epochs 30] [--out runs/backbone-labels] [--report FILE.png]

--out keeps pictures, backbones and embeddings, so that a run that was stopped goes on there.
"""

import argparse
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from jaxtyping import Float
from matplotlib import pyplot
from tqdm import tqdm

from benchmarks.label_savings import agreement
from benchmarks.label_savings_strategies import fit
from benchmarks.label_savings_worlds import PICTURES, PROMPTS, World, drawn_pictures, picture_world
from mmrlhf.backbones import make_backbone, save_backbone
from mmrlhf.images import load_image, save_image
from mmrlhf.taste import taste
from selection.embed import Embedder
from selection.pretrain import PretrainConfig, pretrain

RATINGS = (40, 80, 160, 320, 640, 1280, 2560)
NETWORK, SIZE, UNLABELLED_PROMPTS = "resnet18", 64, 240
PRETRAINED: dict[str, dict[str, Any]] = {
    "simclr": {"method": "simclr", "temperature": 0.2, "min_crop": 0.4, "colour": 0.5},
    "distill": {"method": "distill"},
}
TITLES = {
    "random weights": "random weights",
    "simclr": "pretrained, simclr",
    "distill": "pretrained, distilled from tiny-clip",
    "tiny-clip": "tiny-clip",
}


def draw_pictures(folder: Path, first: int, count: int) -> list[Path]:
    """PICTURES of each of `count` prompts from the `first` on, in a drawn order of all; kept in the folder."""
    files = [folder / f"{i:05d}.png" for i in range(count * PICTURES)]
    if not files[-1].exists():
        for image, file in zip(drawn_pictures(first, count), files, strict=True):
            save_image(image, file)
    return files


def backbone(name: str, epochs: int, out: Path) -> str:
    """What embeds, as `select --model` takes it; a pretrained one has seen none of the pictures that are judged."""
    if name == "tiny-clip":
        return name
    if name == "random weights":
        folder = out / "random-weights"
        if not folder.exists():
            torch.manual_seed(0)
            save_backbone(make_backbone(NETWORK, SIZE), folder)
        return str(folder)
    unlabelled, run = out / "unlabelled", out / name
    draw_pictures(unlabelled, PROMPTS, UNLABELLED_PROMPTS)
    pretrain(PretrainConfig(images=unlabelled, out=run, backbone=NETWORK, image_size=SIZE, batch_size=128, epochs=epochs,
                            resume=True, **PRETRAINED[name]))  # fmt: skip
    return str(run / "backbone")


def embeddings(name: str, epochs: int, files: list[Path], out: Path) -> Float[np.ndarray, "n d"]:
    """Of every picture, kept in `out`."""
    file = out / f"{name.replace(' ', '-')}.npy"
    if not file.exists():
        embedder = Embedder(backbone(name, epochs, out))
        parts = [files[i : i + 64] for i in range(0, len(files), 64)]
        found = torch.cat([embedder(torch.stack([load_image(path) for path in part])) for part in parts])
        np.save(file.with_suffix(".part.npy"), found.numpy())
        file.with_suffix(".part.npy").replace(file)
    return np.load(file).astype(np.float64)


def curve(world: World, seed: int) -> list[float]:
    """Held-out agreement with so many ratings of pairs drawn at random: the same pairs for every backbone."""
    order = np.random.default_rng(seed).permutation(len(world.answers))
    found = []
    for count in RATINGS:
        rows = order[:count]
        whitening, head = fit([z[rows] for z in world.pool], world.answers[rows])
        found.append(agreement(world, whitening, head))
    return found


def main() -> None:
    """Print the table: mean agreement over seeds, ± its standard error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=30, help="of pretraining")
    parser.add_argument("--out", type=Path, default=Path("runs/backbone-labels"))
    parser.add_argument("--report", type=Path, help="plot to write")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    files = draw_pictures(options.out / "pictures", 0, PROMPTS)
    gold = torch.cat([taste(load_image(file)[None]) for file in files]).double().numpy()
    curves: dict[str, Float[np.ndarray, "seeds points"]] = {}
    for name in TITLES:
        found = embeddings(name, options.epochs, files, options.out)
        seeds = tqdm(range(options.seeds), desc=name)
        curves[name] = np.array([curve(picture_world(found, gold, seed), seed) for seed in seeds])
    print(f"| ratings | {' | '.join(map(str, RATINGS))} |\n{'|---' * (len(RATINGS) + 1)}|")
    for name, values in curves.items():
        error = values.std(axis=0, ddof=1) / np.sqrt(len(values))
        cells = [f"{mean:.3f} ± {own:.3f}" for mean, own in zip(values.mean(axis=0), error, strict=True)]
        print(f"| {TITLES[name]} | {' | '.join(cells)} |")
    if options.report:
        draw(curves, options.report)


def draw(curves: dict[str, Float[np.ndarray, "seeds points"]], file: Path) -> None:
    """Mean agreement over the number of ratings, with standard errors."""
    matplotlib.use("Agg")
    figure, axis = pyplot.subplots(figsize=(6, 4))
    for name, values in curves.items():
        error = values.std(axis=0, ddof=1) / np.sqrt(len(values))
        axis.errorbar(RATINGS, values.mean(axis=0), error, marker="o", ms=4, capsize=3, label=TITLES[name])
    axis.set(xscale="log", xlabel="ratings of random pairs", ylabel="agreement on held-out pairs")
    axis.set_xticks(RATINGS, [str(count) for count in RATINGS])
    axis.minorticks_off()
    axis.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
