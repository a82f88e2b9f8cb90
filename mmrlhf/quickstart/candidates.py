"""First stage: pictures for training prompts and for held-out prompts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmrlhf.errors import UserError
from mmrlhf.images import content_hash, save_image
from mmrlhf.models import resolve_model
from mmrlhf.quickstart.run import QuickstartConfig, Run
from mmrlhf.types import Images


def read_prompts(model: str) -> list[str]:
    """The prompts that come with a model folder (`prompts.txt`, one a line)."""
    path = Path(resolve_model(model)) / "prompts.txt"
    if not path.is_file():
        raise UserError(f"no prompts.txt in {path.parent}: write one prompt a line there, as tiny-sd's folder has")
    return [line.strip() for line in path.read_text().splitlines() if line.strip()]


def split_prompts(config: QuickstartConfig) -> tuple[list[str], list[str]]:
    """(training prompts, held-out prompts), drawn by the seed."""
    prompts = read_prompts(config.model)
    count = config.train_prompts + config.held_out_prompts
    if count > len(prompts):
        raise UserError(f"{count} prompts wanted, {len(prompts)} there: lower --train-prompts or --held-out-prompts")
    order = np.random.default_rng(config.seed).permutation(len(prompts))[:count]
    picked = [prompts[i] for i in order]
    return picked[: config.train_prompts], picked[config.train_prompts :]


def sample_images(run: Run, prompts: Sequence[str], seed: int, lora: Path | None = None) -> Images:
    """`images_per_prompt` pictures of each prompt; picture i depends on the seed and i alone, whatever the weights."""
    from diffusion.generate import generate_images
    from diffusion.policy import DiffusionPolicy

    config = run.config
    policy = DiffusionPolicy.load(
        config.model, num_steps=config.num_steps, guidance_scale=config.guidance_scale, lora=lora
    )
    return generate_images(
        policy, prompts, seed=seed, images_per_prompt=config.images_per_prompt, batch_size=48, progress=True
    )


def generate_candidates(run: Run) -> dict[str, Any]:
    """Pictures for the training and the held-out prompts, as PNG files."""
    train, held_out = split_prompts(run.config)
    result: dict[str, Any] = {}
    for name, prompts, seed in (("train", train, 1), ("held_out", held_out, 2)):
        images = sample_images(run, prompts, run.config.seed * 1_000 + seed)
        rows = []
        for i, image in enumerate(images):
            path = run.folder / "images" / name / f"{i:05d}.png"
            save_image(image, path)
            rows.append(
                {
                    "prompt": prompts[i // run.config.images_per_prompt],
                    "image": str(path.relative_to(run.folder)),
                    "hash": content_hash(path.read_bytes()),
                }
            )
        result[name] = rows
    return result
