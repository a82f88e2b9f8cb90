"""Reinforcement learning maths shared by the denoising steps of a diffusion model and the tokens of a language model.

Pure functions of tensors, and two small classes for what is known from earlier samples. `b` counts samples, `t` steps or tokens.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmrlhf.errors import UserError

SMALL_SPREAD = 1e-6
"""Rewards whose spread is below this, beside their size, are all alike."""


def clipped_surrogate(
    log_probs: Float[Tensor, "b t"],
    old_log_probs: Float[Tensor, "b t"],
    advantages: Float[Tensor, "b _"],
    clip_range: float,
    mask: Bool[Tensor, "b t"] | None = None,
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """−mean min(ρA, clip(ρ, 1−ε, 1+ε)A) with ρ = exp(log π − log π_old) (Schulman et al. 2017, eq. 7), over the steps of `mask`.

    `advantages` has one entry a step, or one a sample ("b 1"). `clip_range` belongs to the unit of the log-probs: 1e-4 to a
    mean over latent dimensions, 0.2 to a token.
    Metrics: `clip_fraction`, the share of ratios outside the clip range; `approx_kl`, the k3 estimate of KL(π_old‖π) in that
    unit; `ratio_mean`, `ratio_min`, `ratio_max`.
    """
    log_ratio = log_probs - old_log_probs
    ratio = log_ratio.exp()
    gain = torch.minimum(ratio * advantages, ratio.clamp(1 - clip_range, 1 + clip_range) * advantages)
    kept = torch.ones_like(ratio, dtype=torch.bool) if mask is None else mask
    with torch.no_grad():
        ratios = ratio[kept]
        outside = ((ratios - 1).abs() > clip_range).to(ratio.dtype)
        nearness = (ratios - 1 - log_ratio[kept]).mean()
        figures = torch.stack([outside.mean(), nearness, ratios.mean(), ratios.min(), ratios.max()]).tolist()
    names = ("clip_fraction", "approx_kl", "ratio_mean", "ratio_min", "ratio_max")
    return -gain[kept].mean(), dict(zip(names, figures, strict=True))


class PromptStatistics:
    """Running mean and spread of the rewards of each prompt, to turn rewards into advantages (Black et al. 2023, appendix).

    A prompt with fewer than `min_count` remembered rewards (of the last `buffer_size`) is judged by the whole batch instead.
    """

    def __init__(self, buffer_size: int = 16, min_count: int = 16) -> None:
        if not 1 <= min_count <= buffer_size:
            raise UserError(
                f"prompt statistics got min_count {min_count} and buffer_size {buffer_size}, allowed is "
                "1 <= min_count <= buffer_size: raise the buffer or lower the count"
            )
        self.buffer_size, self.min_count = buffer_size, min_count
        self.rewards: dict[str, deque[float]] = {}

    def advantages(self, prompts: Sequence[str], rewards: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Remember these rewards, then (reward − mean) / (std + 1e-6) by prompt; 0 where the reward abstains (NaN)."""
        given = rewards.detach().double().cpu()
        valid = given[given.isfinite()]
        for prompt, reward in zip(prompts, given.tolist(), strict=True):
            if reward == reward:
                self.rewards.setdefault(prompt, deque(maxlen=self.buffer_size)).append(reward)
        advantages = torch.zeros_like(given)
        for prompt in set(prompts):
            rows = torch.tensor([other == prompt for other in prompts])
            remembered = self.rewards.get(prompt, ())
            known = torch.tensor(remembered, dtype=torch.float64) if len(remembered) >= self.min_count else valid
            if len(known):
                advantages[rows] = (given[rows] - known.mean()) / (known.std(correction=0) + 1e-6)
        return advantages.nan_to_num(nan=0.0).to(rewards)

    def state_dict(self) -> dict[str, list[float]]:
        """The remembered rewards as plain data, for a checkpoint."""
        return {prompt: list(buffer) for prompt, buffer in self.rewards.items()}

    def load_state_dict(self, state: Mapping[str, Sequence[float]]) -> None:
        """Take up what `state_dict` gave."""
        self.rewards = {prompt: deque(buffer, maxlen=self.buffer_size) for prompt, buffer in state.items()}


def group_advantages(rewards: Float[Tensor, "g n"]) -> Float[Tensor, "g n"]:
    """(r − mean) / (std + 1e-4) within each of `g` groups of `n` answers to one prompt (GRPO, Shao et al. 2024).

    The standard deviation is the population's, as in flow_grpo, so that a group of one gives 0 and not NaN.
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    return centred / (rewards.std(dim=1, keepdim=True, correction=0) + 1e-4)


def leave_one_out_advantages(rewards: Float[Tensor, "g n"]) -> Float[Tensor, "g n"]:
    """r_i − mean of the group's other rewards (RLOO, Ahmadian et al. 2024); a group needs two answers."""
    size = rewards.shape[1]
    if size < 2:
        raise UserError(
            f"leave-one-out advantages got groups of {size}, allowed is 2 or more: draw more samples a prompt"
        )
    return (rewards - rewards.mean(dim=1, keepdim=True)) * (size / (size - 1))


