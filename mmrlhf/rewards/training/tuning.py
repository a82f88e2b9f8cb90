"""Which weights of a dual encoder are trained: all, the last blocks, or low-rank adapters that are merged at the end."""

from typing import Literal

import torch
from torch import Tensor

from mmrlhf.errors import UserError
from mmrlhf.rewards.encoders.dual_encoder import DualEncoder

Tune = Literal["full", "last", "lora"]
# what comes after the blocks of a tower, by the names of transformers and open_clip
AFTER_BLOCKS = ("post_layernorm", "final_layer_norm", "ln_post", "ln_final", "trunk.norm", "attn_pool", "projection",
                "visual.proj", "logit_scale", "logit_bias", "vision_model.head", "text_model.head")  # fmt: skip


def unfreeze(backbone: DualEncoder, tune: Tune, *, last_blocks: int, lora_rank: int, seed: int) -> None:
    """Let the chosen weights have gradients; `lora` puts adapters into the model, the same for the same seed."""
    if not backbone.max_tokens:
        raise UserError(
            f"--train {tune} got a backbone that reads no prompt, allowed on it is a head: give --train head"
        )
    model = backbone.model.requires_grad_(tune == "full")
    if tune == "last":
        if not len(backbone.vision_blocks) or not len(backbone.text_blocks):
            raise UserError("--train last got a model without transformer blocks in both towers: give --train full")
        deepest = max(len(backbone.vision_blocks), len(backbone.text_blocks))
        if last_blocks > deepest:
            raise UserError(f"--last-blocks got {last_blocks}, allowed is 1 to {deepest}: the model has no more")
        for block in (*backbone.vision_blocks[-last_blocks:], *backbone.text_blocks[-last_blocks:]):
            block.requires_grad_(True)
        for name, parameter in model.named_parameters():
            if any(part in name for part in AFTER_BLOCKS):
                parameter.requires_grad_(True)
    if tune == "lora":
        from peft import LoraConfig, inject_adapter_in_model

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inject_adapter_in_model(
                LoraConfig(r=lora_rank, lora_alpha=lora_rank, target_modules=list(backbone.lora_targets)), model
            )
        model.to(backbone.device)


def merge(model: torch.nn.Module) -> None:
    """Add the adapters into the weights they adapt, and take them out again: the model has its own classes and names."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, module.get_base_layer())
    del model.peft_config
    model.requires_grad_(False)


def trained_state(model: torch.nn.Module) -> dict[str, Tensor]:
    """The weights that have gradients, copied to the CPU."""
    return {name: value.detach().cpu().clone() for name, value in model.named_parameters() if value.requires_grad}
