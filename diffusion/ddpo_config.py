"""What `mmrlhf diffusion ddpo` can be told, and which values it takes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from diffusion.tuning_config import TuningConfig, validate_tuning
from mmrlhf.errors import UserError


@dataclass(frozen=True, kw_only=True)
class DDPOConfig(TuningConfig):
    """Fine-tune a text-to-image model with Denoising Diffusion Policy Optimization."""

    prompts: Path
    """Text file with a training prompt a line."""
    reward: str
    """Folder that `mmrlhf reward train` wrote, or a reward's name."""
    samples_per_epoch: int = 64
    """Images drawn each epoch."""
    sample_batch_size: int = 16
    """Images drawn at a time."""
    algorithm: Literal["importance", "score-function"] = "importance"
    """importance: clipped ratios, several updates an epoch; score-function: one update an epoch, of −A log p."""
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
    baseline: Literal["prompt", "value"] = "prompt"
    """What a reward is compared with: prompt is the mean and spread of its prompt's rewards; value is what a small network,
    trained on the run's samples, expects from each denoising state."""
    value_learning_rate: float = 1e-3
    """Of the value network's Adam."""
    value_epochs: int = 10
    """Passes of the value network over an epoch's samples, in batches of --train-batch-size."""
    value_clip: float = 0.2
    """A value moves up to this far in an epoch, in standard deviations of the reward; 0 is no limit."""
    value_lambda: float = 1.0
    """1 compares the final reward with the value of a state; below, more of the values of the states after it, down to 0."""
    prompt_buffer_size: int = 16
    """Latest rewards of each prompt that its mean and spread are taken from."""
    prompt_min_count: int = 16
    """A prompt with fewer rewards than this is compared with the epoch's whole batch instead."""
    kl_weight: float = 0.0
    """Penalty on the KL of a step to the start (nats, summed over latent dimensions); costs one more forward pass."""


def validate(config: DDPOConfig) -> None:
    """UserError for a value outside its range."""
    validate_tuning(
        config,
        at_least_one=(
            "samples_per_epoch", "sample_batch_size", "inner_epochs", "samples_per_prompt", "prompt_buffer_size",
            "prompt_min_count", "kl_samples", "value_epochs",
        ),
        not_negative=("kl_weight", "value_clip"),
        above_zero=("eta", "clip_range", "advantage_clip", "timestep_fraction", "value_learning_rate"),
        up_to_one=("timestep_fraction", "value_lambda"),
    )  # fmt: skip
    if config.algorithm == "score-function" and config.inner_epochs > 1:
        raise UserError(
            f"--inner-epochs got {config.inner_epochs}, allowed is 1 with --algorithm score-function: after an update the "
            "samples are no longer the policy's own"
        )
    if config.prompt_min_count > config.prompt_buffer_size:
        raise UserError(
            f"--prompt-min-count got {config.prompt_min_count}, allowed is up to --prompt-buffer-size "
            f"{config.prompt_buffer_size}"
        )
