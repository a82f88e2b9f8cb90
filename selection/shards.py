"""Selection from more rows than fit into one machine: each shard chooses, then the choice is made among all that they chose."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from tqdm import tqdm

from mmrlhf.data import write_text
from mmrlhf.errors import UserError
from selection.choice import Choice, check_request, draw
from selection.facility_location import facility_location
from selection.files import embedding_hash, read_pieces
from selection.kcenter import kcenter
from selection.random_choice import random_choice
from selection.stacked import Piece, Stacked

IN_SHARDS = ("kcenter", "facility-location", "random")


class Task(NamedTuple):
    """What a shard has to do: choose `budget` of its rows, of which the first has the number `first` among all."""

    number: int
    pieces: tuple[Piece, ...]
    first: int
    rows: int
    budget: int
    seed: int


class Shared(NamedTuple):
    """What every shard is told: the strategy, the rows selected already, and the rows to be served, which stand for `rows`."""

    strategy: str
    epsilon: float
    already: tuple[int, ...]
    already_rows: Float[np.ndarray, "a d"]
    served: Float[np.ndarray, "m d"] | None
    rows: int


Runner = Callable[[Sequence[Task], Shared], Iterator[tuple[Task, Choice]]]  # in whichever order the shards finish


def one_by_one(tasks: Sequence[Task], shared: Shared) -> Iterator[tuple[Task, Choice]]:
    """In this process, so that memory is that of one shard."""
    for task in tasks:
        yield task, choose_in_shard(task, shared)


def choose_in_shards(
    rows: Stacked,
    budget: int,
    *,
    strategy: str = "kcenter",
    shards: int | None = None,
    already: Sequence[int] = (),
    generator: torch.Generator,
    run: Runner = one_by_one,
    cache: Path | None = None,
    epsilon: float = 0.01,
    most_served: int = 20_000,
) -> Choice:
    """`budget` new rows in two rounds (GreeDi, Mirzasoleiman et al. 2013): of each shard, then of all that the shards chose.

    `shards` ranges of equal length, or a file a shard; each chooses `budget` rows (all that it has where these are fewer),
    with `already` counted as chosen, whichever shard they lie in. `run` says where: `one_by_one`, `in_processes`, `on_ray`.
    The picks depend on `generator` and on how the rows are split, not on `run`. `epsilon`
    and `most_served` are those of facility location.

    kcenter: the covering radius is at most 4 times the best, given `already` (Malkomes et al. 2015): every row is within
    2·OPT of its shard's choice, every row of these within 2·OPT of the last. facility-location: all shards serve the same
    rows, all of them or `most_served` drawn ones, and the best of the last choice and each shard's is taken, so
    that the summed similarity to these is at least (1 - 1/e)/√min(shards, budget) of the best (Mirzasoleiman et al. 2016,
    with `epsilon` 0); near 1 in practice, and for rows in random order at least (1 - 1/e)/2 in expectation (Barbosa et al.
    2015). random reads no rows, and draws as without shards. Memory, beside numbers a row: a shard, shards x budget rows,
    and the rows served.

    With `cache`, a folder, a finished shard's choice is kept and not made again, until `budget`, `already`, the generator, the
    split or the file (its path, size and time of change) differ. UserError for what cannot be done, or names the shard.
    """
    known = check_request(len(rows), budget, already)
    if strategy not in IN_SHARDS:
        raise UserError(f"--strategy {strategy} cannot be run on shards, allowed are {', '.join(IN_SHARDS)}")
    if strategy == "random":
        return random_choice(rows, budget, already=known, generator=generator)
    served = None
    if strategy == "facility-location":
        served = rows[to_serve(len(rows), most_served, generator)]
    shared = Shared(strategy, epsilon, tuple(known), rows[np.array(known, dtype=np.int64)], served, len(rows))
    tasks = split(rows, shards, budget, known, generator)
    return second_round(rows, budget, first_round(tasks, shared, run, cache), shared, generator)


def to_serve(count: int, most: int, generator: torch.Generator) -> np.ndarray:
    """The numbers of all rows, or of `most` drawn ones, ascending."""
    return np.arange(count) if count <= most else np.sort(draw(np.arange(count), most, generator))


def split(
    rows: Stacked, shards: int | None, budget: int, known: Sequence[int], generator: torch.Generator
) -> list[Task]:
    """A task for each shard in which a row is free."""
    if shards is not None and not 1 <= shards <= len(rows):
        raise UserError(f"got {shards} shards, allowed are 1 to {len(rows)}: there are {len(rows)} rows")
    if shards is None:
        edges = [0, *rows.ends.tolist()]
    else:
        edges = [len(rows) * number // shards for number in range(shards + 1)]
    taken = np.sort(np.array(known, dtype=np.int64))
    seeds = torch.randint(2**62, (len(edges) - 1,), generator=generator).tolist()
    tasks = []
    for number, (start, stop) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        free = stop - start - int(np.diff(np.searchsorted(taken, [start, stop]))[0])
        if free > 0:
            pieces = rows.pieces(start, stop)
            tasks.append(Task(number, pieces, start, stop - start, min(budget, free), seeds[number]))
    return tasks


def choose_in_shard(task: Task, shared: Shared) -> Choice:
    """The first round in one shard; row numbers are those among all. UserError names the shard."""
    rows = read_pieces(task.pieces)
    inside = [task.first <= index < task.first + task.rows for index in shared.already]
    known = [index - task.first for index, here in zip(shared.already, inside, strict=True) if here]
    outside = shared.already_rows[~np.array(inside, dtype=bool)]
    if len(outside):
        known += range(len(rows), len(rows) + len(outside))
        rows = np.concatenate([rows, outside])
    generator = torch.Generator().manual_seed(task.seed)
    try:
        choice = choose(rows, task.budget, known, shared, generator)
    except UserError as error:
        sources = " and ".join(str(piece.source) for piece in task.pieces if isinstance(piece.source, Path))
        where = f"shard {task.number}, which starts at row {task.first}" + (f", of {sources}" if sources else "")
        raise UserError(f"{where}: {error}") from error
    return choice._replace(indices=choice.indices + task.first)


def choose(
    rows: Float[np.ndarray, "n d"], budget: int, known: Sequence[int], shared: Shared, generator: torch.Generator
) -> Choice:
    """The strategy on rows in memory or in one file."""
    if shared.strategy == "kcenter":
        return kcenter(rows, budget, already=known, generator=generator)
    return facility_location(
        rows, budget, already=known, generator=generator, epsilon=shared.epsilon, served=shared.served, stand_for=shared.rows,
    )  # fmt: skip


def first_round(tasks: Sequence[Task], shared: Shared, run: Runner, cache: Path | None) -> list[Choice]:
    """What each shard chose, in the order of the shards; those found in `cache` are not run."""
    names = {} if cache is None else {task.number: cache / "shards" / f"{key(task, shared)}.json" for task in tasks}
    found = {number: choice for number, path in names.items() if (choice := read_choice(path)) is not None}
    missing = [task for task in tasks if task.number not in found]
    with tqdm(total=len(tasks), initial=len(found), desc="shards", disable=None, delay=1) as bar:
        for task, choice in run(missing, shared):
            if task.number in names:
                write_choice(choice, names[task.number])
            found[task.number] = choice
            bar.update()
    return [found[task.number] for task in tasks]


def second_round(
    rows: Stacked, budget: int, choices: Sequence[Choice], shared: Shared, generator: torch.Generator
) -> Choice:
    """The choice among all that the shards chose; of facility location, a shard's own choice where it is better."""
    union = np.sort(np.concatenate([choice.indices for choice in choices]))
    among = np.concatenate([rows[union], shared.already_rows])
    known = list(range(len(union), len(among)))
    last = choose(among, budget, known, shared, generator)
    last = last._replace(indices=union[last.indices])
    if shared.strategy == "kcenter":
        return last
    whole = [choice for choice in choices if len(choice.indices) == budget]
    return max([last, *whole], key=lambda choice: float(choice.gains.sum()))


