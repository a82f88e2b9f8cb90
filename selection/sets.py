"""Which sets of items to have put in order: by what the comparisons of every two of a set would teach a Bradley-Terry head.

Rows are what the two items of a comparison differ in, and a set is the numbers of its rows, -1 where it has fewer than others.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64, Int

from selection.choice import Choice, check_request
from selection.d_optimal import Design
from selection.pairs import nearer
from selection.v_optimal import Forecast


def choose_sets(
    differences: Float[np.ndarray, "r d"],
    sets: Int[np.ndarray, "s k"],
    scores: Float[torch.Tensor, " r"] | None,
    budget: int,
    *,
    generator: torch.Generator,
) -> Choice:
    """`budget` sets, greedily the largest mean over a set's rows of score × distance to the rows of those before.

    Distances and scores are those of `choose_pairs`: z and -z are one comparison, and without scores distance alone counts.
    """
    check_request(len(sets), budget, ())
    order = torch.randperm(len(sets), generator=generator)  # the first of equals is a draw
    members, there = torch.from_numpy(sets)[order], torch.from_numpy(sets)[order] >= 0
    z = torch.from_numpy(differences).double()
    weight = torch.ones(len(z), dtype=torch.double) if scores is None else scores.double()
    squared = near = z.square().sum(1)
    free = torch.ones(len(sets), dtype=torch.bool)
    indices, gains, why = list[int](), list[float](), list[str]()
    for _ in range(budget):
        distance = mean_of(near.sqrt(), members, there)
        gain = mean_of(weight * near.sqrt(), members, there)
        gain = gain if gain[free].max() > 0 else distance  # nothing is uncertain here: spread out
        at = int(gain.masked_fill(~free, -1).argmax())
        free[at] = False
        own = members[at][there[at]]
        for row in own:
            near = nearer(near, z, squared, z[row])
        indices.append(int(order[at]))
        gains.append(float(gain[at]))
        doubt = "" if scores is None else f"{float(weight[own].mean()):.3g} a pair, and "
        why.append(
            f"{'diverse' if scores is None else 'uncertain'}: {doubt}its pairs differ by {float(distance[at]):.3g}"
        )
    return Choice(np.array(indices, dtype=np.int64), np.array(gains), why)


def mean_of(
    values: Float[torch.Tensor, " r"], members: Int[torch.Tensor, "s k"], there: torch.Tensor
) -> Float[torch.Tensor, " s"]:
    """The mean over the rows of each set."""
    return (values[members] * there).sum(1) / there.sum(1)


def v_optimal_sets(
    differences: Float[np.ndarray, "r d"],
    sets: Int[np.ndarray, "s k"],
    budget: int,
    *,
    already: Sequence[int] = (),
    margins: Float[np.ndarray, " r"] | None = None,
    ridge: float = 1.0,
) -> Choice:
    """`budget` sets that greedily lower the mean over all rows of p(1-p)·zᵀA⁻¹z the most, all rows of a set asked at once.

    `v_optimal`, whose `margins`, `ridge` and `already` (rows) these are, for several rows U a pick: tr BM falls by
    tr (I + UBUᵀ)⁻¹ UBMBUᵀ. Of equals the first set.
    """
    check_request(len(sets), budget, ())
    known = check_request(len(differences), 1, already) if len(already) else []
    given = np.zeros(len(differences)) if margins is None else margins.astype(np.float64)
    forecast = Forecast(Design(differences, torch.from_numpy(given), ridge))
    for row in known:
        forecast.design.ask(row)
    members = forecast.weighted(slice(None))[sets] * (sets >= 0)[:, :, None]
    taken, gains, why = list[int](), list[float](), list[str]()
    for _ in range(budget):
        falls = falls_of(members, forecast)
        falls[taken] = -1
        at, before = int(falls.argmax()), forecast.mean()
        taken.append(at)
        gains.append(float(falls[at]))
        why.append(f"lowers the mean doubt by {gains[-1] / (before or 1):.2%}")
        for row in sets[at][sets[at] >= 0]:
            forecast.design.ask(int(row))
    return Choice(np.array(taken, dtype=np.int64), np.array(gains), why)


def falls_of(members: Float64[np.ndarray, "s k d"], forecast: Forecast) -> Float64[np.ndarray, " s"]:
    """By how much the answers to all rows of each set would lower the mean."""
    inverse = forecast.design.inverse
    carried = members @ inverse @ forecast.spread @ inverse
    grown = np.eye(members.shape[1]) + members @ inverse @ members.transpose(0, 2, 1)
    return np.trace(np.linalg.solve(grown, carried @ members.transpose(0, 2, 1)), axis1=1, axis2=2)
