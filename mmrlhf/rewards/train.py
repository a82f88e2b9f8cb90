"""`mmrlhf reward train`: comparisons in, a folder out that every `--reward` takes."""

import dataclasses
import hashlib
import json
import math
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mmrlhf import distributed
from mmrlhf.checkpoint import load_checkpoint
from mmrlhf.data import is_unused, write_jsonl, write_text
from mmrlhf.errors import UserError
from mmrlhf.rewards.clip import SETTINGS, CLIPReward
from mmrlhf.rewards.encoders.clip import load_backbone, pick_device
from mmrlhf.rewards.encoders.dual_encoder import DualEncoder
from mmrlhf.rewards.training.fit import annotator_weights, fit_reward, split_for_validation
from mmrlhf.rewards.training.rounds import Judgements, forgetting, gather, pairs_only
from mmrlhf.rewards.training.table import LossName, Objective
from mmrlhf.rewards.training.towers import fine_tune

__all__ = ["TrainConfig", "TrainResult", "fit_reward", "train"]

CONFIG, METRICS, CHECKPOINT = "train.json", "metrics.jsonl", "checkpoint.pt"
MAY_DIFFER = ("out", "data", "replay", "start", "cache", "resume", "device")
# what None stands for: epochs, learning rate, weight decay. `full` has PickScore's rate and decay (Kirstain et al. 2023).
DEFAULTS: dict[str, tuple[int, float, float]] = {
    "head": (40, 1e-3, 10.0),
    "last": (10, 1e-5, 0.3),
    "lora": (10, 1e-4, 0.0),
    "full": (10, 3e-6, 0.3),
}


@dataclass(frozen=True)
class TrainConfig:
    """Train a preference scorer on judgements of images."""

    data: Path
    """Judgements, one a line: PAIRS.jsonl {"prompt", "image_0", "image_1", "label_0", "label_1"}, and rankings, ratings and
    vetoes beside them, paths relative to the file."""
    out: Path
    """Folder for the reward, metrics.jsonl and checkpoint.pt."""
    model: str = "tiny-clip"
    """tiny-clip, the folder of a CLIPModel, SiglipModel or open_clip model, or a hub id."""
    train: Literal["head", "last", "lora", "full"] = "head"
    """head: an ensemble of small networks on frozen towers, seconds; last, lora, full: the towers' last blocks, low-rank
    adapters, or all weights, as PickScore."""
    loss: LossName = "bradley-terry"
    """What ties are: half a win each (bradley-terry), or a third outcome (davidson, rao-kupper)."""
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


class TrainResult(NamedTuple):
    """Where the reward is, a dict of figures an epoch, and the reward itself."""

    out: Path
    metrics: list[dict[str, Any]]
    reward: CLIPReward


def train(config: TrainConfig) -> TrainResult:
    """Train, save the reward to `config.out`, return it. A finished run is only read back with `resume`."""
    validate(config)
    distributed.join()
    if config.train == "head" and distributed.size() > 1:
        raise UserError(
            f"--train head got {distributed.size()} processes, allowed is 1: start it without accelerate launch (last, lora and "
            "full share the work)"
        )
    device = pick_device(config.device)
    judgements = gather(
        config.data, config.replay, config.replay_share, config.annotators, config.on_fault, config.seed
    )
    wanted = settings(config)
    check_folder(config.out, wanted, config.resume)
    if config.resume and (config.out / SETTINGS).is_file():
        print(f"the run is already finished; the reward is in {config.out}")
        return TrainResult(config.out, read_metrics(config.out), CLIPReward.load(config.out))
    state = read_state(config.out)
    distributed.wait()  # until all have looked at the folder: from here on the main process writes into it
    start = None if config.start is None else CLIPReward.load(config.start).to(device)
    backbone = load_backbone(config.model).to(device) if start is None else start.backbone
    cut = backbone.count_truncated([judgement.prompt for judgement in judgements.new])
    if cut and distributed.is_main_process():
        print(f"note: {cut} prompts are longer than the text tower's {backbone.max_tokens} tokens and are cut")

    metrics: list[dict[str, Any]] = [] if state is None else list(state["metrics"])

    def report(*lines: dict[str, Any]) -> None:
        metrics.extend(lines)
        if distributed.is_main_process():
            write_jsonl(metrics, config.out / METRICS)

    if distributed.is_main_process():
        write_text(json.dumps(wanted, indent=2) + "\n", config.out / CONFIG)
    report()

    try:
        if config.train == "head":
            reward = train_heads(config, judgements, backbone, start, report)
        else:
            reward = train_towers(config, judgements, backbone, state, report)
        if judgements.old:
            report(forgetting(start, reward, judgements.old))
    except UserError:
        release(config.out)
        raise
    if distributed.is_main_process():
        reward.save(config.out)
        (config.out / CHECKPOINT).unlink(missing_ok=True)
        print(f"{summary(metrics, len(judgements.everything))}; the reward is in {config.out}")
    distributed.wait()
    return TrainResult(config.out, metrics, reward)


