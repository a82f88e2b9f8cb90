"""PPO on a vision-language model's answers (Schulman et al. 2017; Ziegler et al. 2019; Ouyang et al. 2022; Zheng et al. 2023).

Each token is an action. Its reward is −β(log π − log π_ref), and what the reward model says of the part of the answer that it
completes, or of the whole at the last token. https://arxiv.org/abs/1909.08593, https://arxiv.org/abs/2203.02155
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmrlhf.rewards.language.inputs import Row
from mmrlhf.rl import AdaptiveKL, clipped_surrogate, explained_variance, gae, kl_k1, whiten
from mmrlhf.runs import RunResult
from mmrlhf.seeding import seeded
from mmrlhf.training import Loss, Stateful, TrainingRun
from vlm.answer_rewards import AnswerReward
from vlm.critic import Critic
from vlm.policy import VisionLanguagePolicy
from vlm.ppo_config import PPOConfig, validate
from vlm.preference_data import read_prompts, told
from vlm.rollouts import (
    Measured,
    Rollout,
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
)
from vlm.segment_reward import load_answer_reward
from vlm.token_rewards import offsets_of, token_rewards
from vlm.training import begin, load_policy

TokenLoss = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Any], Loss]
"""(log π, log π_old, advantages, entropies, mask, config) -> a mean over the tokens of the mask, and figures."""


class Targets(NamedTuple):
    """What an epoch's tokens are trained towards, and the values that the critic gave them."""

    advantages: Float[Tensor, "b t"]
    values: Float[Tensor, "b t"]
    returns: Float[Tensor, "b t"]


class ActorCritic(NamedTuple):
    """A run whose policy answers, the critic and the weight of the KL beside it, and who judges the answers to which prompts."""

    run: TrainingRun[Any, VisionLanguagePolicy]
    critic: Critic
    penalty: AdaptiveKL
    prompts: list[Row]
    judge: AnswerReward


class Sampled(NamedTuple):
    """An epoch's answers, which of them are rated, and how likely they are."""

    rollout: Rollout
    rated: Bool[Tensor, " b"]
    old: Measured


