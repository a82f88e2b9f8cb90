"""`mmrlhf reward train` of a reward that reads: answers compared, or images for a vision-language model to look at."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mmrlhf.answers import Comparison, holds_answers
from mmrlhf.backbones import is_backbone
from mmrlhf.errors import UserError
from mmrlhf.models import pick_device, resolve_model
from mmrlhf.outcomes import Ranking, Rating, strict_pairs
from mmrlhf.rewards import kind_of
from mmrlhf.rewards.encoders.dual_encoder import model_type
from mmrlhf.rewards.language.comparisons import answer_margins, criteria_of
from mmrlhf.rewards.language.model import KIND, LanguageReward
from mmrlhf.rewards.language.train import train_language
from mmrlhf.rewards.training.config import Job, Report, TrainConfig, hyperparameters, warmup
from mmrlhf.rewards.training.fit import annotator_weights, held_out_figures, split_for_validation
from mmrlhf.rewards.training.rounds import OnFault, gather_by, read_answers, read_judgements, refuse_monotony

# what None stands for: epochs, learning rate, weight decay. Rates of the order that reward models of language are trained at.
DEFAULTS: dict[str, tuple[int, float, float]] = {
    "head": (40, 1e-3, 0.1),
    "last": (3, 1e-5, 0.0),
    "lora": (3, 1e-4, 0.0),
    "full": (3, 1e-5, 0.0),
}
OTHERS = ("clip", "siglip", "dinov2", "dinov2_with_registers")  # the models of image-text rewards


def is_asked_for(config: TrainConfig) -> bool:
    """Whether the judgements compare answers, or the model to start from is a language or vision-language model."""
    if holds_answers(config.judgements):
        return True
    if config.start is not None:
        return kind_of(config.start) == KIND
    where = resolve_model(config.model)
    if kind_of(Path(where)) == KIND:
        return True
    if (Path(where) / "open_clip_config.json").is_file() or is_backbone(where):
        return False
    try:
        return model_type(where) not in OTHERS
    except (OSError, ValueError, KeyError):  # the image-text side says what is wrong with it
        return False


def make_job(config: TrainConfig) -> Job:
    """Read the comparisons; the model is loaded when it runs. UserError for options that only image-text rewards have."""
    refuse_others(config)
    device = pick_device(config.device)
    read = partial(labelled_pairs, on_fault=config.on_fault)
    judgements = gather_by(read, config.judgements, config.replay, config.replay_share, config.annotators, config.seed)
    everything, old = judgements.everything, judgements.old
    if config.start is None:
        refuse_monotony(everything, config.judgements)
    training, held_out = split_for_validation(everything, config.validation, config.seed)
    weights = annotator_weights(training, judgements.reliability)

    def run(checkpoint: Path, state: Any, report: Report) -> LanguageReward:
        reward = LanguageReward.from_pretrained(
            config.start or config.model, criteria=criteria_of([*everything, *old]), template=config.template,
            max_length=config.max_length, too_long=config.too_long, seed=config.seed,
        ).to(device)  # fmt: skip
        before = agreement_on(reward, old) if old and config.start is not None else None
        trained = tune(config, training, held_out, reward, weights, checkpoint, state, report)
        if old:
            line = {"earlier_pairs": len(old), "earlier_agreement_after": agreement_on(trained, old)}
            report(line if before is None else line | {"earlier_agreement_before": before})
        return trained

    return Job(len(everything), LanguageReward.load, run)


def tune(
    config: TrainConfig,
    training: list[Comparison],
    held_out: list[Comparison],
    reward: LanguageReward,
    weights: Float[Tensor, " n"],
    checkpoint: Path,
    state: Any,
    report: Report,
) -> LanguageReward:
    """`train_language` with the options of the command."""
    epochs, learning_rate, weight_decay = hyperparameters(config, DEFAULTS)
    return train_language(
        training,
        held_out,
        reward,
        tune=config.train,
        seed=config.seed,
        epochs=epochs,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        batch_size=config.batch_size,
        micro_batch_size=config.micro_batch_size,
        warmup_steps=warmup(config, epochs, len(training)),
        patience=config.patience,
        label_smoothing=config.label_smoothing,
        weights=weights,
        lora_rank=config.lora_rank,
        last_blocks=config.last_blocks,
        bf16=config.bf16,
        gradient_checkpointing=config.gradient_checkpointing and config.train != "head",
        checkpoint=checkpoint,
        state=state,
        on_epoch=report,
    )


def labelled_pairs(path: Path, on_fault: OnFault) -> list[Comparison]:
    """The labelled pairs of answers of a file, or of images (rankings as their strict pairs). UserError for ratings."""
    found: list[Comparison] = []
    if holds_answers(path):
        found += read_answers(path, on_fault)
    else:
        for outcome in read_judgements(path, on_fault):
            if isinstance(outcome, Rating):
                raise UserError(
                    f"{path} holds ratings or vetoes, a language or vision-language model learns from pairs and rankings: leave "
                    "them out, or train an image-text model"
                )
            found += strict_pairs(outcome) if isinstance(outcome, Ranking) else [outcome]
    labelled = [pair for pair in found if pair.has_label]
    if not labelled:
        raise UserError(f"no pair of {path} has a label: give pairs that somebody judged")
    return labelled


def agreement_on(reward: LanguageReward, pairs: list[Comparison]) -> float:
    """Agreement with the pairs that the reward can read; NaN for none."""
    margins = torch.from_numpy(answer_margins(reward, pairs))
    read = ~margins.isnan()
    labels = torch.tensor([pair.label_0 for pair in pairs], dtype=torch.float64)
    return held_out_figures(margins[read], labels[read])["held_out_agreement"] if read.any() else float("nan")


def refuse_others(config: TrainConfig) -> None:
    """UserError for options that mean nothing to a reward that reads."""
    if config.start is None and config.model == "tiny-clip":
        raise UserError(
            f"--data {config.judgements} compares answers, and --model tiny-clip reads none: give the folder or hub id of a "
            "language model, or of a vision-language model where the answers are about images"
        )
    for name, given, allowed in (
        ("loss", config.loss, "bradley-terry"),
        ("negatives", config.negatives, 0.0),
        ("cache", config.cache, None),
    ):
        if given != allowed:
            raise UserError(
                f"--{name} got {given}, allowed for a language or vision-language model is {allowed}: leave it out"
            )
