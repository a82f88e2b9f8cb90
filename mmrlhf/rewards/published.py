"""Scorers from the files that their authors published, told apart by their keys: PickScore, HPS v2 and v2.1, LAION aesthetic."""

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from mmrlhf.errors import UserError
from mmrlhf.rewards.aesthetic import DEEP_KEYS, LINEAR_KEYS, AestheticReward, fold, towers_of
from mmrlhf.rewards.clip import CLIPReward
from mmrlhf.rewards.encoders.clip import load_backbone
from mmrlhf.rewards.hps import hps_reward
from mmrlhf.types import Reward

ALLOWED = (
    "the folder of a CLIPModel (PickScore), HPS_v2_compressed.pt, HPS_v2.1_compressed.pt, sac+logos+ava1-l14-linearMSE.pth, "
    "sa_0_4_vit_l_14_linear.pth and the like"
)
HPS_KEYS = frozenset({"visual.conv1.weight", "token_embedding.weight", "text_projection"})


def load_published(
    path: str | Path, backbone: str | Path | None = None, *, heads: tuple[int, int] | None = None
) -> Reward:
    """The reward in a published file, or in a folder: a CLIPModel's (PickScore's score), or one that holds such a file, with the
    CLIPModel of an aesthetic head beside it. Read once, here. UserError for anything else.

    `backbone` is the CLIP under an aesthetic head (default: the one it was trained on, from the hub); `heads` are the attention
    heads of HPS's image and text towers, for a file that is no ViT-H-14.
    """
    path = Path(path)
    if path.is_dir():
        return load_folder(path, backbone, heads)
    state = read_tensors(path)
    if state.keys() == DEEP_KEYS or state.keys() == LINEAR_KEYS:
        weight, bias = fold(path, state)
        return AestheticReward(load_backbone(backbone or towers_of(path, len(weight))), weight, bias)
    if HPS_KEYS & state.keys():
        if backbone is not None:
            raise UserError(f"backbone got {backbone}, but {path} holds its own towers: leave it out")
        return hps_reward(path, state, heads)
    names = ", ".join(sorted(state)[:4]) + (" …" if len(state) > 4 else "")
    raise UserError(
        f"{path} holds {len(state)} tensors ({names}) of no published scorer known here: allowed are {ALLOWED}"
    )


def load_folder(folder: Path, backbone: str | Path | None, heads: tuple[int, int] | None) -> Reward:
    """See `load_published`."""
    files = sorted([*folder.glob("*.pth"), *folder.glob("HPS*.pt")])
    has_towers = any((folder / name).is_file() for name in ("config.json", "open_clip_config.json"))
    if len(files) > 1:
        raise UserError(f"{folder} holds {', '.join(file.name for file in files)}: give one of these files")
    if files:
        beside = folder if has_towers and files[0].suffix == ".pth" else None
        return load_published(files[0], backbone or beside, heads=heads)
    if not has_towers:
        raise UserError(f"{folder} holds no published scorer: allowed are {ALLOWED}")
    return CLIPReward.from_pretrained(folder)


def read_tensors(path: Path) -> Mapping[str, Tensor]:
    """Names and tensors of a weights file, without a `state_dict` around them or a `module.` before them.

    UserError where there is no such file, it is cut short, or it holds anything that would have to be run.
    """
    if not path.is_file():
        raise UserError(f"no file or folder {path}: allowed are {ALLOWED}")
    try:
        content = read_weights(path)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"{path} {why_unreadable(error)}") from error
    state = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not state or not all(isinstance(part, Tensor) for part in state.values()):
        raise UserError(f"{path} holds a {type(content).__name__} and no state dict of tensors: allowed are {ALLOWED}")
    return {str(name).removeprefix("module."): tensor for name, tensor in state.items()}


def read_weights(path: Path) -> Any:
    """What is in the file; only plain containers and tensors are ever made from it."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # of pickles of another protocol: they load, or the error says why not
        return torch.load(path, map_location="cpu", weights_only=True)


def why_unreadable(error: Exception) -> str:
    """The end of a sentence about a file. torch's own advice, to load it with what it may run, is never passed on."""
    text = str(error)
    if isinstance(error, pickle.UnpicklingError):
        line = next((line.strip() for line in text.splitlines() if "GLOBAL" in line), None)
        if line is None:
            return "is no weights file that torch.save or safetensors wrote: download it again"
        return f"is refused, for it holds more than tensors ({line[:120]}): give a state dict alone, or safetensors"
    return f"cannot be read ({(text.strip() or type(error).__name__).splitlines()[0][:160]}): download it again"
