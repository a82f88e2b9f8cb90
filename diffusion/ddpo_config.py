"""What `mmrlhf diffusion ddpo` can be told, and which values it takes."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmrlhf.config import check_seed
from mmrlhf.errors import UserError


@dataclass(frozen=True)
class DDPOConfig:
    """Fine-tune a text-to-image model with Denoising Diffusion Policy Optimization."""

    model: str
    """tiny-sd, a folder that StableDiffusionPipeline.save_pretrained wrote, or a hub id."""
    prompts: Path
    """Text file with a training prompt a line."""
    reward: str
    """Folder that `mmrlhf reward train` wrote, or a reward's name."""
    out: Path
    """Folder for LoRA weights (or model/), metrics.jsonl, checkpoint.pt and samples/."""
    epochs: int = 100
    """Rounds of sampling and training."""
    samples_per_epoch: int = 64
    """Images drawn each epoch."""
    sample_batch_size: int = 16
    """Images drawn at a time."""
    train_batch_size: int = 16
    """Samples in a forward pass of training, one denoising step each."""
    gradient_accumulation: int = 1
    """Train batches (each with all its denoising steps) an optimizer step."""
    num_steps: int = 50
    """Denoising steps."""
    guidance_scale: float = 5.0
    """Classifier-free guidance, the same in training as in sampling; 1 is none (half the work)."""
    eta: float = 1.0
    """Noise of the denoising steps: 1 is DDPM's, above 0."""
    lora_rank: int = 4
    """Rank of the LoRA; 0 trains all weights of the UNet."""
    lora_alpha: float | None = None
    """Scale of the LoRA is alpha / rank, above 0; None means 1."""
    lora_targets: Literal["attention", "attention-ff", "all"] = "attention"
    """Layers of the UNet that get LoRA weights."""
    learning_rate: float = 3e-4
    """Of AdamW, constant; about 1e-5 for full weights."""
    clip_range: float = 1e-4
    """Ratios count up to this far from 1; belongs to log-probs averaged over latent dimensions."""
    advantage_clip: float = 5.0
    """Advantages are cut to this many standard deviations."""
    inner_epochs: int = 1
    """Passes over an epoch's samples."""
    timestep_fraction: float = 1.0
    """Share of each sample's denoising steps to train on, drawn anew each pass."""
    samples_per_prompt: int = 1
    """Images of each prompt drawn in an epoch."""
    prompt_buffer_size: int = 16
    """Latest rewards of each prompt that its mean and spread are taken from."""
    prompt_min_count: int = 16
    """A prompt with fewer rewards than this is compared with the epoch's whole batch instead."""
    kl_weight: float = 0.0
    """Penalty on the KL of a step to the start (nats, summed over latent dimensions); costs one more forward pass."""
    kl_budget: float | None = None
    """Stop before the KL of the whole path to the start (nats) exceeds this; the update that would is taken back.
    Such a run goes on with --resume only under a higher budget, or none."""
    kl_samples: int = 16
    """Samples of each epoch on which that KL is measured."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    gradient_checkpointing: bool = False
    """Less memory for about a third more time."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the frozen weights; LoRA weights are float32."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 …"""
    seed: int = 0
    """Same seed, same run."""
    save_every: int = 1
    """Epochs between checkpoints."""
    images_every: int = 10
    """Epochs between pictures in samples/ of the same prompts with the same noise; 0 is none."""
    resume: bool = False
    """Go on with the run in OUT, as if it had never stopped."""


def validate(config: DDPOConfig) -> None:
    """UserError for a value outside its range."""
    at_least_one = (
        "epochs", "samples_per_epoch", "sample_batch_size", "train_batch_size", "gradient_accumulation", "num_steps",
        "inner_epochs", "samples_per_prompt", "prompt_buffer_size", "prompt_min_count", "kl_samples", "save_every",
    )  # fmt: skip
    above_zero = ("eta", "learning_rate", "clip_range", "advantage_clip", "max_grad_norm", "timestep_fraction")
    not_negative = ("lora_rank", "kl_weight", "images_every", "guidance_scale")
    for names, low, words in (
        (at_least_one, 1, "1 or more"),
        (not_negative, 0, "0 or more"),
        (above_zero, 0, "above 0"),
    ):
        for name in names:
            value = getattr(config, name)
            if not math.isfinite(value) or value < low or (names is above_zero and value == 0):
                raise UserError(f"--{name.replace('_', '-')} got {value}, allowed is {words}")
    for name in ("eta", "timestep_fraction"):
        if getattr(config, name) > 1:
            raise UserError(f"--{name.replace('_', '-')} got {getattr(config, name)}, allowed is above 0 up to 1")
    if config.prompt_min_count > config.prompt_buffer_size:
        raise UserError(
            f"--prompt-min-count got {config.prompt_min_count}, allowed is up to --prompt-buffer-size "
            f"{config.prompt_buffer_size}"
        )
    if config.lora_alpha is not None and not 0 < config.lora_alpha < math.inf:
        raise UserError(f"--lora-alpha got {config.lora_alpha}, allowed is above 0: leave it out for a scale of 1")
    if config.kl_budget is not None and not 0 < config.kl_budget < math.inf:
        raise UserError(f"--kl-budget got {config.kl_budget}, allowed is above 0: leave it out for no limit")
    check_seed(config.seed)
