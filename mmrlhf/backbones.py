"""Networks that see images and no text, by the names of torchvision and timm, and the folders they are kept in."""

import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn

from mmrlhf.data import replacing, write_text
from mmrlhf.errors import UserError

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT = "mmrlhf-backbone"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
UNFIT = {"googlenet", "inception_v3", "squeezenet1_0", "squeezenet1_1"}  # several outputs, or no last linear layer
# how timm's transformers are told the size of images; its convolutional networks refuse both
TIMM_SIZES: tuple[tuple[str, ...], ...] = (("img_size", "dynamic_img_size"), ("img_size",), ())


@dataclass(frozen=True)
class Backbone:
    """A network that gives a vector of `width` numbers an image, what it is called, and how images go into it."""

    name: str
    network: nn.Module
    image_size: int
    width: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Features of images in [0, 1] on the network's device; of `image_size`, or of whatever the network takes too."""
        shift, spread = (images.new_tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        features: Tensor = self.network((images - shift) / spread)
        return features.flatten(1)


def make_backbone(name: str, image_size: int) -> Backbone:
    """The network of that name in torchvision, else in timm, without its last layer, with fresh weights from torch's generator.

    UserError where neither knows it, or it cannot take images of `image_size` pixels.
    """
    import torchvision  # type: ignore[import-untyped]

    try:
        if name in torchvision_names():
            sized = {"image_size": image_size} if name.startswith("vit_") else {}
            network = without_last_layer(torchvision.models.get_model(name, weights=None, **sized))
        else:
            network = timm_network(name, image_size)
        width = width_of(network, image_size)
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        reason = str(error).strip().partition("\n")[0][:120]
        raise UserError(
            f"the backbone {name} takes no images of {image_size} pixels ({reason}): give another --image-size (224 suits all)"
        ) from error
    return Backbone(name, network, image_size, width)


def torchvision_names() -> list[str]:
    """The classification networks of torchvision that give one vector an image."""
    import torchvision

    return [name for name in torchvision.models.list_models(module=torchvision.models) if name not in UNFIT]


def without_last_layer(network: nn.Module) -> nn.Module:
    """The same network with nothing in place of its last linear layer, which is the classifier."""
    name = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)][-1]
    parent, _, own = name.rpartition(".")
    setattr(network.get_submodule(parent), own, nn.Identity())
    return network


def timm_network(name: str, image_size: int) -> nn.Module:
    """The network of that name in timm, fresh. UserError where there is none."""
    import timm

    if not timm.is_model(name):
        close = difflib.get_close_matches(name, sorted({*torchvision_names(), *timm.list_models()}), 3)
        hint = f" (did you mean {' or '.join(close)}?)" if close else ""
        raise UserError(
            f"unknown backbone '{name}'{hint}: allowed are the names of torchvision.models and timm.list_models(), as resnet18"
        )
    values: dict[str, Any] = {"img_size": image_size, "dynamic_img_size": True}
    for options in TIMM_SIZES[:-1]:
        try:
            return timm.create_model(name, num_classes=0, **{option: values[option] for option in options})
        except TypeError:  # this network has no such option
            continue
    return timm.create_model(name, num_classes=0)


@torch.no_grad()
def width_of(network: nn.Module, image_size: int) -> int:
    """How many numbers it gives an image of that size. ValueError where it gives something else than one vector."""
    training = network.training
    features = network.eval()(torch.zeros(1, 3, image_size, image_size))
    network.train(training)
    if not isinstance(features, Tensor):
        raise ValueError(f"it gives a {type(features).__name__} and not a vector an image")
    return features.flatten(1).shape[1]


def is_backbone(folder: str | Path) -> bool:
    """Whether `save_backbone` wrote the config in there."""
    try:
        found = json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("format") == FORMAT


def save_backbone(backbone: Backbone, folder: Path) -> None:
    """Write model.safetensors and, last, config.json, so that a folder with it is whole."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().contiguous().clone() for name, value in backbone.network.state_dict().items()}
    with replacing(folder / WEIGHTS) as temporary:
        save_file(state, temporary)
    settings: dict[str, Any] = {"format": FORMAT, "backbone": backbone.name, "image_size": backbone.image_size}
    settings |= {"width": backbone.width, "mean": list(backbone.mean), "std": list(backbone.std)}
    write_text(json.dumps(settings, indent=2) + "\n", folder / CONFIG)


def load_backbone_folder(folder: str | Path) -> Backbone:
    """What `save_backbone` wrote, for use: in eval mode, without gradients to weights. UserError where it is broken."""
    from safetensors.torch import load_file

    folder = Path(folder)
    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        name, image_size, width = str(settings["backbone"]), int(settings["image_size"]), int(settings["width"])
        mean, std = (tuple(float(value) for value in settings[key]) for key in ("mean", "std"))
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"mean got {mean} and std {std}, allowed are three numbers each, those of std above 0")
        with torch.random.fork_rng(devices=[]):  # the fresh weights are thrown away
            made = make_backbone(name, image_size)
        if made.width != width:
            raise ValueError(f"{name} gives {made.width} numbers an image, {CONFIG} says {width}")
        made.network.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"the backbone in {folder} is broken ({reason}): restore its files or train it again"
        ) from error
    network = made.network.eval().requires_grad_(False)
    return Backbone(name, network, image_size, width, mean, std)
