"""GRPO (Shao et al. 2024, https://arxiv.org/abs/2402.03300) and RLOO (Ahmadian et al. 2024, https://arxiv.org/abs/2402.14740).

The answers to a prompt are judged against one another, so that no value function is needed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmrlhf.config import check
from mmrlhf.rl import (
    advantages_of_rated,
    clipped_surrogate,
    group_advantages,
    group_spreads,
    kl_k1,
    kl_k3,
    leave_one_out_advantages,
)
from mmrlhf.runs import RunResult
from mmrlhf.training import Loss
from vlm.answer_rewards import AnswerReward
from vlm.policy import VisionLanguagePolicy
from vlm.preference_data import read_prompts, told
from vlm.rollouts import (
    Measured,
    Rollout,
    RolloutConfig,
    answer,
    answer_kl,
    answer_kl_now,
    check_numbers,
    diagnose,
    encoded,
    measure,
    prompts_of,
    prompts_that_fit,
    rollout_figures,
    totals,
    train_on_answers,
    updates_of,
    validate_rollouts,
)
from vlm.segment_reward import load_answer_reward
from vlm.training import begin, load_policy

ADVANTAGES = {"group": group_advantages, "leave-one-out": leave_one_out_advantages}


@dataclass(frozen=True, kw_only=True)
class GRPOConfig(RolloutConfig):
    """Fine-tune a vision-language model on its own answers, judged against others to the same prompt: GRPO, RLOO."""

    prompts_per_epoch: int = 8
    """Prompts that are answered each epoch."""
    samples_per_prompt: int = 8
    """Answers a prompt, which are compared with one another."""
    advantages: Literal["group", "leave-one-out"] = "group"
    """group: reward less the group's mean, over its spread (GRPO); leave-one-out: less the mean of the others (RLOO)."""
    loss: Literal["grpo", "tokens"] = "grpo"
    """grpo: each answer counts alike, whatever its length; tokens: each token does, so that long answers count more."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Where the KL to the start is held against: loss, the k3 of each token (GRPO); reward, the k1 of the answer (RLOO)."""
    kl_weight: float = 0.04
    """How strongly the policy is held to the start."""


def validate(config: GRPOConfig) -> None:
    """UserError for a value outside its range."""
    validate_rollouts(config, at_least_one=("prompts_per_epoch",), not_negative=("kl_weight",))
    check(config, "samples_per_prompt", lambda value: value >= 2, "2 or more: answers are compared with one another")


def train(
    config: GRPOConfig,
    *,
    reward: AnswerReward | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> RunResult:
    """Run the algorithm; `reward` stands in for the one that `config.reward` names, `on_epoch` gets each line of metrics.

    In a line, the rewards, `kl` and `entropy` are of the policy that gave the epoch's answers, the rest of the training on them.
    UserError where rewards or gradients are no longer numbers: the last checkpoint stays as it is.
    """
    validate(config)
    prompts = read_prompts(config.prompts)
    judge = load_answer_reward(config.reward, config.device) if reward is None else reward
    policy = load_policy(config, told(prompts))
    usable = prompts_that_fit(policy, prompts, config)
    run = begin("grpo", config, told(prompts), policy=policy, on_epoch=on_epoch)
    count, each = config.prompts_per_epoch, config.samples_per_prompt
    # the only update on an epoch's answers measures how likely they were as it goes
    once = config.inner_epochs * updates_of(config, count * each) == 1
    for epoch in run.epochs():
        asked = [row for row in prompts_of(usable, epoch, count, config.seed) for _ in range(each)]
        rollout = answer(policy, asked, judge, config, epoch)
        check_numbers(run, rollout, epoch)
        own = not once or config.kl_in == "reward" or config.kl_budget is not None
        old = measure(policy, rollout, config, own=own)
        worth = totals(rollout, config)
        if config.kl_in == "reward":
            worth = worth - config.kl_weight * kl_k1(old.log_probs, old.reference).sum(dim=1)
        advantages = advantages_of_rated(worth.view(count, each), ADVANTAGES[config.advantages]).flatten()
        line = {"epoch": epoch, **rollout_figures(rollout), **group_spreads(totals(rollout, config).view(count, each))}
        before = run.snapshot()
        rows = worth.isfinite().nonzero().flatten()
        line |= train_on_answers(
            run, rollout, rows, partial(batch_loss, policy, rollout, old, advantages, own, config), epoch
        )
        if own:
            line["kl"] = answer_kl(old.log_probs, old.reference)
            line["entropy"] = float(old.entropies[old.mask].mean())
        else:
            line["kl"] = line["token_kl"] * float(torch.tensor([len(rollout.tokens[i]) for i in rows]).float().mean())
        if config.kl_budget is not None:
            run.hold_to_budget(answer_kl_now(policy, rollout, old, config), before)
        line |= {"beta": config.kl_weight, "seconds": run.seconds()}
        run.record(line, diagnose([*run.metrics, line], config), ("reward_mean", "kl", "clip_fraction"))
    return run.close()


def batch_loss(
    policy: VisionLanguagePolicy,
    rollout: Rollout,
    old: Measured,
    advantages: Float[Tensor, " b"],
    measured: bool,
    config: GRPOConfig,
    tokens_per_answer: float,
    places: Int[Tensor, " n"],
) -> Loss:
    """The loss of some answers, a mean over their tokens. Where `old` has not measured log π, it is that of now."""
    batch = encoded(policy, rollout, places)
    scored = policy.score(batch, temperature=config.temperature, entropy=not measured)
    width, device = batch.mask.shape[1], batch.mask.device
    before, reference = (each[places, :width].to(device) for each in (old.log_probs, old.reference))
    weights = torch.ones(len(places), 1, device=device)
    if config.loss == "grpo":
        weights = tokens_per_answer / batch.mask.sum(dim=1, keepdim=True)
    loss, figures = grpo_loss(
        scored.log_probs, before if measured else scored.log_probs.detach(), reference, batch.mask,
        advantages[places].unsqueeze(1).to(device), weights, config.clip_range,
        config.kl_weight if config.kl_in == "loss" else 0.0,
    )  # fmt: skip
    if not measured:
        figures["entropy"] = float(scored.entropies.detach()[batch.mask].mean())
        figures["token_kl"] = float(kl_k1(scored.log_probs.detach(), reference)[batch.mask].mean())
    return loss, {"loss": float(loss.detach())} | figures


def grpo_loss(
    log_probs: Float[Tensor, "b t"],
    old_log_probs: Float[Tensor, "b t"],
    reference: Float[Tensor, "b t"],
    mask: Bool[Tensor, "b t"],
    advantages: Float[Tensor, "b 1"],
    weights: Float[Tensor, "b 1"],
    clip_range: float,
    kl_weight: float,
) -> Loss:
    """The mean over the tokens of `mask` of w·(clipped surrogate + `kl_weight` · k3 to the start) (Shao et al. 2024, eq. 3, 4).

    With weights w of mean length / own length each answer counts alike. Metrics: the surrogate's, and `k3`.
    """
    # the surrogate is homogeneous in A: it may carry the weight
    loss, figures = clipped_surrogate(log_probs, old_log_probs, advantages * weights, clip_range, mask)
    near = kl_k3(log_probs, reference)
    return loss + kl_weight * (weights * near)[mask].mean(), figures | {"k3": float(near.detach()[mask].mean())}
