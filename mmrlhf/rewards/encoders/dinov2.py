"""DINOv2, with registers or without, as the eyes of a reward and of selection: `transformers` Dinov2Model; it reads no prompt."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel, BitImageProcessor

from mmrlhf.errors import UserError
from mmrlhf.models import quiet_loading, resolve_model
from mmrlhf.rewards.encoders.dual_encoder import explain_loading, in_chunks, load_whole, model_type, patch_features
from mmrlhf.rewards.encoders.image_only import WithoutText
from mmrlhf.rewards.encoders.resizing import normalise, resize
from mmrlhf.types import Images

DINOV2 = ("dinov2", "dinov2_with_registers")
BICUBIC = 3  # Pillow's number


class Dinov2Backbone(WithoutText):
    """A Dinov2Model in float32 with its preprocessing, a `DualEncoder` whose prompts are all the vector 0; picklable.

    Its embedding is the class token after the last norm. Source: Oquab et al. 2023, Darcet et al. 2023 (registers).
    """

    def __init__(
        self, model: Any, short_side: int, image_size: int, pixel_mean: Sequence[float], pixel_std: Sequence[float]
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.short_side, self.image_size = short_side, image_size
        self.pixel_mean, self.pixel_std = tuple(pixel_mean), tuple(pixel_std)

    @classmethod
    def load(cls, model: str | Path) -> "Dinov2Backbone":
        """A folder that `Dinov2Model.save_pretrained` wrote, or a hub id. UserError where it is neither."""
        where = resolve_model(str(model))
        wanted = "a folder with a Dinov2Model and its preprocessor_config.json, or a hub id that can be reached"
        with explain_loading("DINOv2", model, wanted):
            if (found := model_type(where)) not in DINOV2:
                raise UserError(f"model {model} is a {found}, allowed are {' and '.join(DINOV2)}")
            processor = BitImageProcessor.from_pretrained(where)
            short, crop = processor.size["shortest_edge"], processor.crop_size
            if processor.resample != BICUBIC or crop["height"] != crop["width"] or (short or 0) < crop["height"]:
                raise UserError(f"model {model} resizes otherwise than DINOv2, allowed is bicubic with a square crop")
            tower = load_whole(AutoModel, where)
            return cls(tower, short, crop["height"], processor.image_mean, processor.image_std)

    def save(self, folder: Path) -> None:
        """Write the model and preprocessing in the formats of `transformers`."""
        size = self.image_size
        with quiet_loading():
            self.model.save_pretrained(folder)
            BitImageProcessor(
                size={"shortest_edge": self.short_side}, crop_size={"height": size, "width": size}, resample=BICUBIC,
                image_mean=list(self.pixel_mean), image_std=list(self.pixel_std),
            ).save_pretrained(folder)  # fmt: skip

    @property
    def embedding_width(self) -> int:
        return self.model.config.hidden_size

    @property
    def feature_width(self) -> int:
        """Columns of `image_features`."""
        return 5 * self.embedding_width

    @property
    def vision_blocks(self) -> Any:
        return self.model.encoder.layer

    def preprocess(self, images: Images) -> Float[Tensor, "b 3 size size"]:
        """Shorter side to the processor's (bicubic, antialiased), then its middle square, still in [0, 1]: its own steps.

        An image of the square's size goes in whole, so that what is preprocessed stays as it is.
        """
        if images.shape[-2:] == (self.image_size, self.image_size):
            return images
        short, size = min(images.shape[-2:]), self.image_size
        height, width = (int(side * self.short_side / short) for side in images.shape[-2:])
        top, left = (height - size) // 2, (width - size) // 2
        return resize(images, (height, width), "bicubic")[..., top : top + size, left : left + size]

    def pixels(self, images: Images) -> Float[Tensor, "b 3 size size"]:
        """What the tower takes: preprocessed and normalised, on the model's device."""
        images = self.preprocess(images.to(self.device, torch.float32))
        return normalise(images, self.pixel_mean, self.pixel_std, self.device)

    def embed_images(self, images: Images) -> Float[Tensor, "b p"]:
        """Unit image embeddings."""
        tokens = in_chunks(images, lambda part: self.model(pixel_values=self.pixels(part)).pooler_output)
        return F.normalize(tokens, dim=-1)

    def image_features(self, images: Images) -> Float[Tensor, "b f"]:
        """What a head sees of each image; see `patch_features`."""
        return in_chunks(images, self.chunk_features)

    def chunk_features(self, images: Images) -> Float[Tensor, "b f"]:
        """`image_features` of a few images."""
        pixels = self.pixels(images)
        out, first = self.model(pixel_values=pixels), self.model.embeddings(pixels)
        before = 1 + getattr(self.model.config, "num_register_tokens", 0)  # class token and registers
        return patch_features(
            F.normalize(out.pooler_output, dim=-1), out.last_hidden_state[:, before:], first[:, before:]
        )