def key(task: Task, shared: Shared) -> str:
    """A name for all that a shard's choice depends on."""
    pieces = [
        (*identity(piece.source, slice(piece.start, piece.stop)), piece.start, piece.stop) for piece in task.pieces
    ]
    served = None if shared.served is None else (embedding_hash(shared.served), shared.rows)
    told = (task.first, task.budget, task.seed, shared.strategy, shared.epsilon, shared.already, served)
    return hashlib.sha256(repr((pieces, told, embedding_hash(shared.already_rows))).encode()).hexdigest()[:32]


def identity(source: Path | np.ndarray, rows: slice) -> tuple[str | int, ...]:
    """The path, size and time of change of a file, the values of rows in memory: which rows they are."""
    if isinstance(source, np.ndarray):
        return (embedding_hash(source[rows]),)
    status = source.stat()
    return str(source), status.st_size, status.st_mtime_ns


def write_choice(choice: Choice, path: Path) -> None:
    """Keep a shard's choice; the file appears whole or not at all."""
    kept = {"indices": choice.indices.tolist(), "gains": choice.gains.tolist(), "why": choice.why}
    write_text(json.dumps(kept, allow_nan=False) + "\n", path)


def read_choice(path: Path) -> Choice | None:
    """A kept choice; None where there is none, or it cannot be read."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return Choice(np.array(kept["indices"], np.int64), np.array(kept["gains"], np.float64), list(kept["why"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
