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

HELD_OUT_SEED = 2  # the noise of the held-out prompts, before and after


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


def load_policy(run: Run, lora: Path | None = None) -> Any:
    """The run's model as a `DiffusionPolicy`, to sample with; `lora` is a folder of trained weights."""
    from diffusion.policy import DiffusionPolicy

    config = run.config
    return DiffusionPolicy.load(
        config.model, num_steps=config.num_steps, guidance_scale=config.guidance_scale, lora=lora
    )


def sample_images(run: Run, policy: Any, prompts: Sequence[str], seed: int) -> Images:
    """`images_per_prompt` pictures of each prompt; picture i depends on the seed and i alone, whatever the weights."""
    from diffusion.generate import generate_images

    return generate_images(
        policy,
        prompts,
        seed=run.config.seed * 1_000 + seed,
        images_per_prompt=run.config.images_per_prompt,
        batch_size=48,
        progress=True,
    )


def generate_candidates(run: Run) -> dict[str, Any]:
    """Pictures for the training and the held-out prompts, as PNG files."""
    train, held_out = split_prompts(run.config)
    policy = load_policy(run)
    result: dict[str, Any] = {}
    for name, prompts, seed in (("train", train, 1), ("held_out", held_out, HELD_OUT_SEED)):
        images = sample_images(run, policy, prompts, seed)
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
