"""The options that every way to fine-tune a text-to-image model shares, and which values they take."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Literal

from mmrlhf.config import check, check_seed

MAY_DIFFER = (
    "out", "epochs", "resume", "save_every", "images_every", "eval_steps", "kl_budget", "device", "trackers", "compile",
    "attention", "channels_last", "micro_batch_size", "gradient_checkpointing", "shard",
)  # fmt: skip
"""Options that a resumed run may change."""


@dataclass(frozen=True)
class TuningConfig:
    """Fine-tune a text-to-image model."""

    model: str
    """tiny-sd, the folder of a Stable Diffusion 1, 2, XL or 3, or Flux pipeline, or a hub id."""
    out: Path
    """Folder for LoRA weights (or model/), metrics.jsonl, checkpoint.pt and samples/."""
    _: KW_ONLY
    epochs: int = 100
    """Rounds of sampling and training, or passes over the data."""
    train_batch_size: int = 16
    """Samples in a batch of training."""
    micro_batch_size: int | None = None
    """Rows that go through the network at once in training, whatever an update is made of: more are faster, and take more
    memory. None is --train-batch-size; what does not fit into a GPU's memory is halved until it does."""
    gradient_accumulation: int = 1
    """Train batches an optimizer step."""
    num_steps: int = 50
    """Denoising steps of sampling."""
    guidance_scale: float = 5.0
    """Classifier-free guidance of sampling; 1 is none (half the work). Flux takes it as an input of its network."""
    eta: float = 1.0
    """Noise of the denoising steps: 1 is DDPM's; for flow models the a of Flow-GRPO, 0.7 there."""
    size: int | None = None
    """Side of the pictures in pixels; None is the model's own."""
    lora_rank: int = 4
    """Rank of the LoRA; 0 trains all weights of the UNet or transformer."""
    lora_alpha: float | None = None
    """Scale of the LoRA is alpha / rank, above 0; None means 1."""
    lora_targets: Literal["attention", "attention-ff", "all"] = "attention"
    """Layers that get LoRA weights."""
    learning_rate: float = 3e-4
    """Of AdamW, constant; about 1e-5 for full weights."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    ema_decay: float = 0.0
    """The weights that are written and shown are a moving average of those trained, 0.999 say; 0 is no average."""
    kl_samples: int = 16
    """Samples on which the KL to the start is measured after each epoch; 0 is never."""
    kl_budget: float | None = None
    """Stop before the KL of the whole path to the start (nats) exceeds this; the epoch that would is taken back.
    Such a run goes on with --resume only under a higher budget, or none."""
    embedder: str = "tiny-clip"
    """Image embeddings that tell how different a prompt's samples are, where training draws some: tiny-clip, a folder or hub id
    of a CLIP or SigLIP model; "" is not to look."""
    gradient_checkpointing: bool = False
    """Less memory for about a third more time."""
    shard: bool = False
    """Of several processes each keeps a part of the network's weights (FSDP): more GPUs hold a larger model."""
    compile: bool = False
    """torch.compile the network: slower at first, then faster on a GPU."""
    channels_last: bool = False
    """Lay the UNet's weights out as tensor cores like them."""
    attention: str | None = None
    """diffusers' attention backend: native, flash, sage, xformers …; None is the model's own."""
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
    trackers: str = ""
    """Where else figures and pictures go, with commas between: tensorboard, wandb, mlflow, trackio …, if installed."""
    resume: bool = False
    """Go on with the run in OUT, as if it had never stopped."""


def validate_tuning(
    config: TuningConfig,
    *,
    at_least_one: Sequence[str] = (),
    not_negative: Sequence[str] = (),
    above_zero: Sequence[str] = (),
    up_to_one: Sequence[str] = (),
) -> None:
    """UserError for a shared option, or one of those named, outside its range."""
    ones = ("epochs", "train_batch_size", "gradient_accumulation", "num_steps", "save_every", *at_least_one)
    zeros = ("lora_rank", "images_every", "guidance_scale", "kl_samples", "eta", *not_negative)
    positives = ("learning_rate", "max_grad_norm", *above_zero)
    for name in ones:
        check(config, name, lambda value: value >= 1, "1 or more")
    for name in zeros:
        check(config, name, lambda value: value >= 0, "0 or more")
    for name in positives:
        check(config, name, lambda value: value > 0, "above 0")
    for name in ("eta", *up_to_one):
        check(config, name, lambda value: 0 <= value <= 1, "0 up to 1")
    check(config, "ema_decay", lambda value: 0 <= value < 1, "0 up to, but not, 1")
    if config.micro_batch_size is not None:
        check(config, "micro_batch_size", lambda value: value >= 1, "1 or more: leave it out for --train-batch-size")
    if config.lora_alpha is not None:
        check(config, "lora_alpha", lambda value: value > 0, "above 0: leave it out for a scale of 1")
    if config.kl_budget is not None:
        check(config, "kl_budget", lambda value: value > 0, "above 0: leave it out for no limit")
        check(config, "kl_samples", lambda value: value >= 1, "1 or more with a --kl-budget")
    check_seed(config.seed)