def advantages_of_rated(rewards: Float[Tensor, "g n"], estimate: Callable[[Tensor], Tensor]) -> Float[Tensor, "g n"]:
    """What `estimate` gives for the rated of each group of `n`; 0 where the reward abstains (NaN), or all but one.

    In float64, as the spread of a group can be small beside its rewards.
    """
    advantages = torch.zeros_like(rewards, dtype=torch.float64)
    for row, group in enumerate(rewards.double()):
        rated = group.isfinite()
        if rated.sum() > 1:
            advantages[row, rated] = estimate(group[rated].unsqueeze(0)).squeeze(0)
    return advantages.to(rewards)


def group_spreads(rewards: Float[Tensor, "g n"]) -> dict[str, float]:
    """Mean spread within groups, and the share of the groups without spread, of the rewards that are numbers."""
    groups = [group[group.isfinite()] for group in rewards.double()]
    spreads = [float(group.std(correction=0)) if len(group) else 0.0 for group in groups]
    flat = [
        spread <= SMALL_SPREAD * max(1.0, float(group.abs().mean()) if len(group) else 0.0)
        for spread, group in zip(spreads, groups, strict=True)
    ]
    return {"group_std_mean": sum(spreads) / len(groups), "zero_spread_groups": sum(flat) / len(groups)}


def whiten(values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"] | None = None) -> Float[Tensor, "*shape"]:
    """(A − mean) / (std + 1e-8), population std, over the entries of `mask`; 0 elsewhere."""
    kept = torch.ones_like(values, dtype=torch.bool) if mask is None else mask
    if not kept.any():
        return torch.zeros_like(values)
    exact = values.double()  # in float32 equal values differ from their mean by as much as the 1e-8
    whitened = (exact - exact[kept].mean()) / (exact[kept].std(correction=0) + 1e-8)
    return torch.where(kept, whitened, torch.zeros_like(exact)).to(values)


def kl_k1(log_probs: Float[Tensor, "*shape"], reference: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """−log ρ, ρ = π_ref(x)/π(x), x ~ π: unbiased for KL(π‖π_ref), can be negative (Schulman 2020)."""
    return log_probs - reference


def kl_k2(log_probs: Float[Tensor, "*shape"], reference: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """½(log ρ)²: biased, never negative, of low variance; its gradient is that of the KL (Schulman 2020)."""
    return 0.5 * (log_probs - reference).square()


def kl_k3(log_probs: Float[Tensor, "*shape"], reference: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """ρ − 1 − log ρ: unbiased and never negative (Schulman 2020)."""
    log_ratio = reference - log_probs
    return torch.expm1(log_ratio) - log_ratio


def gae(
    rewards: Float[Tensor, "b t"], values: Float[Tensor, "b t"], *, discount: float = 1.0, decay: float = 0.95
) -> tuple[Float[Tensor, "b t"], Float[Tensor, "b t"]]:
    """Generalised advantage estimation (Schulman et al. 2016): advantages Σ(γλ)^l δ_{t+l}, and returns = advantages + values.

    δ_t = r_t + γV_{t+1} − V_t; the episode ends after the last step, where V is 0. `discount` is γ, `decay` λ.
    """
    advantages = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    next_value = torch.zeros_like(rewards[:, 0])
    for step in reversed(range(rewards.shape[1])):
        surprise = rewards[:, step] + discount * next_value - values[:, step]
        following = surprise + discount * decay * following
        advantages[:, step] = following
        next_value = values[:, step]
    return advantages, advantages + values


class AdaptiveKL:
    """The weight β of a KL penalty, raised while the KL is over its target and lowered while it is under it.

    β ← β(1 + e·n/horizon), e = clip(KL/target − 1, −0.2, 0.2), n samples, counted up to the horizon (Ziegler et al. 2019,
    section 2.2). Without a target it stays.
    """

    def __init__(self, beta: float, target: float | None = None, horizon: int = 10_000) -> None:
        self.beta, self.target, self.horizon = beta, target, horizon

    def update(self, kl: float, samples: int) -> None:
        """Follow the KL (nats) that was measured on so many samples."""
        if self.target is not None:
            error = min(max(kl / self.target - 1, -0.2), 0.2)
            self.beta *= 1 + error * min(1.0, samples / self.horizon)

    def state_dict(self) -> dict[str, float]:
        """β, for a checkpoint."""
        return {"beta": self.beta}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Take up what `state_dict` gave."""
        self.beta = state["beta"]


def value_loss(
    values: Float[Tensor, "b t"],
    old_values: Float[Tensor, "b t"],
    returns: Float[Tensor, "b t"],
    clip: float,
    mask: Bool[Tensor, "b t"] | None = None,
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """½ mean max((V−R)², (clip(V, V_old±ε)−R)²) over `mask`: what V moves beyond ε earns nothing. Metrics: `value_loss`."""
    near = old_values + (values - old_values).clamp(-clip, clip)
    errors = torch.maximum((values - returns).square(), (near - returns).square())
    loss = 0.5 * (errors if mask is None else errors[mask]).mean()
    return loss, {"value_loss": float(loss.detach())}


def explained_variance(
    values: Float[Tensor, "b t"], returns: Float[Tensor, "b t"], mask: Bool[Tensor, "b t"] | None = None
) -> float:
    """1 − Var(R − V)/Var(R) over `mask`: 1 is perfect, 0 no better than a constant, below 0 worse; 0 where R has no spread."""
    if mask is not None:
        values, returns = values[mask], returns[mask]
    spread = float(returns.var(correction=0))
    return 1 - float((returns - values).var(correction=0)) / spread if spread > 0 else 0.0
