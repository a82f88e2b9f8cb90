"""tiny-llava's vision tower: a CLIP one that learns which drawing covers each patch, where that is, and the background."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import CLIPVisionConfig, CLIPVisionModel

from mmrlhf.checkpoint import load_checkpoint, save_checkpoint
from mmrlhf.schedule import set_learning_rate
from mmrlhf.tiny.scenes import BACKGROUNDS, CELLS, DRAWINGS, SIDE, Scene, random_scene, render

SIZE, PATCH = 96, 16
PATCHES = SIZE // PATCH
MEAN, SPREAD = 0.5, 0.25


def train_tower(work: Path, steps: int, *, batch_size: int = 64, learning_rate: float = 1.5e-3) -> Any:
    """A CLIP vision tower that tells for each patch which cell it is in, which drawing covers that, and the background."""
    torch.manual_seed(0)
    tower: Any = CLIPVisionModel(CLIPVisionConfig(
        image_size=SIZE, patch_size=PATCH, hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
        projection_dim=128,
    ))  # fmt: skip
    told = (len(DRAWINGS) + 1, CELLS * CELLS, len(BACKGROUNDS))
    head = nn.Linear(128, sum(told))
    both = nn.ModuleList([tower, head])

    def loss_of(generator: np.random.Generator) -> tuple[Tensor, str]:
        scenes = [random_scene(generator) for _ in range(batch_size)]
        wanted = patch_classes(scenes)
        found = head(patch_states(tower, pixels(scenes, generator))).split(told, dim=-1)
        right = float((found[0].argmax(-1) == wanted[..., 0])[wanted[..., 0] > 0].float().mean())
        losses = [F.cross_entropy(own.flatten(0, 1), wanted[..., i].flatten()) for i, own in enumerate(found)]
        return torch.stack(losses).sum(), f"{right:.3f}"

    run_steps("vision tower", both, loss_of, steps, learning_rate, work / "tower.pt")
    return tower.eval().requires_grad_(False)


def patch_states(tower: Any, images: Float[Tensor, "b 3 96 96"]) -> Float[Tensor, "b n d"]:
    """What the language model reads of a picture: the patches of the last layer, the class token left out."""
    return tower(images).last_hidden_state[:, 1:]


def patch_classes(scenes: Iterable[Scene]) -> Int[Tensor, "b n 3"]:
    """For each patch the number of the drawing in its cell (0 where there is none), of the cell, and of the background."""
    grids = []
    for scene in scenes:
        cells = torch.stack([torch.zeros(CELLS * CELLS, dtype=torch.long), torch.arange(CELLS * CELLS)])
        for thing in scene.things:
            cells[0, thing.cell] = 1 + DRAWINGS.index(thing.drawing)
        each = PATCHES // CELLS
        patches = cells.view(2, CELLS, CELLS).repeat_interleave(each, 1).repeat_interleave(each, 2).flatten(1)
        background = torch.full((1, PATCHES**2), list(BACKGROUNDS).index(scene.background))
        grids.append(torch.cat([patches, background]).T)
    return torch.stack(grids)


def pixels(scenes: list[Scene], generator: np.random.Generator) -> Float[Tensor, "b 3 96 96"]:
    """Rendered, reduced by the mean of 2×2 pixels and normalised, as the processor does it."""
    return (F.avg_pool2d(render(scenes, generator), SIDE // SIZE) - MEAN) / SPREAD


def run_steps(
    name: str,
    module: nn.Module,
    loss_of: Callable[[np.random.Generator], tuple[Tensor, str]],
    steps: int,
    learning_rate: float,
    file: Path,
) -> None:
    """AdamW for so many steps; the state is in `file` every 100, and taken up from there."""
    parameters = [value for value in module.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.05, betas=(0.9, 0.98))
    start = 0
    if state := load_checkpoint(file):
        module.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    for step in (bar := tqdm(range(start, steps), desc=f"tiny-llava {name}", initial=start, total=steps)):
        loss, shown = loss_of(np.random.default_rng([step, steps]))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        set_learning_rate(optimizer, learning_rate, step, steps)
        optimizer.step()
        bar.set_postfix_str(shown, refresh=False)
        if (step + 1) % 100 == 0 or step + 1 == steps:
            saved = {"model": module.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            save_checkpoint(saved, file)
