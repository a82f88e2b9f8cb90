"""TRPO on a vision-language model's answers (Schulman et al. 2015, https://arxiv.org/abs/1502.05477).

The answers, rewards, critic and advantages are PPO's. An epoch's answers then give one step of the policy, all of them together:
up the natural gradient of the surrogate, as far as `max_kl` allows (see `mmrlhf.trust_region`).
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from mmrlhf import distributed
from mmrlhf.config import check
from mmrlhf.distributed import is_main_process
from mmrlhf.errors import UserError
from mmrlhf.figures import Figures
from mmrlhf.runs import RunResult
from mmrlhf.training import Loss, TrainingRun
from mmrlhf.trust_region import backtrack, flat, natural_step, slope_along, write
from vlm.answer_rewards import AnswerReward
from vlm.policy import LOGITS_AT_ONCE, VisionLanguagePolicy
from vlm.ppo import Sampled, Targets, begin_actor_critic, judged_tokens, learn_epoch, sample
from vlm.ppo_config import PPOConfig
from vlm.ppo_config import validate as validate_ppo
from vlm.preference_data import read_prompts, told
from vlm.rollouts import (
    PATIENCE,
    AnswersLoss,
    Measured,
    Rollout,
    alike,
    diagnose,
    encoded,
    token_weighted,
)
from vlm.segment_reward import load_answer_reward
from vlm.training import load_policy, own_batches, own_part

UNUSED = ("learning_rate", "warmup_steps", "weight_decay", "max_grad_norm", "clip_range", "inner_epochs", "entropy_weight",
          "value_weight")  # fmt: skip
"""PPO's options that say nothing here: how far a step goes is for `max_kl` alone to say."""


@dataclass(frozen=True, kw_only=True)
class TRPOConfig(PPOConfig):
    """Fine-tune a vision-language model on its own answers: trust region policy optimization, one large step an epoch.

    Refused, as they say nothing here, are --learning-rate, --warmup-steps, --weight-decay, --max-grad-norm, --clip-range,
    --inner-epochs, --entropy-weight and --value-weight.
    """

    max_kl: float = 0.01
    """How far a step may go: the mean over tokens of KL(old policy‖new) (nats)."""
    cg_iterations: int = 10
    """Of the conjugate gradient that solves for the direction; each reads all of the epoch's answers."""
    damping: float = 0.1
    """Added to the Fisher information's diagonal; the larger, the more the direction is that of the plain gradient."""
    halvings: int = 10
    """How often a step that goes too far, or does not raise the surrogate, is halved before it is given up."""
    train_batch_size: int = 32
    """Answers of an update of the value head; they go through the model at once, unless --micro-batch-size says otherwise."""


class Epoch(NamedTuple):
    """What a step is made of: an epoch's answers, the numbers of those that are rated, how likely they were and what they are
    worth, and the layer that gave their logits."""

    rollout: Rollout
    rows: Int[Tensor, " n"]
    old: Measured
    goal: Targets
    head: nn.Module


def validate(config: TRPOConfig) -> None:
    """UserError for a value outside its range, or an option of PPO that has no say here."""
    validate_ppo(config)
    defaults = {field.name: field.default for field in fields(PPOConfig)}
    for name in UNUSED:
        if getattr(config, name) != defaults[name]:
            raise UserError(f"--{name.replace('_', '-')} got {getattr(config, name)}, but trpo has no use for it: "
                            "leave it out; --max-kl says how far a step goes")  # fmt: skip
    check(config, "max_kl", lambda value: value > 0, "above 0")
    check(config, "cg_iterations", lambda value: value >= 1, "1 or more")
    for name in ("damping", "halvings"):
        check(config, name, lambda value: value >= 0, "0 or more")


