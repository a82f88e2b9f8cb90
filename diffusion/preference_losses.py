"""Losses of direct preference methods: tensors in, (scalar, metrics) out.

The implicit reward of a sample is β log(π_θ / π_ref): how much better the policy denoises it than the start does.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from mmrlhf.losses import Metrics, bradley_terry


def implicit_rewards(errors: Float[Tensor, " b"], reference: Float[Tensor, " b"], beta: float) -> Float[Tensor, " b"]:
    """−½β(‖ε − ε_θ‖² − ‖ε − ε_ref‖²) from the denoising errors of the policy and of the start (Wallace et al. 2023).

    Errors are means over latent dimensions, as in the paper's public trainer: `beta` stands for the paper's βTω(λ_t) times them.
    """
    return -0.5 * beta * (errors - reference)


def diffusion_dpo_loss(
    winners: Float[Tensor, " b"], losers: Float[Tensor, " b"], labels: Float[Tensor, " b"]
) -> tuple[Float[Tensor, ""], Metrics]:
    """−mean log σ(implicit reward of the winner − that of the loser) (Wallace et al. 2023), both at one time and noise.

    `labels` are the weights of the winners, above ½ up to 1: soft labels as in `preference_loss`. Metrics: those of it, and
    `winner_reward` and `loser_reward`: both falling means that the policy forgets winners too, only losers faster.
    """
    loss, figures = preference_loss(winners - losers, labels)
    rewards = {"winner_reward": float(winners.detach().mean()), "loser_reward": float(losers.detach().mean())}
    return loss, figures | rewards


def d3po_loss(
    winners: Float[Tensor, "b t"],
    losers: Float[Tensor, "b t"],
    winners_reference: Float[Tensor, "b t"],
    losers_reference: Float[Tensor, "b t"],
    beta: float,
) -> tuple[Float[Tensor, ""], Metrics]:
    """−mean log σ(β[log(p_θ/p_ref) of the winner's step − that of the loser's]) over steps (Yang et al. 2023).

    From log-probabilities of the steps under the policy and the start, averaged over latent dimensions, which `beta` belongs to.
    Metrics: those of `preference_loss`. The paper's public code also cuts p_θ/p_ref to 1 ± 0.1, which stops its gradient.
    """
    margins = beta * ((winners - winners_reference) - (losers - losers_reference)).flatten()
    return preference_loss(margins, torch.ones_like(margins))


def preference_loss(margins: Float[Tensor, " b"], labels: Float[Tensor, " b"]) -> tuple[Float[Tensor, ""], Metrics]:
    """Bradley–Terry on implicit margins: −mean log σ(margin) where the label is 1.

    A label below 1 weighs both orders, less what no policy can avoid: at margin 0 its gradient is (2·label − 1) of a sure one.
    Metrics: `loss`; `implicit_accuracy`, the share of margins above 0 (0 counts half); `implicit_margin`, their mean.
    """
    loss, figures = bradley_terry(margins, labels)
    return loss, {
        "loss": figures["loss"],
        "implicit_accuracy": figures["accuracy"],
        "implicit_margin": float(margins.detach().mean()),
    }


def diffusion_kto_loss(
    rewards: Float[Tensor, " b"], liked: Float[Tensor, " b"], point: float | None = None
) -> tuple[Float[Tensor, ""], Metrics]:
    """mean 1 − U(w · (implicit reward − Q)) (Li et al. 2024), U = σ, Q = the batch's mean reward, at least 0, a constant.

    `liked` is w: 1 liked, −1 disliked; between them, the mean over raters of whom a share of (1 + liked)/2 like it.
    `point` is Q where these samples are a part of the batch. The paper's public code leaves the ½ out of the implicit reward:
    its β is half of the one here.
    Metrics: `loss`; `implicit_accuracy`, the share of samples on their side of Q (on it counts half); `implicit_margin`, the
    mean of w · (reward − Q); `reference_point`, Q.
    """
    point = float(rewards.detach().mean().clamp_min(0)) if point is None else point
    distance = rewards - point
    share = (1 + liked) / 2
    loss = (1 - share * distance.sigmoid() - (1 - share) * (-distance).sigmoid()).mean()
    signed = liked * distance.detach()
    return loss, {
        "loss": float(loss.detach()),
        "implicit_accuracy": float((1 + signed.sign()).mean() / 2),
        "implicit_margin": float(signed.mean()),
        "reference_point": point,
    }
