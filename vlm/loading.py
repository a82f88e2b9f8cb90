"""Vision-language models from disk or hub, their LoRA adapters, and saving both in the formats of transformers and PEFT."""

import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mmrlhf.errors import UserError
from mmrlhf.models import quiet_loading, resolve_model
from mmrlhf.rewards.language.network import DTYPES, check_whole, padding_of, sees_images
from mmrlhf.runs import run_settings

ADAPTER = ("adapter_model.safetensors", "adapter_config.json")
LORA_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
VISION = re.compile(r"(vision|visual|image)")


def load_model(model: str, dtype: str, device: torch.device) -> tuple[Any, Any]:
    """(the frozen model, its processor). UserError where it is missing, broken, or no vision-language model."""
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    if dtype not in DTYPES:
        raise UserError(f"dtype got '{dtype}', allowed are {', '.join(DTYPES)}")
    where = resolve_model(model)
    try:
        if not sees_images(AutoConfig.from_pretrained(where), model):
            raise UserError(f"model {model} reads text only: give a vision-language model, or tiny-llava")
        processor = AutoProcessor.from_pretrained(where)
        padding_of(processor.tokenizer, where)
        with quiet_loading():
            network, found = AutoModelForImageTextToText.from_pretrained(
                where, dtype=DTYPES[dtype], output_loading_info=True
            )
        check_whole(where, sorted(found["missing_keys"]), False)
    except Exception as error:  # what transformers, its hub client and safetensors raise shares no class
        if isinstance(error, UserError):
            raise
        reason = str(error).strip().split("\n")[0][:200]
        raise UserError(
            f"cannot load the vision-language model {model} ({reason}): give a folder with its config, weights and processor, or "
            "a hub id that can be reached"
        ) from error
    return network.to(device).requires_grad_(False).eval(), processor


def add_lora(network: Any, rank: int, alpha: float | None, seed: int) -> Any:
    """A PeftModel with fresh low-rank updates beside the language model's linear layers, in float32; 0 at the start.

    `alpha` / `rank` scales them; None means 2 · `rank`. Source: Hu et al. 2021. UserError where no layer has such a name.
    """
    from peft import LoraConfig, get_peft_model

    names = [name for name, module in network.named_modules() if isinstance(module, torch.nn.Linear)]
    targets = [name for name in names if name.rpartition(".")[2] in LORA_LAYERS and not VISION.search(name)]
    if not targets:
        raise UserError(
            f"{type(network).__name__} has no linear layer named {', '.join(LORA_LAYERS[:4])} … in its language model: give "
            "--lora-rank 0 for all weights"
        )
    config = LoraConfig(r=rank, lora_alpha=2 * rank if alpha is None else alpha, target_modules=targets)
    with torch.random.fork_rng(devices=[]):  # peft draws its start from the global generator
        torch.manual_seed(seed)
        with as_peft_asks():
            model = get_peft_model(network, config)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
    return model.eval()


def load_adapter(network: Any, folder: Path, *, merge: bool, scale: float = 1.0) -> Any:
    """The model with the trained LoRA weights of a folder, frozen; with `merge` put into its own.

    Below 1, `scale` leaves the model between its start and what was trained (Wortsman et al. 2022, https://arxiv.org/abs/2109.01903).
    UserError where they are missing or do not fit.
    """
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    if missing := [name for name in ADAPTER if not (folder / name).is_file()]:
        raise UserError(f"no adapter in {folder} ({missing[0]} is missing): give the --out folder of a run with a LoRA")
    try:
        with as_peft_asks():
            model = PeftModel.from_pretrained(network, str(folder))
    except Exception as error:  # as in `load_model`
        reason = str(error).strip().split("\n")[0][:200]
        raise UserError(
            f"the adapter {folder} does not fit the model ({reason}): give the model it was trained on"
        ) from error
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.scale_layer(scale)
    return (model.merge_and_unload() if merge else model).requires_grad_(False).eval()


@contextmanager
def as_peft_asks() -> Iterator[None]:
    """Inside, transformers does not warn that PEFT asks for things by their old names."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def trained_template(folder: Path) -> str | None:
    """The --template of the run in a folder; None where it had none, or no run is there."""
    template = run_settings(folder).get("template")
    return template if isinstance(template, str) else None


def save_adapter(model: Any, folder: Path) -> Path:
    """Write the adapter so that `PeftModel.from_pretrained(base, folder)` reads it; each file whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".adapter-") as temporary:
        model.save_pretrained(temporary)
        for name in ADAPTER:
            os.replace(Path(temporary) / name, folder / name)
    return folder


def save_model(network: Any, processor: Any, folder: Path) -> Path:
    """Write the whole model and its processor with `save_pretrained`; an older one at `folder` is replaced at the end."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    with quiet_loading():
        network.save_pretrained(temporary)
        processor.save_pretrained(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)
    return folder
