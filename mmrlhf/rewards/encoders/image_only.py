"""A backbone without text tower as the eyes of a reward: heads learn from its image embedding, whatever the prompt."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mmrlhf.backbones import Backbone, load_backbone_folder, save_backbone
from mmrlhf.rewards.encoders.dual_encoder import in_chunks
from mmrlhf.rewards.encoders.resizing import to_short_side
from mmrlhf.types import Images

Tower = TypeVar("Tower", bound="WithoutText")


class WithoutText:
    """The half of a `DualEncoder` that there is no text tower for: prompts are all the vector 0."""

    max_tokens = 0  # of no text tower
    model: Any

    @property
    def embedding_width(self) -> int:
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def scale(self) -> Float[Tensor, ""]:
        """There is no cosine with a text to be multiplied."""
        return torch.ones((), device=self.device)

    @property
    def bias(self) -> Float[Tensor, ""]:
        return torch.zeros((), device=self.device)

    @property
    def text_blocks(self) -> Any:
        return nn.ModuleList()

    @property
    def lora_targets(self) -> tuple[str, ...]:
        return ()

    def embed_prompts(self, prompts: Sequence[str]) -> Float[Tensor, "b p"]:
        """Zeros."""
        return torch.zeros(len(prompts), self.embedding_width, device=self.device)

    def count_truncated(self, prompts: Sequence[str]) -> int:
        """None: no prompt is read."""
        return 0

    def to(self: Tower, device: torch.device | str) -> Tower:
        """Move the weights; returns itself."""
        self.model.to(device)
        return self


class ImageOnlyBackbone(WithoutText):
    """A `DualEncoder` whose prompts are all the vector 0: a score without a head would be 0 for every image."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone, self.model = backbone, backbone.network.eval().requires_grad_(False)

    @classmethod
    def load(cls, folder: str | Path) -> "ImageOnlyBackbone":
        """A folder that `mmrlhf select pretrain` wrote. UserError where it is broken."""
        return cls(load_backbone_folder(folder))

    def save(self, folder: Path) -> None:
        """Write a folder that `load` takes."""
        save_backbone(self.backbone, folder)

    @property
    def image_size(self) -> int:
        return self.backbone.image_size

    @property
    def embedding_width(self) -> int:
        return self.backbone.width

    @property
    def feature_width(self) -> int:
        """Columns of `image_features`."""
        return self.backbone.width

    @property
    def vision_blocks(self) -> Any:
        return nn.ModuleList()

    def preprocess(self, images: Images) -> Float[Tensor, "b 3 size size"]:
        """Shorter side to the network's size (bicubic, antialiased), middle square, still in [0, 1]."""
        return to_short_side(images, self.image_size, "bicubic")

    def embed_images(self, images: Images) -> Float[Tensor, "b p"]:
        """Unit image embeddings."""
        images = images.to(self.device, torch.float32)
        return F.normalize(in_chunks(images, lambda part: self.backbone(self.preprocess(part))), dim=-1)

    def image_features(self, images: Images) -> Float[Tensor, "b f"]:
        """What a head sees of each image: its unit embedding."""
        return self.embed_images(images)
