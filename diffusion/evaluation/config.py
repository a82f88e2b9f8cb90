"""What `mmrlhf diffusion eval` can be told, and which values it takes."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from mmrlhf.config import check_seed
from mmrlhf.errors import UserError

SIDES = ("base", "tuned")
MAY_DIFFER = ("out", "batch_size", "device", "rewards", "embedder", "kl_samples", "shown", "max_prompts")
"""Options that leave the pictures as they are."""


@dataclass(frozen=True)
class EvalConfig:
    """Compare a fine-tuned model with its base, picture by picture. Run it again with the same options to go on."""

    model: str
    """The tuned model: tiny-sd, a pipeline's folder, or a hub id; with --lora, what the LoRA was trained on."""
    prompts: Path
    """PartiPrompts' .tsv, GenEval's .jsonl, both with categories, or a text file with a prompt a line."""
    rewards: str
    """Rewards, with commas between them, each as --reward takes it. Have some that were not trained on."""
    out: Path
    """Folder for eval.json, eval.html, scores.jsonl, items.jsonl and the PNG files in base/ and tuned/."""
    lora: Path | None = None
    """Folder with LoRA weights, such as the --out of `mmrlhf diffusion ddpo`; the base is then --model without them."""
    base: str | None = None
    """Another model to compare with: needed without --lora."""
    images_per_prompt: int = 2
    """Pictures of each prompt and side; diversity takes 2 or more."""
    max_prompts: int | None = None
    """Only so many prompts, spread evenly over the file; None is all. More of them later keeps the pictures drawn."""
    num_steps: int = 50
    """Denoising steps."""
    guidance_scale: float = 5.0
    """Classifier-free guidance; 1 is none."""
    eta: float = 1.0
    """Noise of the denoising steps; 0 is deterministic, and has no KL."""
    size: int | None = None
    """Side of the pictures in pixels; None is the model's own."""
    kl_samples: int = 16
    """Pictures whose denoising paths the KL to the base is measured on (with --lora and no --base); 0 is none."""
    embedder: str = "tiny-clip"
    """Image embeddings for diversity: tiny-clip, a folder or hub id of a CLIP or SigLIP model."""
    shown: int = 8
    """Pairs on the page of the largest gain, and as many of the largest loss, of each reward."""
    batch_size: int = 16
    """Pictures drawn, and scored, at a time."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the model's weights."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 …"""
    seed: int = 0
    """The noise of a picture follows from the seed, its prompt's place in the file, and its number. Also of the bootstrap."""


class Key(NamedTuple):
    """A picture's prompt, by its place in the file, and its number."""

    row: int
    number: int

    @property
    def name(self) -> str:
        """Its file in base/ and tuned/."""
        return f"{self.row:05d}-{self.number:02d}.png"


def validate(config: EvalConfig) -> None:
    """UserError for a value outside its range, or where there is nothing to compare with."""
    ones = ("images_per_prompt", "num_steps", "batch_size")
    zeros = ("guidance_scale", "eta", "kl_samples", "shown")
    for names, low in ((ones, 1), (zeros, 0)):
        for name in names:
            if not low <= getattr(config, name) < math.inf:
                raise UserError(f"--{name.replace('_', '-')} got {getattr(config, name)}, allowed is {low} or more")
    if config.max_prompts is not None and config.max_prompts < 1:
        raise UserError(f"--max-prompts got {config.max_prompts}, allowed is 1 or more: leave it out for all")
    if config.lora is None and config.base is None:
        raise UserError(f"nothing to compare {config.model} with: give its --lora, or its --base model, or both")
    check_seed(config.seed)


def names_of(text: str) -> list[str]:
    """The rewards between commas; `key=value` belongs to the one before it, as in `reward:pessimism=1,criterion=safety`."""
    names: list[str] = []
    for part in (part.strip() for part in text.split(",")):
        if names and re.match(r"\w+=", part):
            names[-1] += f",{part}"
        elif part:
            names.append(part)
    if not names or len(set(names)) < len(names):
        raise UserError(f"--rewards got '{text}', allowed are different rewards with commas between them")
    return names


def spread(count: int, most: int | None) -> list[int]:
    """At most `most` of `count` places, evenly."""
    size = count if most is None else min(count, most)
    return [place * count // size for place in range(size)]
