"""Block-lazy k-center against the plain greedy algorithm in numpy, in one run: the picks must be equal, then the ratio.

python benchmarks/kcenter.py [--rows 20000] [--columns 128] [--budget 500] [--repeats 3]
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from selection.kcenter import kcenter


def plain_greedy(x: np.ndarray, budget: int, start: int) -> list[int]:
    """One matrix-vector product a pick, |x|² + |y|² - 2xy, in the precision of `x`."""
    norms = np.einsum("ij,ij->i", x, x)
    near, picks = np.full(len(x), np.inf, x.dtype), [start]
    while len(picks) < budget:
        np.minimum(near, norms + norms[picks[-1]] - 2 * (x @ x[picks[-1]]), out=near)
        near[picks[-1]] = -np.inf
        picks.append(int(near.argmax()))
    return picks


def best_of(repeats: int, work: Callable[[], list[int]]) -> tuple[float, list[int]]:
    """The shortest time, and what came out."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - began)
    return min(seconds), result


def main() -> None:
    """Print a line for each data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 20_000), ("columns", 128), ("budget", 500), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    random = np.random.default_rng(0)
    noise = random.standard_normal((options.rows, options.columns)).astype(np.float32)
    centres = 2 * random.standard_normal((200, options.columns)).astype(np.float32)
    datasets = {"gaussian": noise, "200 clusters": noise + centres[random.integers(200, size=options.rows)]}
    print(
        f"{options.rows} x {options.columns}, budget {options.budget}, best of {options.repeats}, "
        f"{torch.get_num_threads()} threads"
    )
    for name, x in datasets.items():
        lazy, picks = best_of(
            options.repeats,
            lambda x=x: kcenter(x, options.budget, start=0, generator=torch.Generator()).indices.tolist(),  # type: ignore[misc]
        )
        wide, expected = best_of(1, lambda x=x: plain_greedy(x.astype(np.float64), options.budget, 0))  # type: ignore[misc]
        assert picks == expected, f"{name}: the picks differ from the plain greedy's in float64"
        single, rounded = best_of(options.repeats, lambda x=x: plain_greedy(x, options.budget, 0))  # type: ignore[misc]
        print(
            f"{name}: block-lazy {lazy:.2f} s, plain float32 {single:.2f} s ({single / lazy:.1f}x, "
            f"{np.mean(np.array(rounded) == picks):.0%} of the same picks), "
            f"plain float64 {wide:.2f} s ({wide / lazy:.1f}x, the same picks)"
        )


if __name__ == "__main__":
    main()
