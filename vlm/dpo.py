"""Direct preference optimization of a vision-language model (Rafailov et al. 2023, https://arxiv.org/abs/2305.18290)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mmrlhf.runs import RunResult
from vlm.preference_training import PreferenceConfig, Weighting, train_on_choices, validate_preferences


@dataclass(frozen=True, kw_only=True)
class DPOConfig(PreferenceConfig):
    """Fine-tune a vision-language model on better and worse answers: direct preference optimization."""


def train(config: DPOConfig, *, on_epoch: Callable[[dict[str, Any]], None] | None = None) -> RunResult:
    """Every token of an answer counts alike; `on_epoch` gets each line of metrics.

    `loss` and what begins with `implicit_` is of the training in the epoch, what begins with `validation_` of held-out pairs.
    UserError where a gradient is no number: the last checkpoint stays as it is.
    """
    validate_preferences(config)
    return train_on_choices("dpo", config, Weighting(), on_epoch)
