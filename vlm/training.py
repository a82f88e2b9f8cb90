"""A run that fine-tunes a vision-language model: the core's, with a policy that answers."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxtyping import Int
from torch import Tensor
from tqdm import tqdm

from mmrlhf import distributed
from mmrlhf.runs import settings
from mmrlhf.training import Stateful, TrainingRun, check_run
from vlm.policy import VisionLanguagePolicy
from vlm.tuning_config import MAY_DIFFER, TuningConfig

LEAST_FOR_LORA = 2e-6
MEMORY_ADVICE = "add --gradient-checkpointing or --dtype bfloat16, or lower --max-length"


def begin(
    name: str,
    config: TuningConfig,
    data: Sequence[str],
    *,
    parts: Mapping[str, Stateful] | None = None,
    policy: VisionLanguagePolicy | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> TrainingRun:
    """Take up the last checkpoint, or start. `data` are lines that tell what is learnt from, so that runs can be told apart.

    UserError for a folder of another run, before any model is loaded.
    """
    policy = load_policy(config, data) if policy is None else policy
    if config.lora_rank and config.learning_rate < LEAST_FOR_LORA and distributed.is_main_process():
        tqdm.write(
            f"--learning-rate {config.learning_rate:g} is one for all weights, with which a LoRA hardly moves: give about a "
            f"hundred times as much for --lora-rank {config.lora_rank}",
            file=sys.stderr,
        )
    return TrainingRun(
        name, config, policy, settings(config, data), may_differ=MAY_DIFFER, parts=parts,
        on_epoch=on_epoch, memory_advice=MEMORY_ADVICE,
    )  # fmt: skip


def load_policy(config: TuningConfig, data: Sequence[str]) -> VisionLanguagePolicy:
    """The policy that a config asks for, at its start, once it is clear that the folder can be used; errors as `begin`'s."""
    check_run(config, settings(config, data), MAY_DIFFER)
    return VisionLanguagePolicy.load(
        config.model,
        lora_rank=config.lora_rank,
        lora_alpha=config.lora_alpha,
        adapter=config.adapter,
        device=config.device,
        dtype=config.dtype,
        gradient_checkpointing=config.gradient_checkpointing,
        max_length=config.max_length,
        template=config.template,
        seed=config.seed,
    )


def warm_up(run: TrainingRun, number: int) -> None:
    """The learning rate of update `number` (from 0)."""
    config: Any = run.config
    for group in run.optimizer.param_groups:
        group["lr"] = config.learning_rate * min(1.0, (number + 1) / max(1, config.warmup_steps))


def own_part(rows: Int[Tensor, " n"]) -> Int[Tensor, " own"]:
    """What this process learns from of an update's rows: all of them where it is alone."""
    part = distributed.own_part(len(rows))
    return rows[part.start : part.stop]


def own_batches(rows: Int[Tensor, " n"], size: int) -> tuple[Int[Tensor, " b"], ...]:
    """`own_part` in batches of at most `size`; none where all rows went to other processes."""
    own = own_part(rows)
    return own.split(size) if len(own) else ()


def updates_before(epoch: int, rows: int, batch: int) -> int:
    """How many updates the epochs before this one made."""
    return epoch * -(-rows // batch)
