"""How image processors resize, on tensors, so that gradients pass: to the short side, squashed, or to the long side."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from mmrlhf.types import Images


def resize(images: Images, shape: tuple[int, int], mode: str) -> Float[Tensor, "b 3 height width"]:
    """To (height, width) with the antialiased `mode` of Pillow (bicubic or bilinear), still in [0, 1]."""
    if tuple(images.shape[-2:]) == shape:
        return images
    return F.interpolate(images, shape, mode=mode, antialias=True, align_corners=False).clamp(0, 1)


def to_short_side(images: Images, size: int, mode: str, *, rounded: bool = False) -> Float[Tensor, "b 3 size size"]:
    """The shorter side to `size`, then the middle square.

    An odd excess is cut in halves rounded down as transformers does, or, `rounded`, to the even as torchvision's CenterCrop.
    """
    short = min(images.shape[-2:])
    height, width = (max(size, int(side * size / short)) for side in images.shape[-2:])
    top, left = (round(over / 2) if rounded else over // 2 for over in (height - size, width - size))
    return resize(images, (height, width), mode)[..., top : top + size, left : left + size]


def to_long_side(images: Images, size: int, mode: str, fill: float = 0.0) -> Float[Tensor, "b 3 size size"]:
    """The longer side to `size`, with bars of brightness `fill` on both sides of the shorter."""
    ratio = max(images.shape[-2:]) / size
    height, width = (max(1, round(side / ratio)) for side in images.shape[-2:])
    top, left = (size - height) // 2, (size - width) // 2
    bars = (left, size - width - left, top, size - height - top)
    return F.pad(resize(images, (height, width), mode), bars, value=fill)


def normalise(
    images: Images, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> Float[Tensor, "b 3 h w"]:
    """Channels less their `mean`, over their `std`, in float32 on `device`: what a vision tower takes."""
    images = images.to(device, torch.float32)
    shift, spread = (images.new_tensor(values).view(3, 1, 1) for values in (mean, std))
    return (images - shift) / spread
