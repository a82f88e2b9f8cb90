"""How much an answer to a pair would teach an ensemble of scorers, read from its members' margins; the pairs of the most."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mmrlhf.errors import UserError
from selection.choice import Choice, check_request
from selection.ranking import best
from selection.rows import scan

MeasureName = Literal["bald", "disagreement", "margin"]


def bald(margins: Float[Tensor, "k b"]) -> Float[Tensor, " b"]:
    """Information, in nats, that an answer gives about which of `k` members is right: H(mean p) - mean H(p), p = σ(margin).

    From 0, where the members agree (also when all call it a tie), to log 2, where half of them are sure of each side.
    Bayesian Active Learning by Disagreement (Houlsby et al. 2011).
    """
    chance = torch.sigmoid(margins.double())
    information = binary_entropy(chance.mean(0)) - binary_entropy(chance).mean(0)
    return information.clamp(min=0).to(margins.dtype)


def margin_uncertainty(margins: Float[Tensor, "k b"]) -> Float[Tensor, " b"]:
    """How near a tie the mean prediction is: 1 - |2·mean p - 1|, from 0 (sure) to 1 (tie). True ties stay at 1 for ever."""
    return 1 - (2 * torch.sigmoid(margins.double()).mean(0) - 1).abs().to(margins.dtype)


def disagreement(margins: Float[Tensor, "k b"]) -> Float[Tensor, " b"]:
    """Standard deviation of the members' p = σ(margin), from 0 to ½."""
    return torch.sigmoid(margins.double()).std(0, correction=0).to(margins.dtype)


def binary_entropy(chance: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """-p log p - (1-p) log(1-p) in nats, 0 at p = 0 and 1."""
    return torch.special.entr(chance) + torch.special.entr(1 - chance)


MEASURES: dict[MeasureName, Callable[[Float[Tensor, "k b"]], Float[Tensor, " b"]]] = {
    "bald": bald,
    "disagreement": disagreement,
    "margin": margin_uncertainty,
}


def most_uncertain(
    embeddings: Float[np.ndarray, "n d"],
    budget: int,
    *,
    already: Sequence[int] = (),
    generator: torch.Generator,
    margins: Float[np.ndarray, "m p"],
    measure: MeasureName = "bald",
) -> Choice:
    """The `budget` new pairs of the largest `measure`, which is the gain; of equals the lowest row number.

    Rows are pairs; `margins` are each member's score of the first item minus that of the second, a column a pair. "bald"
    and "disagreement" ask where the members differ, and need two or more; "margin" asks what the ensemble as a whole
    calls nearest to a tie (smallest |p - ½|). Each pair is ranked alone, so that alike pairs may all be chosen
    (`choose_pairs` spreads them). Embeddings are only checked and counted; nothing is drawn from `generator`.
    """
    known = check_request(len(embeddings), budget, already)
    scan(embeddings)
    check_margins(margins, len(embeddings), measure)
    scores = MEASURES[measure](torch.from_numpy(margins.astype(np.float64))).numpy()
    indices = best(scores, budget, known)
    chance = torch.sigmoid(torch.from_numpy(margins[:, indices].astype(np.float64))).mean(0).tolist()
    why = [f"{measure} {scores[i]:.4g}, chance of the first {p:.2f}" for i, p in zip(indices, chance, strict=True)]
    return Choice(indices, scores[indices], why)


def check_margins(margins: Float[np.ndarray, "m p"], count: int, measure: str) -> None:
    """UserError unless there is a column a row, all finite, and as many members as the measure needs."""
    if measure not in MEASURES:
        raise UserError(f"unknown measure '{measure}': allowed are {', '.join(MEASURES)}")
    members, pairs = margins.shape
    fewest = 1 if measure == "margin" else 2
    if members < fewest or pairs != count:
        raise UserError(
            f"got margins of {members} members on {pairs} pairs, allowed by '{measure}' is {fewest} or more on {count}: "
            "give a column a row of the embeddings"
        )
    if not np.isfinite(margins).all():
        pair = int(np.flatnonzero(~np.isfinite(margins).all(axis=0))[0])
        raise UserError(f"a member's margin of pair {pair} is NaN or infinite: leave that pair out")
