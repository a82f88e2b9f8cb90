"""A network whose weights are split over the processes, so that several GPUs hold what one cannot.

PyTorch's fully sharded data parallel (`torch.distributed.fsdp.fully_shard`; Zhao et al. 2023, "PyTorch FSDP", and ZeRO stage 3
of Rajbhandari et al. 2020): each process keeps a part of every weight, gradient and moment of the optimizer, and has a block's
weights whole only while it computes with them. All processes must then make the same passes in the same order.
"""

import os
import sys
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from mmrlhf import distributed
from mmrlhf.errors import UserError


def asked_for(option: bool) -> bool:
    """Whether weights are to be split: by `--shard`, or by the configuration of `accelerate launch`.

    UserError for one process, or for DeepSpeed.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        raise UserError(
            "accelerate launch got a DeepSpeed configuration, allowed is FSDP, which splits weights as ZeRO stage 3 does: "
            "give --config_file configs/fsdp.yaml"
        )
    if not option:
        return distributed.size() > 1 and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if distributed.size() == 1:
        raise UserError("--shard got 1 process, allowed are 2 or more: start it with torchrun or accelerate launch")
    return True


def split(network: nn.Module, blocks: Collection[str], device: torch.device) -> None:
    """Split the weights over all processes, and move them to `device`, one after another of the modules of classes so named."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = init_device_mesh(device.type, (distributed.size(),))
    inner_first = [part for part in network.modules() if type(part).__name__ in blocks and part is not network][::-1]
    for part in (*inner_first, network):
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
    for part in network.modules():
        if isinstance(part, FSDPModule):  # losses are divided by the rows of all, so their gradients are to be summed
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)


def is_split(tensor: Tensor) -> bool:
    """Whether each process has a part of it."""
    loaded = sys.modules.get("torch.distributed.tensor")  # slow to import, and there once something is split
    return loaded is not None and isinstance(tensor, loaded.DTensor)


def whole(state: Any) -> Any:
    """Tensors, in whatever containers, with those that are split put together on the CPU: all processes must call it."""
    if isinstance(state, Tensor):
        return full(state).detach().cpu() if is_split(state) else state
    if isinstance(state, dict):
        return {name: whole(value) for name, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(whole(value) for value in state)
    return state


def full(value: Any) -> Tensor:
    """A tensor that may be split, or a figure of such, put together where it lies: all processes must call it."""
    return value.full_tensor() if is_split(value) else value


def like(value: Tensor, example: Any) -> Tensor:
    """A value that is whole, split as `example` is; others stay as they are."""
    if is_split(example) and not is_split(value):
        from torch.distributed.tensor import distribute_tensor

        there = value.to(example.device, example.dtype)
        return distribute_tensor(there, example.device_mesh, example.placements, src_data_rank=None)
    return value


def exchange(weight: nn.Parameter, other: Tensor) -> Tensor:
    """Put `other` into the place of a weight: the weight as it was. Without a copy, save where it is split."""
    if is_split(weight):  # the processes exchange parts of the memory that it has now
        present = weight.detach().clone()
        weight.detach().copy_(other)
    else:
        present, weight.data = weight.data, other
    return present


def split_moments(optimizer: torch.optim.Optimizer) -> None:
    """After `load_state_dict` of whole ones: the moments of weights that are split, split like them."""
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                state[name] = like(value, weight)
