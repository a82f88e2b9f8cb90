"""Does choosing pairs save ratings? Held-out agreement of a reward head over the number of ratings, for each way to choose.

In rounds a strategy asks for ratings of pairs of a pool, a Bradley-Terry head on tiny-clip's features is fitted to all ratings so
far, and its agreement on held-out pairs is measured. Prints the tables of docs/label-savings.md, which says what they mean.

OMP_NUM_THREADS=1 python -m benchmarks.label_savings [--seeds 12] [--out runs/label-savings] [--report docs/label-savings]

--out keeps the features and every finished curve, so that a run that was stopped goes on there.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.label_savings_report import BEYOND, POINTS, Curves, draw_plot, summary, table
from benchmarks.label_savings_strategies import MORE, STRATEGIES, Asked, fit
from benchmarks.label_savings_worlds import SOURCES, World, embedded
from mmrlhf.data import write_text
from selection.bradley_terry import Head

ROUNDS = (20, 40, 80, 160, 320, 640)


def curve(world: World, strategy: str, seed: int) -> list[float]:
    """Held-out agreement at `POINTS`, and for random also at `BEYOND` and with all ratings."""
    generator = torch.Generator().manual_seed(seed)
    taken: list[int] = []
    whitening, head = 0, None
    result = []
    count = len(world.answers)
    for upto in (*ROUNDS, *((count,) if strategy == "random" else ())):
        asked = Asked(world.pool[whitening], taken, world.answers[taken], head, generator)
        taken = taken + (STRATEGIES | MORE)[strategy](asked, upto - len(taken))
        for point in [p for p in (*POINTS, *BEYOND, count) if len(asked.taken) < p <= upto]:
            rows = taken[:point]
            whitening, head = fit([z[rows] for z in world.pool], world.answers[rows])
            result.append(agreement(world, whitening, head))
    return result


def agreement(world: World, whitening: int, head: Head) -> float:
    """Share of the held-out pairs on whose preferred side the head is."""
    return float(((world.test[whitening] @ head.weights > 0) == (world.truth > 0)).mean())


def measure(out: Path, seeds: int, sources: Sequence[str]) -> dict[str, Curves]:
    """Every curve of every source, read from `out` where it is there."""
    known = embedded(out)
    result: dict[str, Curves] = {}
    for name in sources:
        rows: dict[str, list[list[float]]] = {strategy: [] for strategy in (*STRATEGIES, *SOURCES[name].more)}
        for seed in tqdm(range(seeds), desc=name, disable=None):
            file = out / f"{name}-{seed}.json"
            curves = json.loads(file.read_text()) if file.exists() else {}
            world = SOURCES[name].make(*known[SOURCES[name].data], seed)
            for strategy in rows:
                if strategy not in curves:
                    curves[strategy] = curve(world, strategy, seed)
                    write_text(json.dumps(curves) + "\n", file)
                rows[strategy].append(curves[strategy])
        result[name] = {strategy: np.array(values) for strategy, values in rows.items()}
    return result


def main() -> None:
    """Print a table a source; write the plot and the mean curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path("runs/label-savings"))
    parser.add_argument("--report", type=Path, default=None)
    parser.add_argument("--sources", nargs="+", choices=list(SOURCES), default=list(SOURCES))
    options = parser.parse_args()
    results = measure(options.out, options.seeds, options.sources)
    for name, curves in results.items():
        everything = float(curves["random"][:, -1].mean())
        lines = [f"\n### {SOURCES[name].title}", f"\nAll ratings of the pool give {everything:.3f}.\n", *table(curves)]
        print("\n".join(lines))
    print(
        "\n".join(
            ["\n### Points of agreement above random choice, mean of all numbers of ratings\n", *summary(results)]
        )
    )
    if options.report is not None:
        draw_plot(results, {name: SOURCES[name].title for name in results}, options.report / "plot.png")
        rounded = {n: {s: values.mean(axis=0).round(4).tolist() for s, values in c.items()} for n, c in results.items()}
        write_text(json.dumps(rounded, indent=1) + "\n", options.report / "curves.json")


if __name__ == "__main__":
    main()
