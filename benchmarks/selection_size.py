"""k-center on memory-mapped float16 files of growing size: time a row and peak memory, and their ratios to the smallest file.

python benchmarks/selection_size.py [--rows 100000 1000000] [--large] [--shards N | --shard-rows N] [--columns 512] [--budget 500]
    [--folder DIR]

With --folder a run that was stopped goes on there: files, finished shards and finished sizes are kept until all is done. Of
a size that was taken up again the time is that of the last part, and told so.

Each selection runs in a child process; seconds are of the processor, which other programs disturb less than the clock's.
Resident memory counts the pages of the mapped file, which the system takes back when it wants them; the private memory, sampled
20 times a second, is what the selection itself holds.
"""

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from tqdm import trange

from mmrlhf.data import write_text
from selection.files import read_embeddings, read_stacked
from selection.kcenter import kcenter
from selection.shards import choose_in_shards

BLOCK = 16_384


def write_rows(path: Path, rows: int, columns: int) -> None:
    """Rows around 1,000 centres, written block by block; the noise comes from a pool, as drawing it would take longest."""
    random = np.random.default_rng(0)
    centres = 2 * random.standard_normal((1000, columns), dtype=np.float32)
    pool = random.standard_normal((2 * BLOCK, columns), dtype=np.float32)
    half = path.with_suffix(".half")
    file = np.lib.format.open_memmap(half, mode="w+", dtype=np.float16, shape=(rows, columns))
    for start in trange(0, rows, BLOCK, desc=f"writing {rows:,} rows", disable=None, delay=2):
        count = min(BLOCK, rows - start)
        begin = int(random.integers(BLOCK))
        file[start : start + count] = pool[begin : begin + count] + centres[random.integers(1000, size=count)]
    file.flush()
    os.replace(half, path)


def private_bytes() -> int:
    """Memory of this process that is no page of a file (RssAnon of Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def watch(peak: list[int], done: threading.Event) -> None:
    """Raise `peak[0]` to the largest private memory seen."""
    while not done.wait(0.05):
        peak[0] = max(peak[0], private_bytes())


def measure(path: Path, budget: int, shards: int, cache: Path, out: Path) -> None:
    """Select, and write seconds, private and resident memory in bytes, and how many shards were there already."""
    there = len(list(cache.rglob("*.json")))
    before = private_bytes()
    peak, done = [before], threading.Event()
    watcher = threading.Thread(target=watch, args=(peak, done))
    watcher.start()
    began, clock = time.process_time(), time.perf_counter()
    generator = torch.Generator().manual_seed(0)
    if shards == 1:
        kcenter(read_embeddings(path), budget, generator=generator)
    else:
        choose_in_shards(read_stacked([path]), budget, shards=shards, generator=generator, cache=cache)
    seconds, clock = time.process_time() - began, time.perf_counter() - clock
    done.set()
    watcher.join()
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = {
        "seconds": seconds,
        "clock": clock,
        "private": peak[0],
        "resident": resident,
        "before": before,
        "there": there,
    }
    write_text(json.dumps(found), out)


def run(folder: Path, rows: int, options: argparse.Namespace) -> dict[str, float]:
    """One file made, measured in a child process, and removed; what is there of an earlier run is not made again."""
    path, out = folder / f"{rows}.npy", folder / f"{rows}-{options.columns}-{options.budget}.json"
    if not out.exists():
        if not path.exists():
            write_rows(path, rows, options.columns)
        shards = -(-rows // options.shard_rows) if options.shard_rows else options.shards
        arguments = (path, options.budget, shards, folder / f"{rows}-kept", out)
        child = multiprocessing.get_context("spawn").Process(target=measure, args=arguments)
        child.start()
        child.join()
        if child.exitcode != 0:
            raise SystemExit(f"{rows} rows: the child process ended with {child.exitcode}")
    path.unlink(missing_ok=True)
    return json.loads(out.read_text())


def main() -> None:
    """Print a line for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--large", action="store_true", help="also 10,000,000 rows: 10 GB of disk")
    for name, default in (("columns", 512), ("budget", 500), ("shards", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--shard-rows", type=int, default=0, help="as many shards as have so many rows")
    parser.add_argument(
        "--folder", type=Path, default=None, help="where the files are made, and kept until all is done"
    )
    options = parser.parse_args()
    sizes = sorted(options.rows) + ([10_000_000] if options.large else [])
    split = f"{options.shard_rows:,} rows a shard" if options.shard_rows else f"{options.shards} shards"
    print(f"k-center of {options.budget}, {options.columns} columns of float16, {split}", flush=True)
    first: dict[str, float] = {}
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        for rows in sizes:
            found = run(folder, rows, options)
            first = first or found | {"rows": rows}
            each, share = found["seconds"] / rows, first["seconds"] / first["rows"]
            print(
                f"{rows:,} rows ({rows / first['rows']:.0f}x): {found['seconds']:.1f} s ({found['clock']:.0f} by the clock"
                + (f", {found['there']} shards were there" if found["there"] else "")
                + f"), {1e6 * each:.1f} µs a row "
                f"({each / share:.2f}x), private memory at most {found['private'] / 2**20:.0f} MiB "
                f"({found['private'] / first['private']:.1f}x; {found['before'] / 2**20:.0f} before), resident "
                f"{found['resident'] / 2**20:.0f} MiB ({found['resident'] / first['resident']:.1f}x)",
                flush=True,
            )
        for rows in sizes if options.folder else []:
            (folder / f"{rows}-{options.columns}-{options.budget}.json").unlink()
            shutil.rmtree(folder / f"{rows}-kept", ignore_errors=True)


if __name__ == "__main__":
    main()
