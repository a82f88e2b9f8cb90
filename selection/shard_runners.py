"""Where the shards of a selection run: processes of this machine, or a Ray cluster."""

import logging
import multiprocessing
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import partial

from mmrlhf.errors import UserError
from selection.choice import Choice
from selection.shards import Runner, Shared, Task, choose_in_shard, one_by_one


def runner(workers: int, ray: str | None) -> Runner:
    """What `--workers` and `--ray` ask for."""
    if ray is not None:
        return partial(on_ray, address=ray)
    return one_by_one if workers == 1 else partial(in_processes, workers=workers)


def in_processes(tasks: Sequence[Task], shared: Shared, *, workers: int) -> Iterator[tuple[Task, Choice]]:
    """On `workers` fresh processes of this machine, each with its share of the cores. UserError where one is killed."""
    if not tasks:
        return
    threads = max(1, (os.cpu_count() or 1) // workers)
    context = multiprocessing.get_context("spawn")  # a fork would take over the threads of BLAS and torch
    pool = ProcessPoolExecutor(min(workers, len(tasks)), context, initializer=prepare, initargs=(threads,))
    try:
        waiting = {pool.submit(choose_in_shard, task, shared): task for task in tasks}
        for done in as_completed(waiting):
            yield waiting[done], done.result()
    except BrokenProcessPool as error:
        raise UserError(
            f"one of {workers} worker processes died, often for want of memory: give fewer --workers or more --shards; "
            "with --cache, finished shards are kept"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def prepare(threads: int) -> None:
    """A worker process: as many threads as it may use, and no progress bars of its own."""
    sys.stderr.isatty = lambda: False  # type: ignore[method-assign]
    with suppress(ImportError):
        from threadpoolctl import threadpool_limits

        threadpool_limits(threads)


def on_ray(tasks: Sequence[Task], shared: Shared, *, address: str) -> Iterator[tuple[Task, Choice]]:
    """On the Ray cluster at `address` (HOST:PORT, or auto), whose nodes read the files under the same paths; or a local one.

    A Ray that this process has joined before is used, and left running. UserError where there is none, or a worker dies.
    """
    try:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when it is imported
        import ray
    except ImportError as error:
        raise UserError(
            "--ray needs the package ray, which is not installed: pip install 'mmrlhf[ray]', or give --workers"
        ) from error
    if not tasks:
        return
    joined = ray.is_initialized()
    if not joined:
        join(address)
    try:
        remote, told = ray.remote(choose_in_shard), ray.put(shared)
        waiting = {remote.remote(task, told): task for task in tasks}
        while waiting:
            for done in ray.wait(list(waiting))[0]:
                yield waiting.pop(done), ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, UserError) else error from None
    except ray.exceptions.RayError as error:
        raise UserError(f"a worker of Ray died ({' '.join(str(error).split())}): give more --shards") from error
    finally:
        if not joined:
            ray.shutdown()


def join(address: str) -> None:
    """Start a Ray here, or join the one at `address`. UserError where none answers."""
    import ray

    options = {"include_dashboard": False} if address == "local" else {}
    try:
        if address not in ("local", "auto"):
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=10).close()  # Ray itself would wait for many minutes
        ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False, **options)
    except (OSError, ValueError, OverflowError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"--ray got {address}, where no Ray answers ({reason}), allowed are HOST:PORT, auto and local: start one with "
            "`ray start --head`, or give local"
        ) from error
