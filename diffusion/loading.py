"""Text-to-image pipelines from disk or hub, their LoRA adapters, and saving both in the formats of diffusers."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open

from diffusion.families import FAMILIES
from mmrlhf.distributed import is_main_process
from mmrlhf.errors import UserError
from mmrlhf.models import quiet_loading, resolve_model
from mmrlhf.sharding import is_split, whole

NETWORKS = ("unet", "transformer")
LORA_FILE = "pytorch_lora_weights.safetensors"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_pipeline(model: str, device: torch.device, dtype: torch.dtype, *, network_stays: bool = False) -> Any:
    """A frozen pipeline in evaluation mode, without safety checker; `network_stays` leaves the denoising network on the CPU.

    UserError where it is missing, broken or of another class.
    """
    where = resolve_model(model)
    try:
        found = DiffusionPipeline.load_config(where)
        name = str((found[0] if isinstance(found, tuple) else found).get("_class_name"))
        if name not in FAMILIES:
            raise UserError(
                f"model {model} is a {name}, allowed are {', '.join(FAMILIES)}: give one of these, or tiny-sd"
            )
        unwanted = (
            {"safety_checker": None, "requires_safety_checker": False} if name == "StableDiffusionPipeline" else {}
        )
        with quiet_loading(diffusers.utils.logging):
            pipeline = getattr(diffusers, name).from_pretrained(where, **unwanted)
        check_complete(pipeline)
    except UserError:
        raise
    except Exception as error:  # what diffusers, transformers, their hub client and safetensors raise shares no class
        raise UserError(
            f"cannot load the model {model} ({reason_of(error)}): give a folder that the pipeline's save_pretrained "
            "wrote, a hub id that can be reached, or tiny-sd"
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    for name, part in modules_of(pipeline).items():
        # diffusers' own `to` warns of 16 bits; the autoencoder of SDXL overflows in 16 bits and says so
        own = torch.float32 if getattr(part.config, "force_upcast", False) else dtype
        there = torch.device("cpu") if network_stays and name in NETWORKS else device
        torch.nn.Module.to(part.requires_grad_(False).eval(), there, own)
    return pipeline


def modules_of(pipeline: Any) -> dict[str, Any]:
    """The networks of a pipeline by name."""
    return {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}


def reason_of(error: Exception) -> str:
    """The class of an error, which alone says little less than some of their texts, and the start of its text."""
    return f"{type(error).__name__}: {str(error).strip()}".split("\n")[0][:200]


def check_complete(pipeline: Any) -> None:
    """ValueError where files are missing whose lack `from_pretrained` passes over, to fail or draw nonsense later."""
    tokenizer, encoder = pipeline.tokenizer, pipeline.text_encoder
    if tokenizer is not None and encoder is not None:
        positions = encoder.config.max_position_embeddings
        if len(tokenizer) <= len(tokenizer.all_special_ids) or tokenizer.model_max_length > positions:
            raise ValueError(
                f"the files of its tokenizer/ are missing or incomplete: {len(tokenizer)} tokens, model_max_length "
                f"{tokenizer.model_max_length:.6g} for a text encoder of {positions} positions"
            )
    for name, part in modules_of(pipeline).items():
        for weight_name, weight in part.named_parameters():
            if weight.is_meta:
                raise ValueError(f"the weights of its {name}/ lack {weight_name}")


def add_lora(network: Any, rank: int, alpha: float | None, targets: Sequence[str], seed: int) -> None:
    """Give the network a LoRA adapter (float32, starts as no change) on the layers whose names end in one of `targets`.

    `alpha` / `rank` scales it; None means `rank`. Source: Hu et al. 2021. UserError where no layer has such a name.
    """
    linear = (torch.nn.Linear, torch.nn.Conv2d)
    names = [name for name, layer in network.named_modules() if isinstance(layer, linear)]
    if not any(name == end or name.endswith(f".{end}") for name in names for end in targets):
        raise UserError(
            f"the LoRA targets {', '.join(targets)} match no layer of {type(network).__name__}: choose other --lora-targets, or "
            "--lora-rank 0 for all weights"
        )
    config = LoraConfig(r=rank, lora_alpha=rank if alpha is None else alpha, target_modules=list(targets))
    with torch.random.fork_rng(devices=[]):  # peft draws its start from the global generator
        torch.manual_seed(seed)
        network.add_adapter(config)
    for weight in network.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
    network.eval()


def load_lora(pipeline: Any, network_name: str, folder: Path) -> None:
    """Put the LoRA weights of a folder (or file) on the pipeline, frozen. UserError where they are missing or do not fit."""
    file = folder / LORA_FILE if folder.is_dir() else folder
    if not file.is_file():
        raise UserError(f"no LoRA weights at {file}: give the --out folder of a run with --lora-rank 1 or more")
    network = getattr(pipeline, network_name)
    try:
        names = safetensors_keys(file)
        if strange := [name for name in names if not name.startswith(f"{network_name}.")]:
            raise ValueError(f"it changes {strange[0]}, only the {network_name} may change")
        with only_errors():  # it warns that there is nothing for the text encoders
            pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
        taken = sum("lora_" in name for name, _ in network.named_parameters())
        if taken < len([name for name in names if "lora" in name]):
            raise ValueError(f"of {len(names)} weights {taken} have a place in the {network_name}")
    except Exception as error:  # as in `load_pipeline`
        raise UserError(
            f"the LoRA weights {file} do not fit the model ({reason_of(error)}): give the model they were trained on"
        ) from error
    network.requires_grad_(False).eval()


def tune_speed(network: Any, *, compile: bool, channels_last: bool, attention: str | None) -> None:
    """Ways to compute the same faster. UserError for an attention that diffusers does not know, or that cannot run here."""
    if channels_last:
        network.to(memory_format=torch.channels_last)
    if attention is not None:
        try:
            with only_errors():
                network.set_attention_backend(attention)
        except (ValueError, RuntimeError, ImportError) as error:
            raise UserError(
                f"--attention got '{attention}' ({reason_of(error)}): leave it out, or give another"
            ) from error
    if compile:
        network.compile()


@contextmanager
def only_errors() -> Iterator[None]:
    """Inside, diffusers and transformers warn of nothing."""
    parts = (diffusers.utils.logging, transformers.utils.logging)
    shown = [part.get_verbosity() for part in parts]
    for part in parts:
        part.set_verbosity_error()
    try:
        yield
    finally:
        for part, level in zip(parts, shown, strict=True):
            part.set_verbosity(level)


def safetensors_keys(file: Path) -> list[str]:
    """The names in a safetensors file."""
    with safe_open(file, framework="pt") as opened:
        return list(opened.keys())


def save_lora(pipeline: Any, network_name: str, folder: Path) -> Path:
    """Write the adapter so that the pipeline's `load_lora_weights(folder)` reads it; whole or not at all.

    Where the weights are split over processes, all must call it, and the first one writes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    network = getattr(pipeline, network_name)
    adapter = next(iter(network.peft_config))
    # PEFT's names: diffusers' `convert_state_dict_to_diffusers` renames the attention layers only, and then its loader
    # silently drops those of a LoRA that has other layers too.
    weights = whole(get_peft_model_state_dict(network, adapter_name=adapter))
    if not is_main_process():
        return folder / LORA_FILE
    settings = {
        key: sorted(value) if isinstance(value, set) else value
        for key, value in network.peft_config[adapter].to_dict().items()
    }
    layers = {f"{network_name}_lora_layers": weights, f"{network_name}_lora_adapter_metadata": settings}
    with tempfile.TemporaryDirectory(dir=folder, prefix=".lora-") as temporary:
        pipeline.save_lora_weights(temporary, weight_name=LORA_FILE, **layers)
        os.replace(Path(temporary) / LORA_FILE, folder / LORA_FILE)
    return folder / LORA_FILE


def save_pipeline(pipeline: Any, network_name: str, folder: Path) -> Path:
    """Write the whole model with `save_pretrained`; an older one at `folder` is replaced at the end.

    Where the network's weights are split over processes, all must call it, and the first one writes.
    """
    network = getattr(pipeline, network_name)
    plain = put_together(network)
    if not is_main_process():
        return folder
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    setattr(pipeline, network_name, plain)
    try:
        with quiet_loading(diffusers.utils.logging):  # transformers has a progress bar for writing, too
            pipeline.save_pretrained(temporary)
    finally:
        setattr(pipeline, network_name, network)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)
    return folder


def put_together(network: Any) -> Any:
    """A network whose weights are split over processes, as one on the CPU without an adapter; any other as it is."""
    if not any(is_split(weight) for weight in network.parameters()):
        return network
    weights = whole(network.state_dict())
    kind = getattr(diffusers, network.config["_class_name"])
    with torch.device("meta"):
        plain = kind.from_config(network.config)
    plain.load_state_dict(weights, assign=True)
    return plain.eval()