def train(
    config: TRPOConfig,
    *,
    reward: AnswerReward | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> RunResult:
    """Run the algorithm; `reward` stands in for the one that `config.reward` names, `on_epoch` gets each line of metrics.

    In a line, the rewards, `kl`, `entropy` and `explained_variance` are of the policy that gave the epoch's answers, the rest of
    the step on them (see `take_step`). UserError where rewards or gradients are no longer numbers: the last checkpoint stays.
    """
    validate(config)
    prompts = read_prompts(config.prompts)
    judge = load_answer_reward(config.reward, config.device) if reward is None else reward
    policy = load_policy(config, told(prompts))
    actor = begin_actor_critic("trpo", config, policy, prompts, judge, on_epoch)
    for epoch in actor.run.epochs():
        sampled = sample(actor, epoch)
        judged = judged_tokens(policy, sampled.rollout, config)
        shown = ("reward_mean", "kl", "kl_step")
        learn_epoch(
            actor,
            sampled,
            judged,
            epoch,
            improve=partial(step_on, actor.run, sampled, epoch),
            diagnosis=problems,
            shown=shown,
        )
    return actor.run.close()


def step_on(
    run: TrainingRun[Any, Any], sampled: Sampled, epoch: int, rows: Int[Tensor, " k"], goal: Targets
) -> dict[str, float]:
    """`take_step` on the answers that `rows` names."""
    return take_step(run, Epoch(sampled.rollout, rows, sampled.old, goal, kept_head(run.policy)), epoch)


def take_step(run: TrainingRun[Any, Any], part: Epoch, epoch: int) -> dict[str, float]:
    """Move the policy up the natural gradient, as far as backtracking allows; not at all where no part of the step will do.

    Figures: `step`, the share of the full step that was taken (0: none), `halvings` before that, `kl_step`, the mean KL of a
    token from the old policy, and `surrogate` there, both measured; `grad_norm` of the surrogate; `updates`, 1 or 0.
    """
    policy, config, weights = run.policy, run.config, run.policy.parameters()
    passes = len(own_part(part.rows)) * (
        config.cg_iterations + 2
    )  # for the gradient, and for the curvature along the step too
    with tqdm(total=passes, desc="step", leave=False, unit="answer", disable=not is_main_process()) as bar:
        gradient = -gradient_over(run, part, partial(surrogate_loss, policy, part, config), bar)
        if not gradient.isfinite().all():
            raise run.not_a_number("the gradient of the surrogate", epoch, "lower --max-kl")
        step = natural_step(gradient, partial(curvature_along, run, part, bar), config.max_kl,
                            iterations=config.cg_iterations, damping=config.damping)  # fmt: skip
    start = flat(weights, weights)

    def tried(share: float) -> tuple[float, float]:
        write(weights, start + share * step)
        return surrogate_and_kl(policy, part, config)

    unmoved = float(part.goal.advantages[part.rows][part.old.mask[part.rows]].mean())  # all ratios are 1
    found = backtrack(tried, unmoved, config.max_kl, config.halvings)
    if found is None:
        write(weights, start)
    run.average.follow()
    return {
        "step": found.share if found else 0.0,
        "kl_step": found.kl if found else 0.0,
        "surrogate": found.surrogate if found else unmoved,
        "halvings": found.halvings if found else config.halvings,
        "grad_norm": float(gradient.norm()),
        "updates": 1 if found else 0,
    }


def gradient_over(run: TrainingRun[Any, Any], part: Epoch, loss_of: AnswersLoss, bar: Any) -> Float[Tensor, " w"]:
    """The gradient of a mean over the tokens of all rated answers, some of which go through the model at once.

    Each process reads its part of the answers, and gets the gradient of all.
    """
    lengths, weights = part.old.mask.sum(dim=1), run.policy.parameters()
    places = alike(part.rollout, part.rows)
    loss = partial(token_weighted, loss_of, lengths, float(lengths[places].float().mean()))
    run.learn(own_part(places), loss, len(places), Figures(), bar)
    found = distributed.total(flat(weights, [weight.grad for weight in weights]))
    run.optimizer.zero_grad()
    return found


def curvature_along(
    run: TrainingRun[Any, Any], part: Epoch, bar: Any, vector: Float[Tensor, " w"]
) -> Float[Tensor, " w"]:
    """The Fisher information of a token's distribution, a mean over all tokens, times a vector."""
    # the fused kernels of attention cannot be differentiated twice
    with sdpa_kernel(SDPBackend.MATH):
        return gradient_over(run, part, partial(kl_slope, run.policy, part, run.config, vector), bar)


def surrogate_loss(
    policy: VisionLanguagePolicy,
    part: Epoch,
    config: TRPOConfig,
    tokens_per_answer: float,
    places: Int[Tensor, " b"],
) -> Loss:
    """Minus the surrogate of some answers, a mean over their tokens."""
    batch = encoded(policy, part.rollout, places)
    log_probs = policy.log_probs(batch, temperature=config.temperature)
    return -surrogate(log_probs, *old_and_advantages(part, places, batch.mask), batch.mask), {}


def kl_slope(
    policy: VisionLanguagePolicy,
    part: Epoch,
    config: TRPOConfig,
    vector: Float[Tensor, " w"],
    tokens_per_answer: float,
    places: Int[Tensor, " b"],
) -> Loss:
    """The slope along a vector of the mean KL of some answers' tokens from the policy as it is: its gradient is F · vector."""
    batch = encoded(policy, part.rollout, places)
    states = policy.states(batch)[batch.mask]
    # not the states that were measured: what rounding sets between them would count as a step
    divergence = token_kl(policy, part.head, states.detach(), states, config.temperature).mean()
    return slope_along(divergence, policy.parameters(), vector), {}


@torch.no_grad()
def surrogate_and_kl(policy: VisionLanguagePolicy, part: Epoch, config: TRPOConfig) -> tuple[float, float]:
    """The surrogate, and KL(old‖new) of the tokens' whole distributions, of the policy as it is now: means over tokens.

    Each process measures its part of the answers, and gets the means of all, so that all of them decide alike on a step.
    """
    sums = torch.zeros(3, dtype=torch.float64)  # of the surrogate, of the KL, and how many tokens
    for places in own_batches(alike(part.rollout, part.rows), config.sample_batch_size):
        batch = encoded(policy, part.rollout, places)
        scored, tokens = policy.score(batch, temperature=config.temperature), int(batch.mask.sum())
        gain = surrogate(scored.log_probs, *old_and_advantages(part, places, batch.mask), batch.mask)
        before = part.old.states[places, : batch.mask.shape[1]].to(scored.states.device)
        apart = token_kl(policy, part.head, before[batch.mask], scored.states[batch.mask], config.temperature)
        sums += tokens * torch.tensor([float(gain), float(apart.mean()), 1.0], dtype=torch.float64)
    gain_sum, kl_sum, count = distributed.total(sums).tolist()
    return gain_sum / count, kl_sum / count


def old_and_advantages(
    part: Epoch, places: Int[Tensor, " b"], mask: Bool[Tensor, "b t"]
) -> tuple[Float[Tensor, "b t"], Float[Tensor, "b t"]]:
    """log π_old and the advantages of some answers, beside `mask`."""
    before, advantages = part.old.log_probs, part.goal.advantages
    return before[places, : mask.shape[1]].to(mask.device), advantages[places, : mask.shape[1]].to(mask.device)


def surrogate(
    log_probs: Float[Tensor, "b t"],
    old_log_probs: Float[Tensor, "b t"],
    advantages: Float[Tensor, "b t"],
    mask: Bool[Tensor, "b t"],
) -> Float[Tensor, ""]:
    """The mean of π/π_old · A over the tokens of `mask` (Schulman et al. 2015, eq. 14)."""
    return ((log_probs - old_log_probs).exp() * advantages)[mask].mean()


def token_kl(
    policy: VisionLanguagePolicy,
    old_head: nn.Module,
    old_states: Float[Tensor, "n d"],
    states: Float[Tensor, "n d"],
    temperature: float,
) -> Float[Tensor, " n"]:
    """KL(old‖new) (nats) of the distribution of each token, over the whole vocabulary, from the states before the last layer.

    Not an estimate from the sampled token. The tables of logits are held in parts, but where gradients are wanted all stay.
    """
    head = policy.network.get_output_embeddings()
    parts = []
    size = max(1, LOGITS_AT_ONCE // head.weight.shape[0])
    for before, now in zip(old_states.split(size), states.split(size), strict=True):
        with torch.no_grad():
            old = policy.distributions(before, temperature, old_head)
        new = policy.distributions(now, temperature)
        parts.append((old.exp() * (old - new)).sum(-1))
    return torch.cat(parts)


def kept_head(policy: VisionLanguagePolicy) -> nn.Module:
    """The layer that gives the logits, as it is now: a copy of it where training changes it."""
    head = policy.network.get_output_embeddings()
    trained = any(weight.requires_grad for weight in head.parameters())
    return copy.deepcopy(head).requires_grad_(False) if trained else head


def problems(metrics: Sequence[dict[str, Any]], config: TRPOConfig) -> dict[str, str]:
    """`vlm.rollouts.diagnose`, and where no step was taken for some epochs."""
    recent = metrics[-PATIENCE:]
    found = diagnose(metrics, config)
    if len(recent) == PATIENCE and all(line["updates"] == 0 for line in recent):
        found["no step"] = (
            f"no part of a step kept to --max-kl {config.max_kl:g} and raised the surrogate in {PATIENCE} epochs: raise "
            "--samples-per-epoch, --cg-iterations or --halvings"
        )
    return found
