"""LAION's aesthetic predictors: an affine function of CLIP's unit image embedding, trained on people's ratings of 1 to 10."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from mmrlhf.errors import UserError
from mmrlhf.rewards.encoders.dual_encoder import DualEncoder
from mmrlhf.types import Images

LAYERS = (0, 2, 4, 6, 7)  # between them the published network has dropout only, no activation
DEEP_KEYS = frozenset(f"layers.{layer}.{part}" for layer in LAYERS for part in ("weight", "bias"))
LINEAR_KEYS = frozenset({"weight", "bias"})
# which towers a file was trained on: a part of its published name, the width of the embedding, the hub id
TOWERS = (
    ("l14", 768, "openai/clip-vit-large-patch14"),
    ("l_14", 768, "openai/clip-vit-large-patch14"),
    ("b_32", 512, "openai/clip-vit-base-patch32"),
    ("b_16", 512, "openai/clip-vit-base-patch16"),
)


class AestheticReward:
    """`weight`·(unit image embedding) + `bias`, whatever the prompt. Row-independent, differentiable in the images, picklable.

    Source: Schuhmann 2022, improved-aesthetic-predictor; LAION 2022, aesthetic-predictor.
    """

    differentiable = True

    def __init__(self, backbone: DualEncoder, weight: Float[Tensor, " p"], bias: Float[Tensor, ""]) -> None:
        if backbone.embedding_width != len(weight):
            raise UserError(
                f"the aesthetic head takes embeddings of {len(weight)} numbers, the backbone gives {backbone.embedding_width}: "
                "give the CLIP that it was trained on (768: ViT-L/14, 512: ViT-B/32 or ViT-B/16)"
            )
        self.backbone = backbone
        self.weight, self.bias = weight, bias

    def __call__(self, images: Images, prompts: Sequence[str]) -> Float[Tensor, " b"]:
        if not len(images):
            return images.new_zeros(0)
        seen = self.backbone.embed_images(images)
        return (seen @ self.weight.to(seen.device) + self.bias.to(seen.device)).to(images.device)

    def to(self, device: torch.device | str) -> "AestheticReward":
        """Move the weights; returns itself."""
        self.backbone.to(device)
        return self


def fold(path: Path, state: Mapping[str, Tensor]) -> tuple[Float[Tensor, " p"], Float[Tensor, ""]]:
    """(weight, bias) of the whole affine network, composed in float64. UserError where the layers do not fit together."""
    names = [f"layers.{layer}." for layer in LAYERS] if "layers.0.weight" in state else [""]
    for name, before in zip(names, [None, *names], strict=False):
        weight, bias = state[f"{name}weight"], state[f"{name}bias"]
        width = weight.shape[-1] if before is None else len(state[f"{before}bias"])
        if weight.shape != (len(bias), width) or (name == names[-1] and len(bias) != 1):
            rows = "1" if name == names[-1] else len(bias)
            raise UserError(
                f"{name}weight in {path} has shape {tuple(weight.shape)}, allowed here is ({rows}, {width}): download it again"
            )
    weight, bias = state[f"{names[0]}weight"].double(), state[f"{names[0]}bias"].double()
    for name in names[1:]:
        layer = state[f"{name}weight"].double()
        weight, bias = layer @ weight, layer @ bias + state[f"{name}bias"].double()
    return weight[0].float(), bias[0].float()


def towers_of(path: Path, width: int) -> str:
    """Hub id of the CLIP that a published head was trained on. UserError where neither its name nor its width tells."""
    named = [hub_id for part, wide, hub_id in TOWERS if wide == width and part in path.stem.lower()]
    possible = named or sorted({hub_id for _, wide, hub_id in TOWERS if wide == width})
    if len(possible) != 1:
        raise UserError(
            f"the aesthetic head {path} takes embeddings of {width} numbers and its name does not say whose: give the CLIP "
            "that it was trained on as backbone"
        )
    return possible[0]
