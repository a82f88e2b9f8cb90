"""Rewards that need no training, for trying things out and as checks: file size, brightness, colours."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mmrlhf.images import to_pil
from mmrlhf.types import Images


@dataclass(frozen=True)
class JpegSize:
    """`sign` × the size of the image as a JPEG, in kB (1000 bytes); NaN where the image is not finite.

    +1 likes detail (incompressibility), −1 likes plainness (compressibility). Source: Black et al. 2023, quality 95.
    """

    sign: int = 1
    quality: int = 95
    differentiable: bool = False

    def __call__(self, images: Images, prompts: Sequence[str]) -> Float[Tensor, " b"]:
        return torch.tensor([self.one(image) for image in images], device=images.device)

    def one(self, image: Float[Tensor, "3 h w"]) -> float:
        """The score of one image."""
        if not image.isfinite().all():
            return float("nan")
        file = io.BytesIO()
        to_pil(image).save(file, format="JPEG", quality=self.quality)
        return self.sign * file.tell() / 1000


class Brightness:
    """Mean luma (Rec. 601), 0 for black and 1 for white."""

    differentiable = True

    def __call__(self, images: Images, prompts: Sequence[str]) -> Float[Tensor, " b"]:
        weights = images.new_tensor([0.299, 0.587, 0.114])
        return images.mean(dim=(-2, -1)) @ weights


class Colourfulness:
    """Spread and strength of the opponent colours, 0 for grey. Source: Hasler and Suesstrunk 2003, for RGB in [0, 1]."""

    differentiable = True

    def __call__(self, images: Images, prompts: Sequence[str]) -> Float[Tensor, " b"]:
        red, green, blue = images.flatten(2).unbind(dim=1)
        opponents = torch.stack([red - green, (red + green) / 2 - blue], dim=1)
        variance = opponents.var(dim=-1, correction=0).sum(dim=1)
        strength = opponents.mean(dim=-1).square().sum(dim=1)
        return root(variance) + 0.3 * root(strength)


class Redness:
    """Mean red minus the mean of green and blue, in [-1, 1]."""

    differentiable = True

    def __call__(self, images: Images, prompts: Sequence[str]) -> Float[Tensor, " b"]:
        return images.mean(dim=(-2, -1)) @ images.new_tensor([1.0, -0.5, -0.5])


class Warmth:
    """Mean red minus mean blue, in [-1, 1]."""

    differentiable = True

    def __call__(self, images: Images, prompts: Sequence[str]) -> Float[Tensor, " b"]:
        return images.mean(dim=(-2, -1)) @ images.new_tensor([1.0, 0.0, -1.0])


def root(values: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Square root whose gradient at 0 is finite, and which is 0 there."""
    return (values + 1e-12).sqrt() - 1e-6
