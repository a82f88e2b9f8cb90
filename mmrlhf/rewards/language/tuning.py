"""Which weights of a score network learn: the head alone, a LoRA, the last blocks, or all."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from mmrlhf.errors import UserError
from mmrlhf.rewards.language.network import ScoreNetwork

TUNE = ("head", "lora", "last", "full")
# attention projections by the names that `transformers` gives them
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "query_proj", "key_proj", "value_proj", "query", "key", "value",
                "q_lin", "k_lin", "v_lin", "qkv_proj", "query_key_value")  # fmt: skip


def choose_weights(
    network: ScoreNetwork, tune: str, *, lora_rank: int, lora_alpha: float | None, last_blocks: int, seed: int
) -> None:
    """Lets the head and the chosen weights learn; a LoRA is put beside the weights (`training.tuning.merge` puts it in)."""
    if tune not in TUNE:
        raise UserError(f"--train got '{tune}', allowed are {', '.join(TUNE)}")
    dtype = next(network.backbone.parameters()).dtype
    if tune in ("last", "full") and dtype != torch.float32:
        raise UserError(f"--train {tune} got weights in {dtype}, allowed is float32: small updates vanish in 16 bits")
    network.requires_grad_(False)
    if tune == "lora":
        add_lora(network.backbone, lora_rank, lora_alpha, seed)
    if tune == "full":
        network.backbone.requires_grad_(True)
    if tune == "last":
        blocks = text_blocks(network.backbone)
        if not 1 <= last_blocks <= len(blocks):
            raise UserError(f"--last-blocks got {last_blocks}, allowed is 1 to {len(blocks)}")
        blocks[-last_blocks:].requires_grad_(True)
    network.head.requires_grad_(True)


def add_lora(backbone: Any, rank: int, alpha: float | None, seed: int) -> None:
    """Low-rank updates beside the attention projections (Hu et al. 2021); α is 2·rank unless given. 0 at the start."""
    from peft import LoraConfig, inject_adapter_in_model

    if rank < 1:
        raise UserError(f"--lora-rank got {rank}, allowed is 1 or more")
    there = {name.rpartition(".")[2] for name, module in backbone.named_modules() if isinstance(module, nn.Linear)}
    targets = [name for name in LORA_TARGETS if name in there]
    if not targets:
        raise UserError(
            f"{type(backbone).__name__} has no linear layer named {', '.join(LORA_TARGETS[:4])} …: give --train last or full"
        )
    config = LoraConfig(r=rank, lora_alpha=2 * rank if alpha is None else alpha, target_modules=targets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, backbone)
    for value in backbone.parameters():
        if value.requires_grad:
            value.data = value.data.float()  # beside 16-bit weights too: small updates would vanish


def text_blocks(backbone: Any) -> nn.ModuleList:
    """The stack of blocks that reads text: the longest list of modules outside the vision tower."""
    stacks = [
        module for name, module in backbone.named_modules() if isinstance(module, nn.ModuleList) and "vis" not in name
    ]
    if not stacks:
        raise UserError(f"{type(backbone).__name__} has no list of blocks: give --train head, lora or full")
    return max(stacks, key=len)


def checkpoint_gradients(backbone: Any) -> Callable[[], None]:
    """Recompute the blocks in the backward pass, to save memory; gives what ends it. Dropout stays off: only blocks "train"."""
    if not backbone.supports_gradient_checkpointing:
        raise UserError(f"{type(backbone).__name__} cannot checkpoint gradients: leave --gradient-checkpointing out")
    # later versions of transformers call it activation checkpointing
    kind = "activation" if hasattr(backbone, "activation_checkpointing_enable") else "gradient"
    getattr(backbone, f"{kind}_checkpointing_enable")({"use_reentrant": False})
    for module in backbone.modules():
        module.training = getattr(module, "gradient_checkpointing", False)

    def end() -> None:
        getattr(backbone, f"{kind}_checkpointing_disable")()
        backbone.eval()

    return end
