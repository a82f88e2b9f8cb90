"""k-center on memory-mapped float16 files of growing size: time a row and peak memory, and their ratios to the smallest file.

python benchmarks/selection_size.py [--rows 100000 1000000] [--large] [--shards N] [--columns 512] [--budget 500] [--folder DIR]

Each selection runs in a child process. Resident memory counts the pages of the mapped file, which the system takes back
when it wants them; the private memory, sampled 20 times a second, is what the selection itself holds.
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch

from selection.files import read_embeddings, read_stacked
from selection.kcenter import kcenter
from selection.shards import choose_in_shards

BLOCK = 16_384


def write_rows(path: Path, rows: int, columns: int) -> None:
    """Rows around 1,000 centres, written block by block."""
    random = np.random.default_rng(0)
    centres = 2 * random.standard_normal((1000, columns), dtype=np.float32)
    file = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(rows, columns))
    for start in range(0, rows, BLOCK):
        count = min(BLOCK, rows - start)
        noise = random.standard_normal((count, columns), dtype=np.float32)
        file[start : start + count] = noise + centres[random.integers(1000, size=count)]
    file.flush()


def private_bytes() -> int:
    """Memory of this process that is no page of a file (RssAnon of Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def watch(peak: list[int], done: threading.Event) -> None:
    """Raise `peak[0]` to the largest private memory seen."""
    while not done.wait(0.05):
        peak[0] = max(peak[0], private_bytes())


def measure(path: Path, budget: int, shards: int, out: Path) -> None:
    """Select, and write seconds, private and resident memory in bytes."""
    before = private_bytes()
    peak, done = [before], threading.Event()
    watcher = threading.Thread(target=watch, args=(peak, done))
    watcher.start()
    began = time.perf_counter()
    generator = torch.Generator().manual_seed(0)
    if shards == 1:
        kcenter(read_embeddings(path), budget, generator=generator)
    else:
        choose_in_shards(read_stacked([path]), budget, shards=shards, generator=generator)
    seconds = time.perf_counter() - began
    done.set()
    watcher.join()
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = {"seconds": seconds, "private": peak[0], "resident": resident, "before": before}
    out.write_text(json.dumps(found))


def run(folder: Path, rows: int, options: argparse.Namespace) -> dict[str, float]:
    """One file made, measured in a child process, and removed."""
    path, out = folder / f"{rows}.npy", folder / f"{rows}.json"
    try:
        write_rows(path, rows, options.columns)
        arguments = (path, options.budget, options.shards, out)
        child = multiprocessing.get_context("spawn").Process(target=measure, args=arguments)
        child.start()
        child.join()
        if child.exitcode != 0:
            raise SystemExit(f"{rows} rows: the child process ended with {child.exitcode}")
        return json.loads(out.read_text())
    finally:
        path.unlink(missing_ok=True)


def main() -> None:
    """Print a line for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--large", action="store_true", help="also 10,000,000 rows: 10 GB of disk")
    for name, default in (("columns", 512), ("budget", 500), ("shards", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument(
        "--folder", type=Path, default=None, help="where the files are made (default: a temporary folder)"
    )
    options = parser.parse_args()
    sizes = sorted(options.rows) + ([10_000_000] if options.large else [])
    print(f"k-center of {options.budget}, {options.columns} columns of float16, {options.shards} shards", flush=True)
    first: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for rows in sizes:
            found = run(Path(folder), rows, options)
            first = first or found | {"rows": rows}
            each, share = found["seconds"] / rows, first["seconds"] / first["rows"]
            print(
                f"{rows:,} rows ({rows / first['rows']:.0f}x): {found['seconds']:.1f} s, {1e6 * each:.1f} µs a row "
                f"({each / share:.2f}x), private memory at most {found['private'] / 2**20:.0f} MiB "
                f"({found['private'] / first['private']:.1f}x; {found['before'] / 2**20:.0f} before), resident "
                f"{found['resident'] / 2**20:.0f} MiB ({found['resident'] / first['resident']:.1f}x)",
                flush=True,
            )


if __name__ == "__main__":
    main()
