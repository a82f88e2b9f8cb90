"""Streaming facility location against greedy on the stored n x n matrix, in one run: value, time and memory, and random's value.

python benchmarks/facility_location.py [--rows 3000] [--columns 64] [--budget 100]
"""

import argparse
import time
import tracemalloc
from collections.abc import Callable

import numpy as np
import torch

from selection.facility_location import facility_location


def stored_greedy(x: np.ndarray, budget: int) -> list[int]:
    """Every gain anew for each pick, from the whole similarity matrix."""
    similarity = similarities(x, np.arange(len(x)))
    best = np.zeros(len(x), np.float32)
    picks: list[int] = []
    for _ in range(budget):
        gains = np.maximum(similarity - best[:, None], 0).sum(axis=0)
        gains[picks] = -1
        picks.append(int(gains.argmax()))
        best = np.maximum(best, similarity[:, picks[-1]])
    return picks


def similarities(x: np.ndarray, picks: np.ndarray) -> np.ndarray:
    """(1 + cosine)/2 of every row with the picks."""
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    return (1 + unit @ unit[picks].T) / 2


def measured(work: Callable[[], list[int]]) -> tuple[float, float, np.ndarray]:
    """Seconds, peak MiB of arrays (in a second run, as tracing slows it), and the picks."""
    began = time.perf_counter()
    picks = work()
    seconds = time.perf_counter() - began
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    return seconds, peak, np.array(picks)


def main() -> None:
    """Print a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 3000), ("columns", 64), ("budget", 100)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    random = np.random.default_rng(0)
    centres = random.standard_normal((200, options.columns))
    noise = random.standard_normal((options.rows, options.columns))
    x = (noise + centres[random.integers(200, size=options.rows)]).astype(np.float32)

    def streaming(epsilon: float) -> list[int]:
        return facility_location(x, options.budget, generator=torch.Generator(), epsilon=epsilon).indices.tolist()

    ways: dict[str, Callable[[], list[int]]] = {
        "stored greedy": lambda: stored_greedy(x, options.budget),
        "streaming, every row": lambda: streaming(0.0),
        "streaming, drawn rows": lambda: streaming(0.01),
        "random": lambda: random.permutation(len(x))[: options.budget].tolist(),
    }
    print(f"{options.rows} x {options.columns}, budget {options.budget}, {torch.get_num_threads()} threads")
    first_value = first_seconds = 0.0
    for name, work in ways.items():
        seconds, peak, picks = measured(work)
        value = float(similarities(x, picks).max(axis=1).sum())
        first_value, first_seconds = first_value or value, first_seconds or seconds
        print(
            f"{name}: {seconds:.2f} s ({seconds / first_seconds:.2f}x), peak {peak:.0f} MiB, "
            f"value {value / first_value:.2%} of greedy's"
        )


if __name__ == "__main__":
    main()