def train_heads(
    config: TrainConfig, judgements: Judgements, backbone: DualEncoder, start: CLIPReward | None, report: Any
) -> CLIPReward:
    """`--train head`: short enough to start again where it was stopped."""
    epochs, learning_rate, weight_decay = hyperparameters(config)
    return fit_reward(
        judgements.everything,
        backbone,
        seed=config.seed,
        validation=config.validation,
        reliability=judgements.reliability,
        start=start,
        cache=config.cache,
        on_epoch=report,
        epochs=epochs,
        ensemble=config.ensemble,
        hidden=config.hidden,
        dropout=config.dropout,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        batch_size=config.batch_size,
        patience=config.patience,
        objective=Objective(config.loss, config.label_smoothing),
    )


def train_towers(
    config: TrainConfig, judgements: Judgements, backbone: DualEncoder, state: Any, report: Any
) -> CLIPReward:
    """`--train last|lora|full`: with a checkpoint an epoch; rankings as their strict pairs."""
    assert config.train != "head"
    epochs, learning_rate, weight_decay = hyperparameters(config)
    training, held_out = split_for_validation(pairs_only(judgements.everything), config.validation, config.seed)
    steps = epochs * math.ceil(len(training) / config.batch_size)
    return fine_tune(
        training,
        held_out,
        backbone,
        tune=config.train,
        seed=config.seed,
        epochs=epochs,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        batch_size=config.batch_size,
        warmup_steps=min(config.warmup_steps, steps // 10),
        patience=config.patience,
        last_blocks=config.last_blocks,
        lora_rank=config.lora_rank,
        loss=config.loss,
        label_smoothing=config.label_smoothing,
        negatives=config.negatives,
        weights=annotator_weights(training, judgements.reliability),
        checkpoint=config.out / CHECKPOINT,
        state=state,
        on_epoch=report,
    )


def hyperparameters(config: TrainConfig) -> tuple[int, float, float]:
    """(epochs, learning rate, weight decay) with the defaults filled in."""
    given = (config.epochs, config.learning_rate, config.weight_decay)
    epochs, rate, decay = (d if g is None else g for g, d in zip(given, DEFAULTS[config.train], strict=True))
    return int(epochs), rate, decay


def validate(config: TrainConfig) -> None:
    """UserError for a value outside its range."""
    epochs, learning_rate, weight_decay = hyperparameters(config)
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
        ("lora-rank", config.lora_rank, config.lora_rank >= 1, "1 or more"),
    ]
    for name, value, right, allowed in checks:
        if not right:
            raise UserError(f"--{name} got {value}, allowed is {allowed}")


def settings(config: TrainConfig) -> dict[str, Any]:
    """The config as plain data, with a digest of the judgements, to tell one run from another."""
    plain = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    files = [config.data] if config.replay is None else [config.data, config.replay]
    return plain | {"data_sha256": hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()}


def check_folder(out: Path, wanted: dict[str, Any], resume: bool) -> None:
    """UserError unless `out` is empty or not there, or, with `resume`, holds a run of the same settings."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: give a folder")
    if is_unused(out):
        return
    if not resume:
        raise UserError(
            f"--out {out} already holds files: give an empty folder, or --resume to go on with the run in it"
        )
    try:
        found = json.loads((out / CONFIG).read_text(encoding="utf-8"))
        different = [key for key in wanted if key not in MAY_DIFFER and found.get(key) != wanted[key]]
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"--out {out} holds files but no run ({CONFIG} is missing or broken): give an empty folder"
        ) from error
    if different:
        key = different[0]
        raise UserError(
            f"--out {out} holds a run with other settings ({', '.join(different)}; {key} was {found.get(key)!r}, now "
            f"{wanted[key]!r}): give the settings of that run, or an empty folder"
        )


def release(out: Path) -> None:
    """Give up the folder of a run that failed before its first checkpoint, so that the mended command may have it."""
    if not (out / CHECKPOINT).exists():
        for name in (CONFIG, METRICS):
            (out / name).unlink(missing_ok=True)
        if not any(out.iterdir()):
            out.rmdir()


def read_state(out: Path) -> dict[str, Any] | None:
    """The state to go on from, or None. UserError where the file is broken."""
    try:
        return load_checkpoint(out / CHECKPOINT)
    except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError) as error:
        raise UserError(
            f"the checkpoint {out / CHECKPOINT} is broken: remove it to start from the beginning"
        ) from error


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """The lines of a finished run's metrics.jsonl."""
    return [json.loads(line) for line in (out / METRICS).read_text(encoding="utf-8").splitlines()]


def summary(metrics: list[dict[str, Any]], count: int) -> str:
    """What the last line of the command says."""
    best = max((line["held_out_agreement"] for line in metrics if "held_out_agreement" in line), default=None)
    held_out = "nothing held out" if best is None else f"agreement {best:.3f} on held-out prompts (the best epoch's)"
    epochs = sum("epoch" in line for line in metrics)
    return f"{count} judgements, {epochs} epochs, {held_out}"
