"""The losses of learning from preferred and corrected answers."""

from collections.abc import Sequence
from difflib import SequenceMatcher

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

Metrics = dict[str, float]


def dpo_loss(
    chosen: Float[Tensor, " b"],
    rejected: Float[Tensor, " b"],
    reference_chosen: Float[Tensor, " b"],
    reference_rejected: Float[Tensor, " b"],
    beta: float,
    label_smoothing: float = 0.0,
) -> tuple[Float[Tensor, ""], Metrics]:
    """−log σ(β[log(π/π_ref)(y_w) − log(π/π_ref)(y_l)]) (Rafailov et al. 2023, eq. 7), from log-probabilities of answers.

    `label_smoothing` is the chance that a label is wrong (their conservative variant). Metrics: `implicit_accuracy`,
    `implicit_margin` (nats, times β), and by how much each side's log-probability moved.
    """
    better, worse = chosen - reference_chosen, rejected - reference_rejected
    margins = beta * (better - worse)
    loss = -(1 - label_smoothing) * F.logsigmoid(margins) - label_smoothing * F.logsigmoid(-margins)
    with torch.no_grad():
        right = (margins > 0).float() + 0.5 * (margins == 0).float()
        names = ("implicit_accuracy", "implicit_margin", "chosen_moved", "rejected_moved")
        figures = torch.stack([right.mean(), margins.mean(), better.mean(), worse.mean()]).tolist()
    return loss.mean(), dict(zip(names, figures, strict=True))


def dense_log_prob(
    log_probs: Float[Tensor, "b t"],
    mask: Bool[Tensor, "b t"],
    changed: Bool[Tensor, "b t"],
    gamma: float,
    *,
    normalize: bool = True,
) -> Float[Tensor, " b"]:
    """(1/N)[Σ_unchanged log p + γ Σ_changed log p], N = |unchanged| + γ|changed| (Yu et al. 2023, RLHF-V, eq. 2).

    Without `normalize` N is 1, as in the code that they released; with γ 1 too it is the log-probability of the answer.
    """
    weights = torch.where(changed, gamma, 1.0) * mask
    summed = (weights * log_probs).sum(dim=1)
    return summed / weights.sum(dim=1).clamp_min(1e-8) if normalize else summed


def changed_tokens(
    old: Sequence[int], new: Sequence[int], *, absorb: int = 1, edits: bool = True
) -> tuple[list[bool], list[bool]]:
    """Which tokens of an answer and of its correction differ, by alignment of the two.

    Equal stretches of fewer than `absorb` tokens between changes count as changed. Without `edits`, tokens that were only put in
    or only taken out do not count (both as in RLHF-V's released code, with `absorb` 3).
    """
    blocks = SequenceMatcher(None, list(old), list(new), autojunk=False).get_matching_blocks()
    kept = [block for block in blocks if block.size >= absorb or block.size == 0]
    before, after = [False] * len(old), [False] * len(new)
    reached_old = reached_new = 0
    for block in kept:
        both = reached_old < block.a and reached_new < block.b
        if both or edits:
            before[reached_old : block.a] = [True] * (block.a - reached_old)
            after[reached_new : block.b] = [True] * (block.b - reached_new)
        reached_old, reached_new = block.a + block.size, block.b + block.size
    return before, after


def token_nll(log_probs: Float[Tensor, "b t"], mask: Bool[Tensor, "b t"]) -> tuple[Float[Tensor, ""], Metrics]:
    """Minus the mean log-probability of the tokens; `tokens` is how many there are."""
    count = mask.sum().clamp_min(1)
    return -(log_probs * mask).sum() / count, {"tokens": float(mask.sum())}
