"""Greedy k-center: choose again and again the row farthest from everything chosen (Gonzalez 1985; Sener & Savarese 2018)."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int
from tqdm import tqdm

from mmrlhf.errors import UserError
from selection.choice import Choice, check_request
from selection.rows import Rows, nearest_squared, squared_norms

PAIRS_AT_ONCE = 16_384


def kcenter(
    embeddings: Float[np.ndarray, "n d"],
    budget: int,
    *,
    already: Sequence[int] = (),
    start: int | None = None,
    generator: torch.Generator,
    pool_size: int = 1024,
    burst: int = 64,
) -> Choice:
    """`budget` new rows, each the farthest (Euclidean) from those before it; the covering radius is at most twice the best.

    Rows in `already` count as chosen and are not chosen again. Without any, the first row is `start`, or drawn from
    `generator`, and is the first of the result. The gain of a row is its distance to the nearest row before it (0 for
    the first). Exactly the picks of the plain greedy algorithm in float64, of equals the lowest row number.

    Distances to the chosen only shrink, so an old one is an upper bound. The `pool_size` rows with the largest are kept
    as a pool, and rows are chosen from it while its best beats every bound outside, at most `burst` of them; then one
    matrix product brings all rows up to date. Memory: the float32 rows (see `Rows`) and a few numbers a row.
    """
    known = check_request(len(embeddings), budget, already)
    indices: list[int] = []
    gains: list[float] = []
    why: list[str] = []
    if not known:
        if start is not None and not 0 <= start < len(embeddings):
            raise UserError(f"got start {start}, allowed is 0 to {len(embeddings) - 1}")
        first = int(torch.randint(len(embeddings), (1,), generator=generator)) if start is None else start
        indices, gains, why = [first], [0.0], ["start: drawn" if start is None else "start: given"]
    cover = Cover(Rows(embeddings), known + indices, len(known) + budget)
    with tqdm(total=budget, initial=len(indices), desc="k-center", disable=None, delay=2) as bar:
        while len(indices) < budget:
            picks = choose_burst(cover, min(burst, budget - len(indices)), pool_size)
            distances = cover.distances(picks)
            cover.refresh()
            indices += picks
            gains += distances
            why += [f"{distance:.4g} away from the nearest row chosen before" for distance in distances]
            bar.update(len(picks))
    return Choice(np.array(indices), np.array(gains), why)


class Cover:
    """The chosen rows, and for every row the squared distance to the nearest chosen one, in float32 with a known error.

    The error: with unit roundoff u = 2⁻²⁴, each product of `d` terms is off by at most d·u·|x||y|, so that a squared
    distance is off by at most (d/2 + 8)·u·(|x| + |y|)², where |y| ≤ |x| + distance for the centre y that matters.
    """

    def __init__(self, rows: Rows, chosen: Sequence[int], capacity: int):
        self.rows = rows
        self.rounding = np.float32((rows.dim / 2 + 8) * 2.0**-24)
        self.norms = np.concatenate([squared_norms(rows[part]) for part in rows.parts()])
        self.slack = 8 * self.rounding * self.norms + np.float32(1e-36)
        self.near = np.full(len(rows), np.inf, np.float32)
        self.exact = np.full(len(rows), np.inf)
        self.compared = np.zeros(len(rows), np.int64)  # with how many centres `exact` was compared
        self.centres = np.empty((capacity, rows.dim), np.float32)
        self.centre_norms = np.empty(capacity, np.float32)
        self.raw_centres = np.empty((capacity, rows.dim), np.float64)
        self.taken = np.zeros(len(rows), bool)
        self.count = self.fresh = 0
        for index in chosen:
            self.add(index)
        self.refresh()

    def add(self, index: int) -> None:
        """Count a row as chosen; `near` knows of it after `refresh`."""
        row = np.array([index])
        self.centres[self.count] = self.rows[row][0]
        self.centre_norms[self.count] = self.norms[index]
        self.raw_centres[self.count] = self.rows.raw(row)[0]
        self.taken[index] = True
        self.count += 1

    def refresh(self, at_once: int = 128) -> None:
        """Bring `near` up to date with the rows chosen since the last time."""
        for start in range(self.fresh, self.count, at_once):
            new = slice(start, min(start + at_once, self.count))
            for part in self.rows.parts():
                distance = nearest_squared(self.rows[part], self.norms[part], self.centres[new], self.centre_norms[new])
                self.near[part] = np.minimum(self.near[part], distance)
        self.near[self.taken] = -np.inf
        self.fresh = self.count

    def bounds(
        self, squared: Float32[np.ndarray, "*#shape"], slack: Float32[np.ndarray, "*#shape"]
    ) -> tuple[Float32[np.ndarray, "..."], Float32[np.ndarray, "..."]]:
        """What squared distances are at least and at most."""
        relative = 3 * self.rounding
        return squared * (1 - relative) - slack, squared * (1 + relative) + slack

    def exact_squared(self, indices: Int[np.ndarray, " b"], centres: int | None = None) -> Float64[np.ndarray, " b"]:
        """Squared distances in float64, term by term, to the first `centres` (all); no two rows are compared twice."""
        upto = self.count if centres is None else centres
        for compared in np.unique(self.compared[indices]).tolist():
            if compared < upto:
                behind = indices[self.compared[indices] == compared]
                step = max(1, PAIRS_AT_ONCE * 16 // (upto - compared))
                for start in range(0, len(behind), step):
                    self.compare(behind[start : start + step], compared, upto)
        return self.exact[indices]

    def compare(self, indices: Int[np.ndarray, " b"], first: int, upto: int) -> None:
        """Lower `exact` by the centres of these numbers; only those that may be the nearest are computed."""
        centres = slice(first, upto)
        distance = self.norms[indices, None] + self.centre_norms[None, centres]
        distance -= 2 * (self.rows[indices] @ self.centres[centres].T)
        low, high = self.bounds(distance, self.slack[indices, None])
        which, centre = np.nonzero(low <= high.min(axis=1, keepdims=True))
        for start in range(0, len(which), PAIRS_AT_ONCE):
            pair = slice(start, start + PAIRS_AT_ONCE)
            difference = self.rows.raw(indices[which[pair]]) - self.raw_centres[first + centre[pair]]
            np.minimum.at(self.exact, indices[which[pair]], (difference * difference).sum(axis=1))
        self.compared[indices] = upto

    def distances(self, picks: list[int]) -> list[float]:
        """Of the newest centres, each one's distance to the nearest centre before it."""
        before = self.count - len(picks)
        squared = self.exact_squared(np.array(picks), before)
        for number in range(1, len(picks)):
            difference = self.raw_centres[before : before + number] - self.raw_centres[before + number]
            squared[number] = min(squared[number], (difference * difference).sum(axis=1).min())
        return np.sqrt(squared).tolist()


