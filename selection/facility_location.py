"""Facility location: choose the rows that every row has a similar one among (greedy reaches at least 1 - 1/e of the best)."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int
from tqdm import tqdm

from mmrlhf.errors import UserError
from selection.choice import Choice, check_request, draw
from selection.rows import Rows

FIRST_LOOK, MOST = 8, 512


def facility_location(
    embeddings: Float[np.ndarray, "n d"],
    budget: int,
    *,
    already: Sequence[int] = (),
    generator: torch.Generator,
    epsilon: float = 0.01,
    most_served: int = 20_000,
    served: Float[np.ndarray, "m d"] | None = None,
    stand_for: int | None = None,
) -> Choice:
    """`budget` new rows that greedily raise Σ_i max_{s chosen} sim(i, s), sim = (1 + cosine)/2; gains are those rises.

    Rows in `already` count as chosen. Each pick is the best of (n / budget)·log(1 / epsilon) drawn rows (stochastic greedy,
    Mirzasoleiman et al. 2015: at least 1 - 1/e - epsilon of the best, in expectation), or of all rows with `epsilon` 0
    (at least 1 - 1/e). A gain only shrinks, so an old one is an upper bound, and few are computed anew (lazy greedy).
    The sum runs over all rows, or over `most_served` drawn ones where there are more (gains are then scaled up to all);
    or over `served`, which need not be among `embeddings`, with gains scaled up to the `stand_for` rows that they are of.
    Similarities are computed in blocks and never stored: memory is the float32 rows (see `Rows`), a few numbers a row,
    and 16 MiB; the work is at most n·log(1 / epsilon)·min(n, most_served) similarities, whatever the budget.
    """
    known = check_request(len(embeddings), budget, already)
    if not 0 <= epsilon < 1:
        raise UserError(f"got epsilon {epsilon}, allowed is 0 (every row is looked at) to below 1")
    rows = Rows(embeddings, unit=True)
    places = Places(rows, most_served, generator) if served is None else Places(rows, len(served), generator, served)
    weight = places.weight if stand_for is None else stand_for / places.count
    for index in known:
        places.open(index)
    bound = np.full(len(embeddings), np.inf)  # no gain is known yet
    bound[known] = -np.inf  # taken
    looks = len(bound) if epsilon == 0 else int(np.ceil(len(bound) / budget * np.log(1 / epsilon)))
    indices, gains = [], []
    for _ in tqdm(range(budget), desc="facility location", disable=None, delay=2):
        free = np.flatnonzero(bound > -np.inf)
        best = most_useful(places, bound, free if looks >= len(free) else np.sort(draw(free, looks, generator)))
        indices.append(best)
        gains.append(bound[best] * weight)
        bound[best] = -np.inf
        places.open(best)
    why = [f"raises the summed similarity by {gain:.4g}" for gain in gains]
    return Choice(np.array(indices), np.array(gains), why)


def most_useful(places: "Places", bound: Float64[np.ndarray, " n"], pool: Int[np.ndarray, " p"]) -> int:
    """The row of `pool` of the largest gain, of equals the lowest number; `bound` is lowered to the gains computed."""
    fresh = np.zeros(len(pool), bool)
    amount = FIRST_LOOK
    while True:
        best = int(np.argmax(bound[pool]))
        if fresh[best]:
            return int(pool[best])
        stale = np.flatnonzero(~fresh)
        if amount < len(stale):
            stale = stale[np.argpartition(bound[pool[stale]], -amount)[-amount:]]
        look = np.union1d(stale, best)
        bound[pool[look]] = np.minimum(bound[pool[look]], places.gains(pool[look]))
        fresh[look] = True
        amount = min(2 * amount, MOST)


class Places:
    """The rows to be served, and how similar the nearest open place is to each."""

    def __init__(
        self,
        rows: Rows,
        most_served: int,
        generator: torch.Generator,
        served: Float[np.ndarray, "m d"] | None = None,
    ):
        self.rows = rows
        self.source = rows if served is None else Rows(served, unit=True)
        self.served: Int[np.ndarray, " m"] | None = None
        if len(self.source) > most_served:
            self.served = np.sort(draw(np.arange(len(rows)), most_served, generator))
        self.count = len(self.source) if self.served is None else most_served
        self.weight = len(self.source) / self.count
        self.similarity = np.zeros(self.count, np.float32)

    def gains(self, candidates: Int[np.ndarray, " c"]) -> Float64[np.ndarray, " c"]:
        """How much the sum of similarities would rise if each candidate alone were opened."""
        places, total = self.rows[candidates], np.zeros(len(candidates))
        for part in self.parts():
            rise = self.similar(places, part)
            rise -= self.similarity[part]
            total += np.maximum(rise, 0, out=rise).sum(axis=1)
        return total

    def open(self, index: int) -> None:
        """Let a row serve the others from now on."""
        place = self.rows[np.array([index])]
        for part in self.parts():
            self.similarity[part] = np.maximum(self.similarity[part], self.similar(place, part)[0])

    def parts(self) -> list[slice]:
        """Blocks of the rows to be served."""
        return [slice(start, min(start + 8192, self.count)) for start in range(0, self.count, 8192)]

    def similar(self, places: Float32[np.ndarray, "c d"], part: slice) -> Float32[np.ndarray, "c b"]:
        """(1 + cosine)/2 between places and a block of the served rows."""
        served = self.source[part] if self.served is None else self.source[self.served[part]]
        similarity = (places * np.float32(0.5)) @ served.T
        similarity += np.float32(0.5)
        return similarity
