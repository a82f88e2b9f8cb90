"""Advantage actor-critic on a vision-language model's answers (Mnih et al. 2016, https://arxiv.org/abs/1602.01783).

PPO without its ratios: each answer is learnt from once, right after it was given, so that nothing has to be clipped.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmrlhf.errors import UserError
from mmrlhf.rl import kl_k3
from mmrlhf.runs import RunResult
from mmrlhf.training import Loss
from vlm.answer_rewards import AnswerReward
from vlm.ppo import begin_actor_critic, judged_tokens, learn_epoch, sample
from vlm.ppo_config import PPOConfig
from vlm.ppo_config import validate as validate_ppo
from vlm.preference_data import read_prompts, told
from vlm.rollouts import diagnose
from vlm.segment_reward import load_answer_reward
from vlm.training import load_policy


@dataclass(frozen=True, kw_only=True)
class A2CConfig(PPOConfig):
    """Fine-tune a vision-language model on its own answers: advantage actor-critic, each answer learnt from once.

    Refused, as they say nothing here, are --clip-range and more than one of --inner-epochs.
    """

    samples_per_epoch: int = 32
    """Answers drawn each epoch; where they are more than an update takes, the later updates learn from slightly old ones."""
    inner_epochs: int = 1
    """One pass over an epoch's answers."""
    entropy_weight: float = 0.01
    """Bonus for the entropy (nats) of a token's distribution."""


def validate(config: A2CConfig) -> None:
    """UserError for a value outside its range, or an option of PPO that has no say here."""
    validate_ppo(config)
    for name, only in (("inner_epochs", A2CConfig.inner_epochs), ("clip_range", A2CConfig.clip_range)):
        if getattr(config, name) != only:
            raise UserError(
                f"--{name.replace('_', '-')} got {getattr(config, name)}, but a2c learns from an answer once and clips nothing: "
                "leave it out, or use vlm ppo"
            )


def train(
    config: A2CConfig,
    *,
    reward: AnswerReward | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> RunResult:
    """Run the algorithm; `reward` stands in for the one that `config.reward` names, `on_epoch` gets each line of metrics.

    In a line, the rewards, `kl`, `entropy` and `explained_variance` are of the policy that gave the epoch's answers, the rest of
    the training on them. UserError where rewards or gradients are no longer numbers: the last checkpoint stays as it is.
    """
    validate(config)
    prompts = read_prompts(config.prompts)
    judge = load_answer_reward(config.reward, config.device) if reward is None else reward
    policy = load_policy(config, told(prompts))
    actor = begin_actor_critic("a2c", config, policy, prompts, judge, on_epoch)
    for epoch in actor.run.epochs():
        sampled = sample(actor, epoch)
        judged = judged_tokens(policy, sampled.rollout, config)
        learn_epoch(
            actor, sampled, judged, epoch, loss=a2c_loss, diagnosis=problems, shown=("reward_mean", "kl", "entropy")
        )
    return actor.run.close()


def a2c_loss(
    log_probs: Float[Tensor, "b t"],
    old_log_probs: Float[Tensor, "b t"],
    advantages: Float[Tensor, "b t"],
    entropies: Float[Tensor, "b t"],
    mask: Bool[Tensor, "b t"],
    config: A2CConfig,
) -> Loss:
    """−mean A log π less `entropy_weight` times the mean entropy, over the tokens of `mask` (Mnih et al. 2016, section 4).

    Metrics: `approx_kl`, the k3 estimate of KL(π_old‖π), 0 in the first update on an epoch's answers.
    """
    gain = (advantages * log_probs)[mask].mean()
    with torch.no_grad():
        apart = kl_k3(old_log_probs, log_probs)[mask].mean()
    return -gain - config.entropy_weight * entropies[mask].mean(), {"approx_kl": float(apart)}


def problems(metrics: Sequence[dict[str, Any]], config: A2CConfig) -> dict[str, str]:
    """`vlm.rollouts.diagnose`, of which what it says of clipped ratios cannot be said here."""
    return diagnose([line | {"clip_fraction": float("nan")} for line in metrics], config)
