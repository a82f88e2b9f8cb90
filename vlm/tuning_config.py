"""The options that every way to fine-tune a vision-language model shares, and which values they take."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Literal

from mmrlhf.config import check, check_seed
from mmrlhf.errors import UserError

MAY_DIFFER = (
    "out", "epochs", "resume", "save_every", "kl_budget", "device", "trackers", "micro_batch_size", "gradient_checkpointing",
)  # fmt: skip
"""Options that a resumed run may change."""


@dataclass(frozen=True)
class TuningConfig:
    """Fine-tune a vision-language model."""

    model: str
    """tiny-llava, the folder of a LLaVA, Qwen-VL or other model of AutoModelForImageTextToText, or a hub id."""
    out: Path
    """Folder for the adapter (or model/), metrics.jsonl and checkpoint.pt."""
    _: KW_ONLY
    adapter: Path | None = None
    """Folder of LoRA weights to start from; they are merged into the start, so that what is written goes beside both."""
    epochs: int = 1
    """Passes over the data, or rounds of answering and training."""
    train_batch_size: int = 32
    """Rows an update of the weights."""
    micro_batch_size: int | None = None
    """Rows that go through the model at once, whatever an update is made of; None is all of an update's. What does not fit
    into a GPU's memory is halved until it does."""
    learning_rate: float = 1e-5
    """Of AdamW, after a warm-up constant; a LoRA takes ten times as much."""
    warmup_steps: int = 0
    """Updates over which the learning rate grows from 0."""
    weight_decay: float = 0.01
    """Of AdamW."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    lora_rank: int = 16
    """Rank of the LoRA beside the language model's linear layers; 0 trains all its weights and the projector's."""
    lora_alpha: float | None = None
    """Scale of the LoRA is alpha / rank; None means 2."""
    ema_decay: float = 0.0
    """The weights that are written are a moving average of those trained, 0.999 say; 0 is no average."""
    kl_budget: float | None = None
    """Stop before the KL of an answer to the start (nats) exceeds this; for methods that let the policy answer."""
    max_length: int | None = None
    """Tokens of prompt, picture and answer that are read; None is what the model can."""
    too_long: Literal["refuse", "drop"] = "refuse"
    """What to do with answers that are longer."""
    template: str | None = None
    """A text with {prompt} and {answer} in it, and maybe <image> (the model's mark of a picture), which else stands in front.
    None is the model's chat template. The run's folder keeps it: what is loaded from there reads and answers with it."""
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
    trackers: str = ""
    """Where else figures go, with commas between: tensorboard, wandb, mlflow, trackio …, if installed."""
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
    for name in ("epochs", "train_batch_size", "save_every", *at_least_one):
        check(config, name, lambda value: value >= 1, "1 or more")
    for name in ("lora_rank", "warmup_steps", "weight_decay", *not_negative):
        check(config, name, lambda value: value >= 0, "0 or more")
    for name in ("learning_rate", "max_grad_norm", *above_zero):
        check(config, name, lambda value: value > 0, "above 0")
    for name in up_to_one:
        check(config, name, lambda value: 0 <= value <= 1, "0 up to 1")
    check(config, "ema_decay", lambda value: 0 <= value < 1, "0 up to, but not, 1")
    for name in ("micro_batch_size", "max_length"):
        if getattr(config, name) is not None:
            check(config, name, lambda value: value >= 1, "1 or more, or leave it out")
    for name in ("lora_alpha", "kl_budget"):
        if getattr(config, name) is not None:
            check(config, name, lambda value: value > 0, "above 0, or leave it out")
    check_seed(config.seed)


def check_no_kl_budget(config: TuningConfig) -> None:
    """UserError for a budget of a KL that a method does not measure which learns from given answers."""
    if config.kl_budget is not None:
        raise UserError(
            f"--kl-budget got {config.kl_budget:g}, but learning from given answers measures no KL: leave it out, and lower "
            "--learning-rate or --epochs to stay near the start"
        )
