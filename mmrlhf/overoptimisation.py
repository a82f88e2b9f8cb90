"""Over-optimisation: the gold reward against the learned one, over the distance d = √KL(π‖π_ref) from the start.

Gao, Schulman and Hilton 2023 find that the gold gain over the start follows d(α − β log d) for reinforcement learning and
d(α − β d) for best-of-n.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from mmrlhf.errors import UserError
from mmrlhf.statistics import bootstrap_ci

Form = Literal["rl", "best-of-n"]


class Fit(NamedTuple):
    """reward ≈ `start` + d(`alpha` − `beta` log d), or d(`alpha` − `beta` d); `peak` is the d of its maximum.

    `r2` is the share of the variance explained, None where the rewards are all equal; `peak` is None where the curve has no
    maximum at a d above 0.
    """

    form: Form
    start: float
    alpha: float
    beta: float
    r2: float | None
    peak: float | None


class BestOfN(NamedTuple):
    """The mean gold and learned reward of the best of `n` by the learned one, and its KL in nats."""

    n: int
    kl: float
    gold: float
    gold_ci95: tuple[float, float]
    learned: float


def fit_overoptimisation(
    kl: Float[np.ndarray, " t"], rewards: Float[np.ndarray, " t"], form: Form, *, start: float | None = None
) -> Fit:
    """Least squares of the form on points of one run; `start` is the reward at KL 0, fitted too where it is not given.

    UserError for fewer points at different KL than there are unknowns, a negative KL, or values that are not finite.
    Source: Gao et al. 2023, equations 1 and 2.
    """
    unknowns = 2 if start is not None else 3
    if not (np.isfinite(kl).all() and np.isfinite(rewards).all() and (kl >= 0).all()):
        raise UserError("an over-optimisation curve got a KL or reward that is negative or not a number: leave it out")
    if len(np.unique(kl)) < unknowns:
        raise UserError(
            f"an over-optimisation curve got {len(np.unique(kl))} different KL, allowed are {unknowns} or more: give a longer run"
        )
    distance = np.sqrt(kl)
    columns = np.stack([distance, -shape(distance, form)], axis=1)
    if start is None:
        columns = np.column_stack([columns, np.ones_like(distance)])
    solution = np.linalg.lstsq(columns, rewards - (start or 0.0), rcond=None)[0]
    alpha, beta = float(solution[0]), float(solution[1])
    origin = float(solution[2]) if start is None else start
    residual = ((rewards - origin - columns[:, :2] @ solution[:2]) ** 2).sum()
    variance = ((rewards - rewards.mean()) ** 2).sum()
    return Fit(form, origin, alpha, beta, float(1 - residual / variance) if variance > 0 else None,
               peak_of(alpha, beta, form))  # fmt: skip


def shape(distance: Float[np.ndarray, " t"], form: Form) -> Float[np.ndarray, " t"]:
    """What β takes away: d log d (0 at d = 0) or d²."""
    if form not in ("rl", "best-of-n"):
        raise UserError(f"the form of an over-optimisation curve got '{form}', allowed are rl, best-of-n")
    return distance**2 if form == "best-of-n" else distance * np.log(np.where(distance > 0, distance, 1.0))


def predicted(fit: Fit, kl: Float[np.ndarray, " t"]) -> Float[np.ndarray, " t"]:
    """The fitted reward at each KL."""
    distance = np.sqrt(kl)
    return fit.start + fit.alpha * distance - fit.beta * shape(distance, fit.form)


def peak_of(alpha: float, beta: float, form: Form) -> float | None:
    """The d > 0 at which the curve is highest: α / 2β, or exp(α/β − 1)."""
    if beta <= 0 or (form == "best-of-n" and alpha <= 0):
        return None
    with np.errstate(over="ignore"):
        peak = float(alpha / (2 * beta) if form == "best-of-n" else np.exp(alpha / beta - 1))
    return peak if np.isfinite(peak) else None


def best_of_n_kl(n: int) -> float:
    """KL in nats of the best of `n` samples to one sample: log n − (n − 1) / n. Source: Stiennon et al. 2020, G.3."""
    if n < 1:
        raise UserError(f"best of n got n {n}, allowed is 1 or more")
    return float(np.log(n) - (n - 1) / n)


def best_of_n_curve(
    learned: Float[np.ndarray, "q N"], gold: Float[np.ndarray, "q N"], ns: Sequence[int], *, seed: int = 0
) -> list[BestOfN]:
    """For each n, what the best of n by the learned reward is worth: unbiased from N scored samples for each of q prompts.

    It is the mean over all subsets of n, in closed form, with a 95 % interval over prompts. UserError for n > N.
    """
    if not (np.isfinite(learned).all() and np.isfinite(gold).all()):
        raise UserError("best of n got a reward that is not a finite number: leave prompts with abstentions out")
    rows = []
    for n in ns:
        by_prompt = best_of_n(learned, gold, n)
        interval = bootstrap_ci(by_prompt, seed=seed)
        rows.append(
            BestOfN(n, best_of_n_kl(n), float(by_prompt.mean()), interval, float(best_of_n(learned, learned, n).mean()))
        )
    return rows


def best_of_n(learned: Float[np.ndarray, "q N"], values: Float[np.ndarray, "q N"], n: int) -> Float[np.ndarray, " q"]:
    """For each prompt, the mean value of the sample with the highest learned reward over all subsets of n of its N samples.

    The i-th smallest is the best of C(i − 1, n − 1) of the C(N, n) subsets; samples of equal learned reward share theirs.
    """
    samples = learned.shape[1]
    if not 1 <= n <= samples:
        raise UserError(f"best of n got n {n}, allowed is from 1 to {samples}, the samples of each prompt")
    rank = np.arange(2, samples + 1)
    # the top weighs n / N; C(i − 2, n − 1) / C(i − 1, n − 1) = (i − n) / (i − 1) leads from each rank to the one below
    falls = np.clip(rank - n, 0, None) / (rank - 1)
    weights = n / samples * np.append(np.cumprod(falls[::-1])[::-1], 1.0)
    result = np.empty(len(learned))
    for row, (scores, own) in enumerate(zip(learned, values, strict=True)):
        _, group, counts = np.unique(scores, return_inverse=True, return_counts=True)
        order = np.argsort(group, kind="stable")
        shared = np.bincount(group, own) / counts  # what a random one of the equals is worth
        result[row] = weights @ shared[group[order]]
    return result
