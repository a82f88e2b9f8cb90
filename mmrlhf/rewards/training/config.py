"""How `mmrlhf reward train` is asked: its options, their defaults and ranges; and what a kind of reward brings to it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mmrlhf.config import exactly_one
from mmrlhf.errors import UserError
from mmrlhf.rater_quality import check_minimum
from mmrlhf.rewards.clip import CLIPReward
from mmrlhf.rewards.language.model import LanguageReward
from mmrlhf.rewards.training.epochs import Report
from mmrlhf.rewards.training.table import LossName

TrainedReward = CLIPReward | LanguageReward

# what None stands for: epochs, learning rate, weight decay. `full` has PickScore's rate and decay (Kirstain et al. 2023).
DEFAULTS: dict[str, tuple[int, float, float]] = {
    "head": (40, 1e-3, 10.0),
    "last": (10, 1e-5, 0.3),
    "lora": (10, 1e-4, 0.0),
    "full": (10, 3e-6, 0.3),
}


@dataclass(frozen=True)
class TrainConfig:
    """Train a preference scorer on judgements of images, or of answers."""

    data: Path | None = None
    """Judgements, one a line: PAIRS.jsonl {"prompt", "image_0", "image_1", "label_0", "label_1"}, and rankings, ratings and
    vetoes beside them, paths relative to the file; or ANSWERS.jsonl {"prompt", "image", "answer_0", "answer_1", …}."""
    out: Path = field(kw_only=True)
    """Folder for the reward, metrics.jsonl and checkpoint.pt."""
    store: str | None = None
    """Instead of --data: sqlite:///FILE, a path or postgresql://USER@HOST/NAME, what `mmrlhf rate` collected. The answers of now
    are kept as judgements.jsonl in --out; those that the reward of --start learned from count as earlier rounds."""
    source: Literal["all", "human", "simulated", "ai"] = "all"
    """Of a store: all, or only the answers of one kind of rater."""
    min_check_rate: float = 0.0
    """Of a store: without the raters who surely pass less than this share of their check questions, of 5 or more. 0: all."""
    model: str = "tiny-clip"
    """tiny-clip, the folder of a CLIPModel, SiglipModel or open_clip model, or a hub id; a language or vision-language model
    (with or without a head of its own) learns to read answers, or to look at images."""
    train: Literal["head", "last", "lora", "full"] = "head"
    """head: an ensemble of small networks on frozen towers, seconds; last, lora, full: the towers' last blocks, low-rank
    adapters, or all weights, as PickScore."""
    loss: LossName = "bradley-terry"
    """What ties are: half a win each (bradley-terry), or a third outcome (davidson, rao-kupper: image-text models only)."""
    label_smoothing: float = 0.0
    """Share of labels taken to be the wrong way round."""
    annotators: Literal["ignore", "weigh"] = "ignore"
    """weigh: each judgement counts by its annotator's reliability (Dawid and Skene), where several judged the same pairs."""
    negatives: float = 0.0
    """Weight of in-batch text negatives: each preferred image should find its own prompt (last, lora, full)."""
    start: Path | None = None
    """Reward folder to go on from, instead of --model, on a new round of labels."""
    replay: Path | None = None
    """Judgements of earlier rounds, mixed in so that they are not forgotten."""
    replay_share: float = 0.5
    """Share of the training judgements that are replayed, at most."""
    on_fault: Literal["refuse", "skip"] = "refuse"
    """A row that cannot be used ends the training before it begins, or is left out and counted."""
    epochs: int | None = None
    """Passes over the judgements at most; default 40 (head) or 10."""
    learning_rate: float | None = None
    """Of AdamW; default 1e-3 (head), 3e-6 (full), 1e-5 (last) or 1e-4 (lora)."""
    weight_decay: float | None = None
    """Of AdamW; default 10 (head: strong, for there are more features than pairs) or 0.3."""
    batch_size: int = 64
    """Judgements in an update."""
    ensemble: int = 4
    """Heads, each with its own start and resample of the judgements (head)."""
    hidden: int = 64
    """Width of a head's hidden layer; 0 makes it linear (head)."""
    dropout: float = 0.5
    """Share of the hidden units switched off in training (head)."""
    cache: Path | None = None
    """Folder for image features that need not fit into memory, and that later runs on the same model find again (head)."""
    last_blocks: int = 2
    """How many of each tower's last transformer blocks train (last)."""
    lora_rank: int = 16
    """Rank of the adapters, which are merged into the weights at the end (lora)."""
    warmup_steps: int = 500
    """Updates over which the learning rate rises, at most a tenth of all (last, lora, full)."""
    template: str | None = None
    """How a language model reads a prompt and an answer: chat (its own), pair (an encoder's two texts), or a text with {prompt}
    and {answer} in it; default: chat where the model has one."""
    max_length: int | None = None
    """Tokens a language model reads at most, its image's included; default: as many as it can."""
    too_long: Literal["refuse", "truncate", "drop"] = "refuse"
    """What to do with a longer text: truncate cuts the start of its prompt, never any of its answer."""
    micro_batch_size: int | None = None
    """Pairs that a language model reads at a time; the update is still that of the whole batch. Default: all of them."""
    bf16: bool = False
    """A language model computes in mixed precision, where the device can."""
    gradient_checkpointing: bool = False
    """A language model keeps less and computes more (last, lora, full)."""
    validation: float = 0.1
    """Share of the prompts held out to choose the best epoch; 0 keeps the last."""
    patience: int = 10
    """Stop this many epochs after the best."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 …"""
    seed: int = 0
    """Same seed, same reward."""
    resume: bool = False
    """Go on with the run in OUT, as if it had never stopped."""

    @property
    def judgements(self) -> Path:
        """The file of --data. UserError where there is none."""
        if self.data is None:
            raise UserError("got neither --data nor --store: give one of them")
        return self.data


