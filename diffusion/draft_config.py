"""What `mmrlhf diffusion draft` can be told, and which values it takes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from diffusion.tuning_config import TuningConfig, validate_tuning
from mmrlhf.config import check


@dataclass(frozen=True, kw_only=True)
class DRaFTConfig(TuningConfig):
    """Fine-tune a text-to-image model by the gradient of a differentiable reward: DRaFT, AlignProp, ReFL."""

    prompts: Path
    """Text file with a training prompt a line."""
    reward: str
    """Folder that `mmrlhf reward train` wrote, or a reward's name; it must be differentiable."""
    method: Literal["draft-k", "draft-lv", "alignprop", "refl"] = "draft-k"
    """draft-k: gradients through the last steps; draft-lv: through the last one, over several re-noisings of the sample;
    alignprop: as draft-k, the number of steps drawn for each train batch; refl: one jump from a random late step."""
    steps_with_gradient: int = 1
    """Of draft-k: gradients pass this many last steps, the others are made without."""
    renoisings: int = 2
    """Of draft-lv: how often each final sample is noised to the last step again."""
    refl_weight: float = 1e-3
    """Of refl: the loss is this times what the reward lacks of --refl-target."""
    refl_target: float = 2.0
    """Of refl: samples with a reward above this teach nothing."""
    samples_per_epoch: int = 64
    """Images drawn and trained on each epoch."""
    train_batch_size: int = 4
    """Samples at a time; each keeps the activations of the steps with gradient."""
    gradient_accumulation: int = 4
    """Train batches an optimizer step."""
    eta: float = 0.0
    """Noise of the denoising steps: 0 is none, 1 DDPM's."""
    kl_samples: int = 16
    """Samples on which the KL to the start is measured each epoch, by paths with the noise of eta 1 where --eta is 0."""


def validate(config: DRaFTConfig) -> None:
    """UserError for a value outside its range."""
    validate_tuning(
        config,
        at_least_one=("samples_per_epoch", "renoisings", "kl_samples"),
        above_zero=("refl_weight",),
    )
    check(config, "refl_target", lambda value: True, "a finite number")
    check(
        config,
        "steps_with_gradient",
        lambda value: 1 <= value <= config.num_steps,
        f"1 up to --num-steps {config.num_steps}",
    )
