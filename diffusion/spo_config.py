"""What step-by-step preference optimization can be told, and which values it takes."""

import math
from dataclasses import dataclass
from pathlib import Path

from diffusion.tuning_config import TuningConfig, validate_tuning
from mmrlhf.config import check
from mmrlhf.errors import UserError


@dataclass(frozen=True, kw_only=True)
class SPOConfig(TuningConfig):
    """Fine-tune a text-to-image model with step-by-step preference optimization: at each step the best and worst of some."""

    prompts: Path
    """Text file with a training prompt a line."""
    reward: str
    """Folder that `mmrlhf reward train` wrote, or a reward's name."""
    window: tuple[float, float] = (0.25, 1.0)
    """Steps at which candidates are compared, the noisiest being 0: START and END as shares of the path (END up to 1), or as
    numbers of steps, END not among them. 0.25 1 is all but the noisiest quarter, 0 1 all, 4 10 the steps 4 to 9."""
    candidates: int = 4
    """Next latents drawn from the same latents at such a step; each costs a pass through network, decoder and reward."""
    margin: float = 0.0
    """Best and worst candidates whose rewards differ by no more than this, in the reward's unit, are a tie and left out."""
    beta: float = 10.0
    """How strongly the policy is held to the start; belongs to log-probs averaged over latent dimensions, of which Stable
    Diffusion 1.5 has 16,384 and tiny-sd 256."""
    samples_per_epoch: int = 64
    """Paths, and so images, drawn each epoch."""
    sample_batch_size: int = 16
    """Images drawn at a time."""
    inner_epochs: int = 1
    """Passes over an epoch's pairs."""
    epochs: int = 10
    """Rounds of sampling and training."""
    train_batch_size: int = 10
    """Pairs in a forward pass of training; an update is on the pairs of this many paths, times --gradient-accumulation."""
    num_steps: int = 20
    """Denoising steps of sampling."""
    learning_rate: float = 6e-5
    """Of AdamW, constant; about 1e-5 for full weights."""


def validate(config: SPOConfig) -> None:
    """UserError for a value outside its range; whether the window has steps, `window_steps` tells when the model is known."""
    validate_tuning(
        config,
        at_least_one=("samples_per_epoch", "sample_batch_size", "inner_epochs"),
        not_negative=("margin",),
        above_zero=("eta", "beta"),
    )
    check(config, "candidates", lambda value: value >= 2, "2 or more: the best is compared with the worst")
    start, end = config.window
    if not (math.isfinite(end) and 0 <= start < end and (end <= 1 or start == int(start) and end == int(end))):
        raise UserError(
            f"--window got {start:g} {end:g}, allowed is 0 <= START < END, as shares of the path (END up to 1) or as whole "
            "numbers of steps"
        )


def window_steps(window: tuple[float, float], num_steps: int, possible: int) -> range:
    """The numbers of the steps inside a window; of `num_steps` the first `possible` have noise.

    A step is inside when the share of the path before it is at least START and below END. UserError where there is none.
    """
    start, end = window
    if end <= 1:
        start, end = (math.ceil(share * num_steps - 1e-9) for share in window)  # 0.55 · 20 is 11, not a little more
    steps = range(int(start), min(int(end), possible))
    if not steps or end > num_steps:
        raise UserError(
            f"--window got {window[0]:g} {window[1]:g}, allowed are windows that hold some of the steps 0 to {possible - 1}: "
            f"those are the ones with noise of --num-steps {num_steps}"
        )
    return steps
