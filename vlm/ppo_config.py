"""What `mmrlhf vlm ppo` can be told, and which values it takes."""

from dataclasses import dataclass
from typing import Literal

from mmrlhf.config import check
from mmrlhf.errors import UserError
from vlm.rollouts import RolloutConfig, validate_rollouts


@dataclass(frozen=True, kw_only=True)
class PPOConfig(RolloutConfig):
    """Fine-tune a vision-language model on its own answers: proximal policy optimization, with rewards for their parts."""

    samples_per_epoch: int = 64
    """Answers drawn each epoch."""
    reward_at: Literal["segments", "end"] = "segments"
    """segments: the last token of each part that the reward judged gets that part's reward; end: the answer's last token gets
    everything."""
    inner_epochs: int = 4
    """Passes over an epoch's answers."""
    beta: float = 0.05
    """Each token loses this times log π − log π_ref: how strongly the policy is held to the start."""
    kl_target: float | None = None
    """The KL of an answer to the start (nats) that beta is adapted to; None is a constant beta."""
    kl_horizon: int = 10_000
    """Answers over which beta is adapted; more are slower."""
    discount: float = 1.0
    """What a reward one token later is worth."""
    gae_lambda: float = 0.95
    """1 compares all that comes with the value of a state, less trusts the values of the states after it, down to 0."""
    entropy_weight: float = 0.0
    """Bonus for the entropy (nats) of a token's distribution."""
    value_learning_rate: float = 0.1
    """Of the value head's Adam: a value moves up to about this far in a step, in the unit of --value-clip."""
    value_epochs: int = 4
    """Passes of the value head over an epoch's answers."""
    value_clip: float = 0.2
    """A value moves up to this far in an epoch, in standard deviations of the first epoch's rewards to come; 0 is no limit."""
    value_weight: float = 0.0
    """Of the value loss in that of the policy, whose weights then learn to foretell too; 0 leaves that to the head alone."""


def validate(config: PPOConfig) -> None:
    """UserError for a value outside its range."""
    validate_rollouts(
        config,
        at_least_one=("samples_per_epoch", "kl_horizon", "value_epochs"),
        not_negative=("beta", "entropy_weight", "value_clip", "value_weight"),
        above_zero=("value_learning_rate",),
        up_to_one=("discount", "gae_lambda"),
    )
    if config.kl_target is not None:
        check(config, "kl_target", lambda value: value > 0, "above 0, or leave it out")
        if config.beta == 0:
            raise UserError("--beta got 0 with a --kl-target, allowed is above 0: it is what gets adapted")