def choose_burst(cover: Cover, amount: int, pool_size: int) -> list[int]:
    """Up to `amount` greedy picks (at least one), added to `cover`, from the pool of the farthest rows."""
    low, high = cover.bounds(cover.near, cover.slack)
    size = min(pool_size, len(high))
    edge = min(np.partition(high, -size)[-size], low.max())
    pool = np.flatnonzero((high >= edge) & ~cover.taken)  # every row that may be the farthest is in it
    outside = edge if len(pool) < len(high) else -np.inf
    rows, norms, near, slack = cover.rows[pool], cover.norms[pool], cover.near[pool], cover.slack[pool]
    picks: list[int] = []
    while len(picks) < min(amount, len(pool)):
        low, high = cover.bounds(near, slack)
        least = low.max()
        if picks and least < outside:
            break
        rivals = np.flatnonzero(high >= least)
        squared = cover.exact_squared(pool[rivals]) if len(rivals) > 1 else np.ones(1)
        if squared.max() == 0:  # every row left is a copy of a chosen one
            copies = np.flatnonzero(~cover.taken)[: amount - len(picks)].tolist()
            for index in copies:
                cover.add(index)
            return picks + copies
        best = rivals[int(np.argmax(squared))]  # the pool is in ascending order, so of equals the lowest row number
        picks.append(int(pool[best]))
        cover.add(picks[-1])
        centre = slice(cover.count - 1, cover.count)
        distance = nearest_squared(rows, norms, cover.centres[centre], cover.centre_norms[centre])
        near = np.minimum(near, distance)
        near[best] = -np.inf
    return picks