def train(
    config: PPOConfig,
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
    actor = begin_actor_critic("ppo", config, policy, prompts, judge, on_epoch)
    for epoch in actor.run.epochs():
        sampled = sample(actor, epoch)
        learn_epoch(actor, sampled, judged_tokens(policy, sampled.rollout, config), epoch)
    return actor.run.close()


def begin_actor_critic(
    name: str,
    config: PPOConfig,
    policy: VisionLanguagePolicy,
    prompts: Sequence[Row],
    judge: AnswerReward,
    on_epoch: Callable[[dict[str, Any]], None] | None,
    *,
    data: Sequence[str] = (),
    parts: Mapping[str, Stateful] | None = None,
) -> ActorCritic:
    """Take up the last checkpoint, or start; `data` and `parts` are what the run depends on, and keeps, beside PPO's."""
    usable = prompts_that_fit(policy, prompts, config)
    critic = Critic(policy.width, policy.device, learning_rate=config.value_learning_rate, clip=config.value_clip,
                    epochs=config.value_epochs, batch_size=config.train_batch_size)  # fmt: skip
    penalty = AdaptiveKL(config.beta, config.kl_target, config.kl_horizon)
    kept: dict[str, Stateful] = {"critic": critic, "penalty": penalty, **(parts or {})}
    run = begin(name, config, [*told(prompts), *data], parts=kept, policy=policy, on_epoch=on_epoch)
    return ActorCritic(run, critic, penalty, usable, judge)


def sample(actor: ActorCritic, epoch: int) -> Sampled:
    """An epoch's answers, judged and measured. UserError where what they are worth is no number."""
    run, config = actor.run, actor.run.config
    asked = prompts_of(actor.prompts, epoch, config.samples_per_epoch, config.seed)
    rollout = answer(run.policy, asked, actor.judge, config, epoch)
    check_numbers(run, rollout, epoch)
    rated = totals(rollout, config).isfinite()
    return Sampled(rollout, rated, measure(run.policy, rollout, config, states=True))


def learn_epoch(
    actor: ActorCritic,
    sampled: Sampled,
    judged: Float[Tensor, "b t"],
    epoch: int,
    *,
    loss: TokenLoss | None = None,
    improve: Callable[[Int[Tensor, " k"], Targets], dict[str, float]] | None = None,
    held: Float[Tensor, "b t"] | None = None,
    held_now: Callable[..., float] = answer_kl_now,
    figures: Mapping[str, float] | None = None,
    diagnosis: Callable[..., dict[str, str]] = diagnose,
    shown: Sequence[str] = ("reward_mean", "kl", "clip_fraction"),
) -> None:
    """Train policy and critic on an epoch's answers, whose tokens earn `judged` less the penalty, and record how it went.

    `loss` is that of a token, PPO's by default; `improve` trains on the rows that are rated in another way. `held` is the log π
    that is held to the start, where it is not the one that is trained, and `held_now` its KL after the updates. `figures` are
    more to be told of the answers.
    """
    run, critic, config = actor.run, actor.critic, actor.run.config
    (rollout, rated, old), penalty = sampled, actor.penalty
    critic.fit_scale(judged, old.mask & rated.unsqueeze(1))
    against = old if held is None else old._replace(log_probs=held)
    goal = targets(judged, against, critic.values(old.states, old.mask), rated, penalty.beta, config)
    kl, before = answer_kl(against.log_probs, old.reference), run.snapshot()
    line = {"epoch": epoch, **rollout_figures(rollout), **(figures or {}), "kl": kl, "beta": penalty.beta}
    line["entropy"] = float(old.entropies[old.mask].mean())
    line["explained_variance"] = explained_variance(goal.values, goal.returns, old.mask & rated.unsqueeze(1))
    rows = rated.nonzero().flatten()
    if improve is None:
        loss_of = partial(batch_loss, run.policy, critic, rollout, old, goal, config, loss or clipped_loss)
        line |= train_on_answers(run, rollout, rows, loss_of, epoch)
    else:
        line |= improve(rows, goal)
    line |= critic.learn(old.states, goal.values, goal.returns, old.mask, rows, seeded(config.seed, epoch, 2))
    if config.kl_budget is not None:
        run.hold_to_budget(held_now(run.policy, rollout, old, config), before)
    penalty.update(kl, len(rollout.rows))
    line["seconds"] = run.seconds()
    run.record(line, diagnosis([*run.metrics, line], config), shown)


def judged_tokens(policy: VisionLanguagePolicy, rollout: Rollout, config: PPOConfig) -> Float[Tensor, "b t"]:
    """What the reward says, at the tokens that it is for, less the penalty where an answer was cut; 0 where it abstains."""
    rewards = torch.zeros(len(rollout.rows), max(map(len, rollout.tokens)))
    for row, (asked, tokens, ended, judgement) in zip(rewards, zip(*rollout, strict=True), strict=True):
        offsets = offsets_of(policy.tokenizer, tokens, asked.answer or "")
        row[: len(tokens)] = torch.tensor(token_rewards(judgement, offsets, config.reward_at))
        row[len(tokens) - 1] -= 0.0 if ended else config.missing_end_penalty
        if judgement.total != judgement.total:
            row.zero_()
    return rewards


def targets(
    judged: Float[Tensor, "b t"],
    old: Measured,
    values: Float[Tensor, "b t"],
    rated: Bool[Tensor, " b"],
    beta: float,
    config: PPOConfig,
) -> Targets:
    """Advantages, whitened over the tokens of answers that are rated, and returns, of judged rewards less β times the k1."""
    rewards = judged - beta * kl_k1(old.log_probs, old.reference)
    # beyond an answer's end rewards and values are 0, so that nothing comes back from there
    advantages, returns = gae(rewards, values, discount=config.discount, decay=config.gae_lambda)
    return Targets(whiten(advantages, old.mask & rated.unsqueeze(1)), values, returns)


def batch_loss(
    policy: VisionLanguagePolicy,
    critic: Critic,
    rollout: Rollout,
    old: Measured,
    goal: Targets,
    config: PPOConfig,
    token_loss: TokenLoss,
    tokens_per_answer: float,
    places: Int[Tensor, " n"],
) -> Loss:
    """The loss of some answers, a mean over their tokens."""
    batch = encoded(policy, rollout, places)
    scored = policy.score(batch, temperature=config.temperature, entropy=config.entropy_weight > 0)
    width, device = batch.mask.shape[1], batch.mask.device
    before, advantages = (each[places, :width].to(device) for each in (old.log_probs, goal.advantages))
    loss, figures = token_loss(scored.log_probs, before, advantages, scored.entropies, batch.mask, config)
    if config.value_weight:
        values, returns = (each[places, :width] for each in (goal.values, goal.returns))
        loss = loss + config.value_weight * critic.loss(scored.states, values, returns, batch.mask)[0]
    return loss, {"loss": float(loss.detach())} | figures


def clipped_loss(
    log_probs: Float[Tensor, "b t"],
    old_log_probs: Float[Tensor, "b t"],
    advantages: Float[Tensor, "b t"],
    entropies: Float[Tensor, "b t"],
    mask: Bool[Tensor, "b t"],
    config: PPOConfig,
) -> Loss:
    """`ppo_loss` as a config has it."""
    return ppo_loss(log_probs, old_log_probs, advantages, entropies, mask, config.clip_range, config.entropy_weight)


def ppo_loss(
    log_probs: Float[Tensor, "b t"],
    old_log_probs: Float[Tensor, "b t"],
    advantages: Float[Tensor, "b t"],
    entropies: Float[Tensor, "b t"],
    mask: Bool[Tensor, "b t"],
    clip_range: float,
    entropy_weight: float,
) -> Loss:
    """The clipped surrogate less `entropy_weight` times the mean entropy, over the tokens of `mask`; its metrics."""
    loss, figures = clipped_surrogate(log_probs, old_log_probs, advantages, clip_range, mask)
    return loss - entropy_weight * entropies[mask].mean(), figures
