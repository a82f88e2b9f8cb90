"""k-center, facility location and k-means++ next to other packages on the same rows in one run: time and objective, as ratios.

The peers are no dependencies. A virtual environment of their own, on top of the project's:

python3 -m venv runs/peers
ls -d "$PWD"/.venv/lib/python3.*/site-packages > runs/peers/lib/python3.11/site-packages/mmrlhf.pth  # 3.11: that of both
runs/peers/bin/pip install apricot-select submodlib-py fpsample scikit-activeml
runs/peers/bin/python -m benchmarks.selection_peers [--rows 10000] [--columns 128] [--budget 100] [--repeats 3] [--threads 1]
    [--only k-means++]

Peers that are not installed are named and left out. Every way is run once on few rows first (imports, compilation), then
`--repeats` times in turns; the shortest time counts, in seconds of the processor, which other programs disturb little. Peers
that want a matrix of similarities get one from a single product, which is part of their time. A ratio of times above 1, and
one of objectives above 1, is in favour of this project's first way.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

OPTIONS = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
for _name, _default in (("rows", 10_000), ("columns", 128), ("budget", 100), ("repeats", 3), ("threads", 1)):
    OPTIONS.add_argument(f"--{_name}", type=int, default=_default)
OPTIONS.add_argument("--only", default="", help="one of the tasks: k-center, 'facility location' or k-means++")
if __name__ == "__main__":  # before a library counts the cores
    for _variable in ("OMP", "OPENBLAS", "MKL", "NUMBA", "RAYON"):
        os.environ[f"{_variable}_NUM_THREADS"] = str(OPTIONS.parse_args().threads)

import numpy as np  # noqa: E402
import torch  # noqa: E402

from selection.facility_location import facility_location  # noqa: E402
from selection.kcenter import kcenter  # noqa: E402
from selection.kmeans_plus_plus import kmeans_plus_plus  # noqa: E402

Rows = np.ndarray
Way = Callable[[Rows, int, int], Any]  # (rows, budget, seed) -> row numbers


class Task(NamedTuple):
    """This project's ways, those of others, and what is to be small."""

    ours: dict[str, Way]
    peers: dict[str, Way]
    objective: Callable[[Rows, np.ndarray], float]
    what: str


def similarities(x: Rows) -> np.ndarray:
    """(1 + cosine)/2 between all rows."""
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    product = unit @ unit.T
    product += 1
    product *= 0.5
    return product


def near(x: Rows, picks: np.ndarray) -> np.ndarray:
    """The squared distance of each row to the nearest pick, in float64."""
    wide = x.astype(np.float64)
    found = np.full(len(x), np.inf)
    for pick in picks:
        found = np.minimum(found, ((wide - wide[pick]) ** 2).sum(axis=1))
    return found


def radius(x: Rows, picks: np.ndarray) -> float:
    """The largest distance to the nearest pick."""
    return float(np.sqrt(near(x, picks).max()))


def loss(x: Rows, picks: np.ndarray) -> float:
    """The mean of 1 - the similarity to the most similar pick: facility location's sum, turned round and for a row."""
    unit = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float64)
    return float((0.5 - (unit @ unit[picks].T).max(axis=1) / 2).mean())


def potential(x: Rows, picks: np.ndarray) -> float:
    """The mean squared distance to the nearest pick."""
    return float(near(x, picks).mean())


def seeded(seed: int) -> torch.Generator:
    """A fresh generator."""
    return torch.Generator().manual_seed(seed)


def fps(x: Rows, budget: int, seed: int) -> Any:
    """Farthest point sampling in Rust."""
    from fpsample import fps_sampling

    return fps_sampling(x, budget, seed % len(x))


def core_set(x: Rows, budget: int, seed: int) -> Any:
    """The k-center greedy of scikit-activeml."""
    from skactiveml.pool._core_set import k_greedy_center

    labels = np.full(len(x), np.nan)
    labels[seed % len(x)] = 0
    return [seed % len(x), *k_greedy_center(x, labels, budget - 1, random_state=seed)[0]]


def disparity(x: Rows, budget: int, seed: int) -> Any:
    """The largest least distance, by the greedy of submodlib, which is farthest-first."""
    from submodlib import DisparityMinFunction

    function = DisparityMinFunction(n=len(x), mode="dense", data=x, metric="euclidean")
    return [index for index, _ in function.maximize(budget, optimizer="NaiveGreedy", show_progress=False)]


def apricot(optimizer: str) -> Way:
    """Facility location of apricot, by one of its optimizers."""

    def run(x: Rows, budget: int, seed: int) -> Any:
        from apricot import FacilityLocationSelection

        selector = FacilityLocationSelection(budget, metric="precomputed", optimizer=optimizer, random_state=seed)
        return selector.fit(similarities(x)).ranking

    return run