class Job(NamedTuple):
    """One training: on how many judgements, how a reward of its kind is read back, and the run itself.

    `run` gets where the checkpoint goes, the state of an earlier one or None, and what to tell the figures of each epoch.
    """

    judgements: int
    load: Callable[[Path], TrainedReward]
    run: Callable[[Path, Any, Report], TrainedReward]


def hyperparameters(
    config: TrainConfig, defaults: Mapping[str, tuple[int, float, float]] = DEFAULTS
) -> tuple[int, float, float]:
    """(epochs, learning rate, weight decay) with the defaults filled in."""
    given = (config.epochs, config.learning_rate, config.weight_decay)
    epochs, rate, decay = (d if g is None else g for g, d in zip(given, defaults[config.train], strict=True))
    return int(epochs), rate, decay


def warmup(config: TrainConfig, epochs: int, count: int) -> int:
    """Updates over which the learning rate rises: as asked, and a tenth of those over `count` judgements at most."""
    return min(config.warmup_steps, epochs * math.ceil(count / config.batch_size) // 10)


def validate(config: TrainConfig) -> None:
    """UserError for a value outside its range, or two sources of judgements."""
    exactly_one(data=config.data, store=config.store)
    check_minimum(config.min_check_rate, config.store)
    epochs, learning_rate, weight_decay = hyperparameters(config)
    micro = config.micro_batch_size
    checks = [
        ("epochs", epochs, epochs >= 1, "1 or more"),
        ("learning-rate", learning_rate, 0 < learning_rate < math.inf, "above 0"),
        ("weight-decay", weight_decay, 0 <= weight_decay < math.inf, "0 or more"),
        ("batch-size", config.batch_size, config.batch_size >= 1, "1 or more"),
        ("ensemble", config.ensemble, config.ensemble >= 1, "1 or more"),
        ("hidden", config.hidden, config.hidden >= 0, "0 or more"),
        ("dropout", config.dropout, 0 <= config.dropout < 1, "from 0 to below 1"),
        ("warmup-steps", config.warmup_steps, config.warmup_steps >= 0, "0 or more"),
        ("validation", config.validation, 0 <= config.validation < 1, "from 0 to below 1"),
        ("patience", config.patience, config.patience >= 1, "1 or more"),
        ("label-smoothing", config.label_smoothing, 0 <= config.label_smoothing < 0.5, "from 0 to below 0.5"),
        ("negatives", config.negatives, 0 <= config.negatives < math.inf, "0 or more"),
        ("replay-share", config.replay_share, 0 < config.replay_share < 1, "between 0 and 1"),
        ("last-blocks", config.last_blocks, config.last_blocks >= 1, "1 or more"),
        ("micro-batch-size", micro, micro is None or micro >= 1, "1 or more"),
        ("lora-rank", config.lora_rank, config.lora_rank >= 1, "1 or more"),
    ]
    for name, value, right, allowed in checks:
        if not right:
            raise UserError(f"--{name} got {value}, allowed is {allowed}")
