"""`mmrlhf reward train` of an image-text scorer: heads on frozen towers, or the towers themselves."""

from pathlib import Path
from typing import Any

from mmrlhf import distributed
from mmrlhf.models import pick_device
from mmrlhf.outcomes import Outcome
from mmrlhf.rewards.clip import CLIPReward
from mmrlhf.rewards.encoders.clip import load_backbone
from mmrlhf.rewards.encoders.dual_encoder import DualEncoder
from mmrlhf.rewards.training.config import Job, Report, TrainConfig, hyperparameters, warmup
from mmrlhf.rewards.training.fit import annotator_weights, fit_reward, split_for_validation
from mmrlhf.rewards.training.rounds import Judgements, forgetting, gather, pairs_only, refuse_monotony
from mmrlhf.rewards.training.table import Objective
from mmrlhf.rewards.training.towers import fine_tune


def make_image_job(config: TrainConfig) -> Job:
    """Read the judgements; the models are loaded when it runs."""
    device = pick_device(config.device)
    judgements = gather(
        config.judgements, config.replay, config.replay_share, config.annotators, config.on_fault, config.seed
    )
    if config.start is None:
        refuse_monotony(judgements.everything, config.judgements)

    def run(checkpoint: Path, state: Any, report: Report) -> CLIPReward:
        start = None if config.start is None else CLIPReward.load(config.start).to(device)
        backbone = load_backbone(config.model).to(device) if start is None else start.backbone
        cut = backbone.count_truncated([judgement.prompt for judgement in judgements.new])
        if cut:
            distributed.say(
                f"note: {cut} prompts are longer than the text tower's {backbone.max_tokens} tokens and are cut"
            )
        if config.train == "head":
            reward = train_heads(config, judgements, backbone, start, report)
        else:
            reward = train_towers(config, judgements, backbone, checkpoint, state, report)
        if judgements.old:
            report(forgetting(start, reward, judgements.old))
        return reward

    return Job(len(judgements.everything), CLIPReward.load, run)


def train_heads(
    config: TrainConfig,
    judgements: Judgements[Outcome],
    backbone: DualEncoder,
    start: CLIPReward | None,
    report: Report,
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
    config: TrainConfig,
    judgements: Judgements[Outcome],
    backbone: DualEncoder,
    checkpoint: Path,
    state: Any,
    report: Report,
) -> CLIPReward:
    """`--train last|lora|full`: with a checkpoint an epoch; rankings as their strict pairs."""
    assert config.train != "head"
    epochs, learning_rate, weight_decay = hyperparameters(config)
    training, held_out = split_for_validation(pairs_only(judgements.everything), config.validation, config.seed)
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
        warmup_steps=warmup(config, epochs, len(training)),
        patience=config.patience,
        last_blocks=config.last_blocks,
        lora_rank=config.lora_rank,
        loss=config.loss,
        label_smoothing=config.label_smoothing,
        negatives=config.negatives,
        weights=annotator_weights(training, judgements.reliability),
        checkpoint=checkpoint,
        state=state,
        on_epoch=report,
    )
