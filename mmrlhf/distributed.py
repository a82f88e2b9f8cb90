"""Several processes that train one model: each encodes its part of a batch, all see the whole, and gradients are summed.

Started by `accelerate launch` or `torchrun`. The loss of the whole batch is computed alike on every process from gathered
embeddings, so that the result is that of one process, in-batch negatives included.
"""

import atexit
import os
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor


def join() -> None:
    """Join the other processes, where there are any, each with a GPU of its own where there are enough.

    `accelerate launch` and `torchrun` say through the same environment who they are.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        place = int(os.environ.get("LOCAL_RANK", "0"))
        if place < torch.cuda.device_count():
            torch.cuda.set_device(place)
        dist.init_process_group()
        atexit.register(dist.destroy_process_group)


def size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this one; 0 writes the files."""
    return dist.get_rank() if size() > 1 else 0


def is_main_process() -> bool:
    """Whether this process writes files and shows progress."""
    return rank() == 0


def say(text: str) -> None:
    """Print a line once, whatever the number of processes."""
    if is_main_process():
        print(text)


def wait() -> None:
    """Wait for all the others."""
    if size() > 1:
        dist.barrier()


def own_part(count: int) -> range:
    """The rows of `count` that this process encodes: parts in order, of sizes that differ by at most 1."""
    share, rest = divmod(count, size())
    start = rank() * share + min(rank(), rest)
    return range(start, start + share + (rank() < rest))


def gather(part: Float[Tensor, "n p"], count: int) -> Float[Tensor, "count p"]:
    """The rows of all processes in order, `count` together; gradients flow back to the process that made them."""
    return GatherRows.apply(part, count) if size() > 1 else part


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Sum over processes, divided by their number; what has none here, as where all rows went to others, counts as 0."""
    parameters = list(parameters)
    sum_gradients(parameters)
    if size() > 1:
        for parameter in parameters:
            assert parameter.grad is not None
            parameter.grad /= size()


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Sum over processes, where each has divided its loss by the number of rows of all."""
    if size() == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)


def total(numbers: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The sum of each number over processes."""
    if size() > 1:
        numbers = numbers.clone()
        dist.all_reduce(numbers)
    return numbers


def gather_objects(value: Any) -> list[Any]:
    """What each process has, in order."""
    if size() == 1:
        return [value]
    everything: list[Any] = [None] * size()
    dist.all_gather_object(everything, value)
    return everything


def extremes(lowest: float, highest: float) -> tuple[float, float]:
    """The least and the greatest over processes."""
    if size() == 1:
        return lowest, highest
    pair = torch.tensor([-lowest, highest], dtype=torch.float64)
    dist.all_reduce(pair, op=dist.ReduceOp.MAX)
    return -float(pair[0]), float(pair[1])


class GatherRows(torch.autograd.Function):
    """Rows of unequal numbers from all processes; backward, the sum of what every process wants of the own rows."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, count: int) -> Tensor:
        longest = -(-count // size())
        padded = torch.cat([part, part.new_zeros(longest - len(part), *part.shape[1:])])
        parts = [torch.empty_like(padded) for _ in range(size())]
        dist.all_gather(parts, padded.contiguous())
        share, rest = divmod(count, size())
        return torch.cat([rows[: share + (place < rest)] for place, rows in enumerate(parts)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        whole = gradients[0].contiguous().clone()
        dist.all_reduce(whole)
        rows = own_part(len(whole))
        return whole[rows.start : rows.stop], None
