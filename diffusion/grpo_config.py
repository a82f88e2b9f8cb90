"""What `mmrlhf diffusion grpo` can be told, and which values it takes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from diffusion.tuning_config import TuningConfig, validate_tuning
from mmrlhf.config import check


@dataclass(frozen=True, kw_only=True)
class GRPOConfig(TuningConfig):
    """Fine-tune a text-to-image model with group-relative policy optimization: Flow-GRPO, and MixGRPO with --window."""

    prompts: Path
    """Text file with a training prompt a line."""
    reward: str
    """Folder that `mmrlhf reward train` wrote, or a reward's name."""
    algorithm: Literal["grpo", "rloo"] = "grpo"
    """Advantages: grpo divides by the group's spread, rloo compares with the mean of the group's others."""
    prompts_per_epoch: int = 8
    """Groups drawn each epoch."""
    samples_per_prompt: int = 8
    """Images in a group."""
    sample_batch_size: int = 16
    """Images drawn at a time."""
    num_steps: int = 10
    """Denoising steps of sampling for training."""
    eval_steps: int = 40
    """Denoising steps, without noise, of the pictures in samples/."""
    eta: float = 0.7
    """Noise of the denoising steps: Flow-GRPO's a for flow models; 1 is DDPM's for the others."""
    window: int = 0
    """Steps with noise and gradients, a window that slides over the denoising steps (MixGRPO); 0 is all steps."""
    window_epochs: int = 1
    """Epochs before the window moves on by a step; after the last place it is back at the first."""
    clip_range: float = 1e-4
    """Ratios count up to this far from 1; belongs to log-probs averaged over latent dimensions."""
    advantage_clip: float = 5.0
    """Advantages are cut to this much: standard deviations with grpo, units of the reward with rloo."""
    inner_epochs: int = 1
    """Passes over an epoch's samples."""
    kl_weight: float = 0.04
    """Penalty on the KL of a step to the start, averaged over latent dimensions; above 0 it costs one more forward pass."""


def validate(config: GRPOConfig) -> None:
    """UserError for a value outside its range."""
    validate_tuning(
        config,
        at_least_one=(
            "prompts_per_epoch", "sample_batch_size", "eval_steps", "window_epochs", "inner_epochs", "kl_samples",
        ),
        not_negative=("window", "kl_weight"),
        above_zero=("eta", "clip_range", "advantage_clip"),
    )  # fmt: skip
    check(config, "samples_per_prompt", lambda value: value >= 2, "2 or more: a group compares samples of one prompt")
