"""Stable Diffusion pipelines from disk or hub, their LoRA adapters, and saving both in the formats of diffusers."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from mmrlhf.errors import UserError
from mmrlhf.models import quiet_loading, resolve_model

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "time_emb_proj")
LORA_TARGETS = {
    "attention": ATTENTION,
    "attention-ff": ATTENTION + FEED_FORWARD,
    "all": ATTENTION + FEED_FORWARD + CONVOLUTIONS,
}
LORA_FILE = "pytorch_lora_weights.safetensors"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name: str) -> torch.device:
    """`auto` is the first GPU where there is one, else the CPU. UserError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            f"device got '{name}' ({reason}), allowed are auto, cpu, cuda, cuda:1 … where there is one"
        ) from error


def load_pipeline(model: str, device: torch.device, dtype: torch.dtype) -> StableDiffusionPipeline:
    """A frozen pipeline in evaluation mode, without safety checker. UserError where it is missing, broken or of another class."""
    where = resolve_model(model)
    try:
        found = StableDiffusionPipeline.load_config(where)
        found = (found[0] if isinstance(found, tuple) else found).get("_class_name")
        if found != "StableDiffusionPipeline":
            raise UserError(
                f"model {model} is a {found}, allowed is a StableDiffusionPipeline: give Stable Diffusion 1 or 2, or tiny-sd"
            )
        with quiet_loading(diffusers.utils.logging):
            pipeline = StableDiffusionPipeline.from_pretrained(
                where, safety_checker=None, requires_safety_checker=False
            )
        check_complete(pipeline)
    except UserError:
        raise
    except Exception as error:  # what diffusers, transformers, their hub client and safetensors raise shares no class
        raise UserError(
            f"cannot load the model {model} ({reason_of(error)}): give a folder that StableDiffusionPipeline.save_pretrained "
            "wrote, a hub id that can be reached, or tiny-sd"
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        torch.nn.Module.to(part.requires_grad_(False).eval(), device, dtype)  # diffusers' own `to` warns of 16 bits
    return pipeline


def reason_of(error: Exception) -> str:
    """The class of an error, which alone says little less than some of their texts, and the start of its text."""
    return f"{type(error).__name__}: {str(error).strip()}".split("\n")[0][:200]


def check_complete(pipeline: StableDiffusionPipeline) -> None:
    """ValueError where files are missing whose lack `from_pretrained` passes over, to fail or draw nonsense later."""
    tokenizer, positions = pipeline.tokenizer, pipeline.text_encoder.config.max_position_embeddings
    if len(tokenizer) <= len(tokenizer.all_special_ids) or tokenizer.model_max_length > positions:
        raise ValueError(
            f"the files of its tokenizer/ are missing or incomplete: {len(tokenizer)} tokens, model_max_length "
            f"{tokenizer.model_max_length:.6g} for a text encoder of {positions} positions"
        )
    for name in ("unet", "vae", "text_encoder"):
        for weight_name, weight in getattr(pipeline, name).named_parameters():
            if weight.is_meta:
                raise ValueError(f"the weights of its {name}/ lack {weight_name}")


def add_lora(unet: Any, rank: int, alpha: float | None, targets: str, seed: int) -> None:
    """Give the UNet a LoRA adapter (float32, starts as no change) on the layers that `LORA_TARGETS[targets]` names.

    `alpha` / `rank` scales it; None means `rank`. Source: Hu et al. 2021.
    """
    if targets not in LORA_TARGETS:
        raise UserError(f"lora_targets got '{targets}', allowed are {', '.join(LORA_TARGETS)}")
    config = LoraConfig(r=rank, lora_alpha=rank if alpha is None else alpha, target_modules=list(LORA_TARGETS[targets]))
    with torch.random.fork_rng(devices=[]):  # peft draws its start from the global generator
        torch.manual_seed(seed)
        unet.add_adapter(config)
    for weight in unet.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
    unet.eval()


def load_lora(pipeline: StableDiffusionPipeline, folder: Path) -> None:
    """Put the LoRA weights of a folder (or file) on the pipeline, frozen. UserError where they are missing or do not fit."""
    file = folder / LORA_FILE if folder.is_dir() else folder
    if not file.is_file():
        raise UserError(f"no LoRA weights at {file}: give the --out folder of a run with --lora-rank 1 or more")
    try:
        weights, alphas, metadata = pipeline.lora_state_dict(
            str(file.parent), weight_name=file.name, return_lora_metadata=True
        )
        if any(name.startswith("text_encoder") for name in weights):
            raise ValueError("it changes the text encoder, only the UNet may change")
        pipeline.load_lora_into_unet(weights, network_alphas=alphas, unet=pipeline.unet, metadata=metadata)
    except Exception as error:  # as in `load_pipeline`
        raise UserError(
            f"the LoRA weights {file} do not fit the model ({reason_of(error)}): give the model they were trained on"
        ) from error
    pipeline.unet.requires_grad_(False).eval()


def save_lora(unet: Any, folder: Path) -> Path:
    """Write the adapter so that `StableDiffusionPipeline.load_lora_weights(folder)` reads it; whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    adapter = next(iter(unet.peft_config))
    # PEFT's names: diffusers' `convert_state_dict_to_diffusers` renames the attention layers only, and then its loader
    # silently drops those of a LoRA that has other layers too.
    weights = get_peft_model_state_dict(unet, adapter_name=adapter)
    settings = {
        key: sorted(value) if isinstance(value, set) else value
        for key, value in unet.peft_config[adapter].to_dict().items()
    }
    with tempfile.TemporaryDirectory(dir=folder, prefix=".lora-") as temporary:
        StableDiffusionPipeline.save_lora_weights(
            temporary, unet_lora_layers=weights, unet_lora_adapter_metadata=settings, weight_name=LORA_FILE
        )
        os.replace(Path(temporary) / LORA_FILE, folder / LORA_FILE)
    return folder / LORA_FILE


def save_pipeline(pipeline: StableDiffusionPipeline, folder: Path) -> Path:
    """Write the whole model with `save_pretrained`; an older one at `folder` is replaced at the end."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    pipeline.save_pretrained(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)
    return folder
