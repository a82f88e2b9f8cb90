"""Dense direct preference optimization (RLHF-V, Yu et al. 2023, https://arxiv.org/abs/2312.00849).

What was corrected counts more: the log-probability of an answer is the mean over its tokens, those of corrected segments
weighted γ, and goes into the loss of DPO.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from mmrlhf.runs import RunResult
from vlm.preference_training import PreferenceConfig, Weighting, train_on_choices, validate_preferences
from vlm.tuning_config import validate_tuning


@dataclass(frozen=True, kw_only=True)
class DenseDPOConfig(PreferenceConfig):
    """Fine-tune a vision-language model on corrected answers: Dense Direct Preference Optimization of RLHF-V."""

    gamma: float = 5.0
    """Weight of the tokens that a correction changed; the others have 1."""
    beta: float = 0.5
    """How strongly the policy is held to the start."""
    variant: Literal["paper", "released"] = "paper"
    """paper: means over tokens, and what was put in or taken out counts as changed; released: as the authors' code, sums, equal
    stretches under 3 tokens between changes count as changed, insertions and deletions do not (it runs gamma 1.1, beta 0.1)."""
    epochs: int = 7
    """Passes over the pairs."""
    learning_rate: float = 5e-7
    """Of AdamW, after a warm-up constant; the paper's, for all weights of a large model: a LoRA takes a hundred times as much."""


VARIANTS: dict[str, dict[str, Any]] = {"paper": {"normalize": True, "absorb": 1, "edits": True},
            "released": {"normalize": False, "absorb": 3, "edits": False}}  # fmt: skip


def train(config: DenseDPOConfig, *, on_epoch: Callable[[dict[str, Any]], None] | None = None) -> RunResult:
    """Tokens of corrected segments count γ times; `on_epoch` gets each line of metrics, which are those of `vlm.dpo.train`."""
    validate_preferences(config)
    validate_tuning(config, above_zero=("gamma",))
    return train_on_choices("dense-dpo", config, Weighting(config.gamma, **VARIANTS[config.variant]), on_epoch)