def submodlib(optimizer: str) -> Way:
    """Facility location of submodlib, by one of its optimizers."""

    def run(x: Rows, budget: int, seed: int) -> Any:
        from submodlib import FacilityLocationFunction

        function = FacilityLocationFunction(n=len(x), mode="dense", sijs=similarities(x), separate_rep=False)
        picks = function.maximize(budget, optimizer=optimizer, epsilon=0.01, show_progress=False)
        return [index for index, _ in picks]

    return run


def sklearn(trials: int | None) -> Way:
    """k-means++ of scikit-learn; `trials` draws a centre, of which the best is kept."""

    def run(x: Rows, budget: int, seed: int) -> Any:
        from sklearn.cluster import kmeans_plusplus

        return kmeans_plusplus(x, budget, random_state=seed, n_local_trials=trials)[1]

    return run


TASKS = {
    "k-center": Task(
        {"kcenter": lambda x, budget, seed: kcenter(x, budget, start=seed % len(x), generator=seeded(seed)).indices},
        {"fpsample": fps, "scikit-activeml CoreSet": core_set, "submodlib DisparityMin": disparity},
        radius,
        "covering radius",
    ),
    "facility location": Task(
        {
            "drawn rows (default)": lambda x, budget, seed: (
                facility_location(x, budget, generator=seeded(seed)).indices
            ),
            "every row": lambda x, budget, seed: (
                facility_location(x, budget, generator=seeded(seed), epsilon=0).indices
            ),
        },
        {
            "apricot lazy": apricot("lazy"),
            "apricot two-stage": apricot("two-stage"),
            "apricot stochastic": apricot("stochastic"),
            "submodlib LazyGreedy": submodlib("LazyGreedy"),
            "submodlib StochasticGreedy": submodlib("StochasticGreedy"),
            "submodlib LazierThanLazyGreedy": submodlib("LazierThanLazyGreedy"),
        },
        loss,
        "1 - mean similarity",
    ),
    "k-means++": Task(
        {
            "best of 2 + log k (default)": lambda x, budget, seed: (
                kmeans_plus_plus(x, budget, generator=seeded(seed)).indices
            ),
            "1 trial": lambda x, budget, seed: kmeans_plus_plus(x, budget, generator=seeded(seed), trials=1).indices,
        },
        {"scikit-learn, 1 trial": sklearn(1), "scikit-learn, best of 2 + log k": sklearn(None)},
        potential,
        "mean squared distance",
    ),
}


def measured(ways: dict[str, Way], x: Rows, budget: int, repeats: int) -> tuple[dict[str, float], dict[str, list[Any]]]:
    """The shortest time of each way, and what it chose each time; ways that are not installed, or fail, are told and left out."""
    seconds: dict[str, float] = {}
    picks: dict[str, list[Any]] = {}
    for seed in range(-1, repeats):
        for name, way in ways.items():
            if seed >= 0 and name not in seconds:
                continue
            began = time.process_time()
            try:
                found = np.asarray(
                    way(x[:500] if seed < 0 else x, min(budget, 50) if seed < 0 else budget, max(seed, 0))
                )
            except ImportError as error:
                print(f"  {name}: left out, {error.name} is not installed (see --help)", flush=True)
                continue
            if seed < 0:
                seconds[name], picks[name] = np.inf, []
                continue
            seconds[name] = min(seconds[name], time.process_time() - began)
            assert len(set(found.tolist())) == budget, f"{name} chose {len(set(found.tolist()))} rows, not {budget}"
            picks[name].append(found)
    return seconds, picks


def main() -> None:
    """Print a line for each way of each task."""
    options = OPTIONS.parse_args()
    torch.set_num_threads(options.threads)
    random = np.random.default_rng(0)
    centres = 2 * random.standard_normal((200, options.columns))
    noise = random.standard_normal((options.rows, options.columns))
    x = (noise + centres[random.integers(200, size=options.rows)]).astype(np.float32)
    print(
        f"{options.rows} x {options.columns} in 200 clusters, budget {options.budget}, {options.threads} threads, shortest of "
        f"{options.repeats}, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}"
    )
    for title, task in TASKS.items():
        if options.only not in ("", title):
            continue
        print(f"{title} ({task.what}, mean of {options.repeats} seeds)", flush=True)
        seconds, picks = measured(task.ours | task.peers, x, options.budget, options.repeats)
        values = {name: float(np.mean([task.objective(x, found) for found in each])) for name, each in picks.items()}
        first = next(iter(task.ours))
        for name, took in seconds.items():
            print(
                f"  {name}: {took:.3f} s ({took / seconds[first]:.2f}x), {values[name]:.4f} "
                f"({values[name] / values[first]:.4f}x)",
                flush=True,
            )


if __name__ == "__main__":
    main()
