"""NLPO on a vision-language model's answers (Ramamurthy et al. 2022, https://arxiv.org/abs/2210.01241).

PPO whose policy may only say what lies in the nucleus (the likeliest tokens of total probability p) of a masking policy: a copy
of itself that is renewed now and then. What is drawn, the ratios and the entropies are of the policy within that mask; the KL to
the start is that of the policy without it, which is what the run writes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from mmrlhf.averaging import fill
from mmrlhf.config import check
from mmrlhf.rl import kl_k1
from mmrlhf.runs import RunResult
from vlm.answer_rewards import AnswerReward
from vlm.masked_policy import MaskedPolicy
from vlm.policy import VisionLanguagePolicy
from vlm.ppo import begin_actor_critic, judged_tokens, learn_epoch, sample
from vlm.ppo_config import PPOConfig
from vlm.ppo_config import validate as validate_ppo
from vlm.preference_data import read_prompts, told
from vlm.rollouts import Measured, Rollout, measure
from vlm.segment_reward import load_answer_reward
from vlm.training import load_policy
from vlm.twin import twin


@dataclass(frozen=True, kw_only=True)
class NLPOConfig(PPOConfig):
    """Fine-tune a vision-language model on its own answers, no token from outside a lagged copy's nucleus: NLPO."""

    top_p: float = 0.9
    """A token can be said that is among the likeliest of the masking policy whose probabilities add up to this; 1 is PPO."""
    mask_every: int = 5
    """Epochs after which the masking policy becomes the policy as it is."""


class Masking:
    """The masking policy's weights: a copy of what training changes, for checkpoints too."""

    def __init__(self, policy: VisionLanguagePolicy) -> None:
        self.policy, self.lagged = policy, twin(policy)
        names = [name for name, weight in policy.model.named_parameters() if weight.requires_grad]
        own = dict(self.lagged.model.named_parameters())
        self.weights = {name: own[name] for name in names}

    def renew(self) -> None:
        """Take the policy's weights as they are."""
        fill(list(self.weights.values()), self.policy.parameters())

    def state_dict(self) -> dict[str, Tensor]:
        """The weights, for a checkpoint."""
        return {name: weight.detach().clone() for name, weight in self.weights.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up what `state_dict` gave."""
        fill(list(self.weights.values()), [state[name] for name in self.weights])


def validate(config: NLPOConfig) -> None:
    """UserError for a value outside its range."""
    validate_ppo(config)
    check(config, "top_p", lambda value: 0 < value <= 1, "above 0 and up to 1")
    check(config, "mask_every", lambda value: value >= 1, "1 or more")


def train(
    config: NLPOConfig,
    *,
    reward: AnswerReward | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> RunResult:
    """Run the algorithm; `reward` stands in for the one that `config.reward` names, `on_epoch` gets each line of metrics.

    A line is PPO's, `kl` that of the policy without the mask, and `nucleus_mass`, how likely that is to stay within the mask.
    UserError where rewards or gradients are no longer numbers: the last checkpoint stays as it is.
    """
    validate(config)
    prompts = read_prompts(config.prompts)
    judge = load_answer_reward(config.reward, config.device) if reward is None else reward
    loaded = load_policy(config, told(prompts))
    masking = Masking(loaded)
    policy = MaskedPolicy(loaded, masking.lagged, config.top_p)
    actor = begin_actor_critic("nlpo", config, policy, prompts, judge, on_epoch, parts={"masking": masking})
    for epoch in actor.run.epochs():
        if epoch % config.mask_every == 0:
            masking.renew()
        sampled = sample(actor, epoch)
        old = sampled.old
        unmasked = unmasked_log_probs(policy, sampled.rollout, config)
        mass = float((unmasked - old.log_probs)[old.mask].exp().mean())
        judged = judged_tokens(policy, sampled.rollout, config)
        learn_epoch(actor, sampled, judged, epoch, held=unmasked, held_now=unmasked_kl_now,
                    figures={"nucleus_mass": mass})  # fmt: skip
    return actor.run.close()


def unmasked_log_probs(policy: MaskedPolicy, rollout: Rollout, config: NLPOConfig) -> Float[Tensor, "b t"]:
    """log π of each token without the mask."""
    with policy.unmasked():
        return measure(policy, rollout, config).log_probs


def unmasked_kl_now(policy: MaskedPolicy, rollout: Rollout, old: Measured, config: NLPOConfig) -> float:
    """KL of an answer to the start (nats) after updates, without the mask; each token weighted by how much likelier it is now."""
    weights = (measure(policy, rollout, config).log_probs - old.log_probs).exp()
    return float((weights * kl_k1(unmasked_log_probs(policy, rollout, config), old.reference)).sum(dim=1).mean())
