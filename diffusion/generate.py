"""`mmrlhf diffusion generate`: images for a file of prompts, each with noise of its own."""

import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from diffusion.policy import DiffusionPolicy
from diffusion.prompts import tell_of_cut_prompts
from diffusion.trained_with import tell_of_other_drawing
from mmrlhf.config import check_seed
from mmrlhf.data import read_prompts, write_text
from mmrlhf.errors import UserError
from mmrlhf.images import to_pil
from mmrlhf.runs import METRICS, check_folder, claim_folder, settings
from mmrlhf.seeding import seeded
from mmrlhf.types import Images


@dataclass(frozen=True)
class GenerateConfig:
    """Draw images for a file of prompts. Run it again with the same options to go on where it stopped."""

    model: str
    """tiny-sd, a folder that StableDiffusionPipeline.save_pretrained wrote, or a hub id."""
    prompts: Path
    """Text file with a prompt a line."""
    out: Path
    """Folder for the PNG files and items.jsonl, a line {"prompt", "image"} an image."""
    lora: Path | None = None
    """Folder with LoRA weights, such as the --out of `mmrlhf diffusion ddpo`."""
    images_per_prompt: int = 1
    """Images of each prompt."""
    num_steps: int = 50
    """Denoising steps."""
    guidance_scale: float = 5.0
    """Classifier-free guidance; 1 is none."""
    size: int | None = None
    """Side of the pictures in pixels; None is the model's own."""
    eta: float = 1.0
    """Noise of the denoising steps: 0 is deterministic DDIM, 1 what `ddpo` trains with."""
    batch_size: int = 16
    """Images drawn at a time."""
    dtype: str = "float32"
    """float32, bfloat16 or float16."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 …"""
    seed: int = 0
    """The noise of an image follows from the seed, its prompt's place in the file, and its number."""


def validate(config: GenerateConfig) -> None:
    """UserError for a value outside its range."""
    for name, low in (("images_per_prompt", 1), ("num_steps", 1), ("batch_size", 1), ("guidance_scale", 0), ("eta", 0)):
        if not low <= getattr(config, name) < math.inf:
            raise UserError(f"--{name.replace('_', '-')} got {getattr(config, name)}, allowed is {low} or more")
    check_seed(config.seed)


def generate(config: GenerateConfig) -> Path:
    """Write the images that are not there yet, then items.jsonl; returns its path."""
    validate(config)
    prompts = read_prompts(config.prompts)
    wanted = settings(config, prompts)
    check_folder(config.out, wanted, resume=True, may_differ=("out", "batch_size", "device"))
    policy = DiffusionPolicy.load(
        config.model,
        lora=config.lora,
        num_steps=config.num_steps,
        guidance_scale=config.guidance_scale,
        eta=config.eta,
        size=config.size,
        device=config.device,
        dtype=config.dtype,
    )
    tell_of_cut_prompts(policy.family, prompts)
    tell_of_other_drawing(config, config.model, config.lora)
    claim_folder(config.out, wanted)
    names = {
        (row, number): f"{row:05d}-{number:02d}.png"
        for row in range(len(prompts))
        for number in range(config.images_per_prompt)
    }
    missing = [key for key, name in names.items() if not (config.out / name).exists()]
    with tqdm(total=len(names), initial=len(names) - len(missing), desc="generate", unit="image") as bar:
        for start in range(0, len(missing), config.batch_size):
            keys = missing[start : start + config.batch_size]
            started = time.monotonic()
            images = draw(policy, [prompts[row] for row, _ in keys], keys, config.seed)
            for key, image in zip(keys, images, strict=True):
                write_png(image, config.out / names[key])
            with open(config.out / METRICS, "a", encoding="utf-8") as file:
                file.write(json.dumps({"images": len(keys), "seconds": time.monotonic() - started}) + "\n")
            bar.update(len(keys))
    lines = [json.dumps({"prompt": prompts[row], "image": name}) for (row, _), name in names.items()]
    write_text("\n".join(lines) + "\n", config.out / "items.jsonl")
    print(f"{len(names)} images ({len(missing)} new), listed in {config.out / 'items.jsonl'}")
    return config.out / "items.jsonl"


def generate_images(
    policy: DiffusionPolicy,
    prompts: Sequence[str],
    *,
    seed: int,
    images_per_prompt: int = 1,
    batch_size: int = 16,
    progress: bool = False,
) -> Images:
    """`images_per_prompt` images of each prompt, prompt after prompt.

    All noise of an image (the start and every step) depends only on (seed, prompt's index, image's number): not on the
    weights, the batch size or the other prompts. So two calls, before and after training, can be compared pair by pair.
    """
    keys = [(row, number) for row in range(len(prompts)) for number in range(images_per_prompt)]
    batches = []
    with tqdm(total=len(keys), desc="generate", unit="image", disable=not progress, leave=False) as bar:
        for start in range(0, len(keys), batch_size):
            part = keys[start : start + batch_size]
            batches.append(draw(policy, [prompts[row] for row, _ in part], part, seed))
            bar.update(len(part))
    return torch.cat(batches)


def draw(policy: DiffusionPolicy, prompts: Sequence[str], keys: Sequence[tuple[int, int]], seed: int) -> Images:
    """One image a prompt, on the CPU; `keys` are (prompt's index, image's number), which give the noise."""
    return policy.sample(prompts, [seeded(seed, *key) for key in keys]).images.cpu()


def write_png(image: torch.Tensor, path: Path) -> None:
    """Write a PNG whole or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    to_pil(image).save(temporary, format="PNG")
    os.replace(temporary, path)
