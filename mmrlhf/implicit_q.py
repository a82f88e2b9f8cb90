"""The maths of implicit Q-learning on tokens: ILQL (Snell et al. 2022, https://arxiv.org/abs/2206.11871).

Values are learned from given actions and rewards alone: V(s) is an upper expectile of Q over the actions that the data has in s,
near 1 the Q of the best of them (Kostrikov et al. 2021, theorem 3). A conservative term keeps low the Q of actions that the data
lacks, and at decoding Q − V shifts the policy's log-probabilities.
`b` counts answers, `t` tokens, `k` Q-functions, `v` the vocabulary.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmrlhf.training import Loss


def expectile_loss(errors: Float[Tensor, "*s"], expectile: float) -> Float[Tensor, "*s"]:
    """|τ − 1(u < 0)| u² (Snell et al. 2022, eq. 2): its mean is least where the errors' τ-expectile is 0; τ ½ is ½ u²."""
    return (expectile - (errors < 0).to(errors.dtype)).abs() * errors.square()


def bellman_targets(
    rewards: Float[Tensor, "b t"], values: Float[Tensor, "b t"], discount: float
) -> Float[Tensor, "b t"]:
    """r_t + γ V(s_{t+1}), V being 0 after the last; where answers are padded, `values` must be 0 there."""
    after = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    return rewards + discount * after


def conservative_loss(q: Float[Tensor, "*s"], log_sum_exp: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """−log softmax(Q(s, ·))(a), of the Q of the action that was taken, and log Σ exp Q(s, ·) over all (Kumar et al. 2020)."""
    return log_sum_exp - q


def implicit_q_loss(
    q: Float[Tensor, "k b t"],
    log_sum_exp: Float[Tensor, "k b t"],
    target_q: Float[Tensor, "b t"],
    values: Float[Tensor, "b t"],
    rewards: Float[Tensor, "b t"],
    mask: Bool[Tensor, "b t"],
    *,
    expectile: float = 0.7,
    discount: float = 0.99,
    conservative_weight: float = 0.1,
) -> Loss:
    """V towards the expectile of `target_q`, each Q towards r + γV(s'), and the conservative term; means over tokens of `mask`.

    The Q-functions' losses are summed. `target_q` is the lesser of the target copies' Q of each token; no gradient goes through
    it, nor through the V that a Q goes towards. Metrics: the three parts, and the means of `values` and `q`.
    """
    value_part = expectile_loss(target_q.detach() - values, expectile)[mask].mean()
    goals = bellman_targets(rewards, values.detach() * mask, discount)
    q_part = (q - goals).square()[:, mask].mean(dim=1).sum()
    conservative = conservative_loss(q, log_sum_exp)[:, mask].mean(dim=1).sum()
    parts = torch.stack([value_part, q_part, conservative, values[mask].mean(), q[:, mask].mean()]).detach().tolist()
    names = ("value_loss", "q_loss", "conservative_loss", "value", "q")
    return value_part + q_part + conservative_weight * conservative, dict(zip(names, parts, strict=True))


def perturbed(
    logits: Float[Tensor, "*b v"], q: Float[Tensor, "*b v"], values: Float[Tensor, "*b"], weight: float
) -> Float[Tensor, "*b v"]:
    """log π + β(Q − V), up to what all actions share (Snell et al. 2022, section 4.3); `weight` is β, 0 leaves π as it is."""
    return logits + weight * (q - values.unsqueeze(-1))


@torch.no_grad()
def approach(targets: Iterable[Tensor], sources: Iterable[Tensor], rate: float) -> None:
    """target ← (1 − rate) · target + rate · source (Polyak averaging)."""
    for target, source in zip(targets, sources, strict=True):
        target.lerp_(source, rate)
