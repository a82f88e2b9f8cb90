"""TypiClust: one typical row from each cluster, large uncovered clusters first; for small budgets (Hacohen et al. 2022)."""

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64, Int

from selection.choice import Choice, check_request
from selection.rows import Rows, squared_norms


def typicality_choice(
    embeddings: Float[np.ndarray, "n d"],
    budget: int,
    *,
    already: Sequence[int] = (),
    generator: torch.Generator,
    neighbours: int = 20,
    most_clusters: int = 500,
    smallest_cluster: int = 5,
) -> Choice:
    """`budget` new rows: again and again the most typical row of the cluster with fewest chosen rows, largest first.

    K-means of |already| + budget clusters (at most `most_clusters`). Typicality, the gain, is 1 / mean distance to the
    `neighbours` nearest rows of the cluster. Clusters under `smallest_cluster` rows come last. Needs scikit-learn.
    """
    known = check_request(len(embeddings), budget, already)
    rows = Rows(embeddings)
    clusters = cluster(rows, min(len(known) + budget, most_clusters, len(rows)), generator)
    members = [np.flatnonzero(clusters == number) for number in range(int(clusters.max()) + 1)]
    members = [rows_of for rows_of in members if len(rows_of)]
    ranked: dict[int, list[tuple[int, float]]] = {}  # cluster -> its free rows, least typical first
    chosen = [int(np.isin(rows_of, known).sum()) for rows_of in members]
    left = [len(rows_of) - done for rows_of, done in zip(members, chosen, strict=True)]
    indices, gains, why = [], [], []
    for _ in range(budget):
        open_clusters = [number for number in range(len(members)) if left[number]]
        best = min(
            open_clusters,
            key=lambda number: (len(members[number]) < smallest_cluster, chosen[number], -len(members[number]), number),
        )
        if best not in ranked:
            ranked[best] = rank_by_typicality(rows, members[best], known, neighbours)
        index, value = ranked[best].pop()
        indices.append(index)
        gains.append(value * rows.scale)
        why.append(f"typical of a cluster of {len(members[best])} with {chosen[best]} chosen before")
        chosen[best] += 1
        left[best] -= 1
    return Choice(np.array(indices), np.array(gains), why)


def cluster(rows: Rows, count: int, generator: torch.Generator) -> Int[np.ndarray, " n"]:
    """The k-means cluster of each row, fitted on batches so that the rows may lie in a file."""
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    seed = int(torch.randint(2**31 - 1, (1,), generator=generator))
    model = MiniBatchKMeans(count, random_state=seed, n_init=1, batch_size=4096)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different rows than clusters: copies, handled above
        sample = rows.kept if rows.kept is not None else rows[np.linspace(0, len(rows) - 1, 100_000).astype(np.int64)]
        model.fit(sample)
    return np.concatenate([model.predict(rows[part]) for part in rows.parts()]).astype(np.int64)


def rank_by_typicality(
    rows: Rows, members: Int[np.ndarray, " m"], known: Sequence[int], neighbours: int
) -> list[tuple[int, float]]:
    """The members outside `known` with their typicality, ascending; of equals the lowest row number comes last."""
    value = typicality(rows[members], neighbours)
    free = np.flatnonzero(~np.isin(members, known))
    order = free[np.lexsort((-members[free], value[free]))]
    return [(int(members[i]), float(value[i])) for i in order]


def typicality(rows: Float[np.ndarray, "m d"], neighbours: int, block: int = 1024) -> Float64[np.ndarray, " m"]:
    """1 / mean distance to the nearest other rows, in blocks; copies count as 1e-6 apart, a row alone has 0."""
    neighbours = min(neighbours, len(rows) - 1)
    if neighbours == 0:
        return np.zeros(len(rows))
    norms = squared_norms(rows)
    means = []
    for start in range(0, len(rows), block):
        part = slice(start, start + block)
        squared = norms[part, None] + norms[None] - 2 * (rows[part] @ rows.T)
        squared[np.arange(len(squared)), np.arange(start, start + len(squared))] = np.inf
        nearest = np.partition(squared, neighbours - 1, axis=1)[:, :neighbours]
        means.append(np.sqrt(np.maximum(nearest, 0)).mean(axis=1, dtype=np.float64))
    return 1 / np.maximum(np.concatenate(means), 1e-6)
