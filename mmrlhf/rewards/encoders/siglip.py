"""SigLIP and SigLIP 2 as backbones of rewards: `transformers` SiglipModel, prompts padded to full length as in its training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, SiglipImageProcessor, SiglipModel

from mmrlhf.errors import UserError
from mmrlhf.models import quiet_loading, resolve_model
from mmrlhf.rewards.encoders.dual_encoder import (
    embed_distinct,
    explain_loading,
    in_chunks,
    load_whole,
    model_type,
    patch_features,
)
from mmrlhf.rewards.encoders.resizing import normalise, resize
from mmrlhf.types import Images

MODES = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers; SigLIP resizes with bicubic, SigLIP 2 with bilinear


class SiglipBackbone:
    """A SiglipModel in float32 with its tokenizer and preprocessing. Source: Zhai et al. 2023, Tschannen et al. 2025.

    Picklable; SigLIP 1's tokenizer, of sentencepiece, names its file in the pickle, which must still be there.

    Images are squashed to a square, and their embedding is pooled by attention. The text tower has no causal mask and sees its
    padding, and both generations were trained on prompts in lower case: so is each prompt written, and padded on the right to
    `max_tokens`.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        resample: int = 3,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.pixel_mean, self.pixel_std = tuple(pixel_mean), tuple(pixel_std)
        self.resample = resample

    @classmethod
    def load(cls, model: str | Path) -> "SiglipBackbone":
        """A folder that `SiglipModel.save_pretrained` wrote, or a hub id. UserError where it is neither."""
        where = resolve_model(str(model))
        wanted = "a folder with a SiglipModel, its tokenizer and its preprocessor_config.json, or a hub id that can be reached"
        with explain_loading("SigLIP", model, wanted):
            if (found := model_type(where)) != "siglip":
                raise UserError(f"model {model} is a {found}, allowed is a SiglipModel: give a SigLIP model's folder")
            processor = SiglipImageProcessor.from_pretrained(where)
            if (resample := int(processor.resample)) not in MODES:
                raise UserError(f"model {model} resizes with {resample}, allowed are 2 (bilinear) and 3 (bicubic)")
            tokenizer = AutoTokenizer.from_pretrained(where)
            towers = load_whole(SiglipModel, where)
            return cls(towers, tokenizer, processor.image_mean, processor.image_std, resample)

    def save(self, folder: Path) -> None:
        """Write the model, tokenizer and preprocessing in the formats of `transformers`."""
        with quiet_loading():
            self.model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
            SiglipImageProcessor(
                size={"height": self.image_size, "width": self.image_size}, resample=self.resample,
                image_mean=list(self.pixel_mean), image_std=list(self.pixel_std),
            ).save_pretrained(folder)  # fmt: skip

    @property
    def image_size(self) -> int:
        return self.model.config.vision_config.image_size

    @property
    def device(self) -> torch.device:
        return self.model.logit_scale.device

    @property
    def scale(self) -> Float[Tensor, ""]:
        """What a cosine is multiplied by."""
        return self.model.logit_scale.exp().reshape(())

    @property
    def bias(self) -> Float[Tensor, ""]:
        """What is added then: σ(scale·cosine + bias) is the probability that image and prompt belong together."""
        return self.model.logit_bias.reshape(())

    @property
    def embedding_width(self) -> int:
        return self.model.config.text_config.projection_size

    @property
    def feature_width(self) -> int:
        """Columns of `image_features`."""
        return self.embedding_width + 4 * self.model.config.vision_config.hidden_size

    @property
    def vision_blocks(self) -> Any:
        return self.model.vision_model.encoder.layers

    @property
    def text_blocks(self) -> Any:
        return self.model.text_model.encoder.layers

    @property
    def lora_targets(self) -> tuple[str, ...]:
        return tuple(f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj"))

    def preprocess(self, images: Images) -> Float[Tensor, "b 3 size size"]:
        """Squashed to the model's square, still in [0, 1]: SiglipImageProcessor's steps."""
        return resize(images, (self.image_size, self.image_size), MODES[self.resample])

    def pixels(self, images: Images) -> Float[Tensor, "b 3 size size"]:
        """What the vision tower takes: preprocessed and normalised, on the model's device."""
        images = self.preprocess(images.to(self.device, torch.float32))
        return normalise(images, self.pixel_mean, self.pixel_std, self.device)

    def embed_images(self, images: Images) -> Float[Tensor, "b p"]:
        """Unit image embeddings."""
        pooled = in_chunks(images, lambda part: self.model.vision_model(pixel_values=self.pixels(part)).pooler_output)
        return F.normalize(pooled, dim=-1)

    def image_features(self, images: Images) -> Float[Tensor, "b f"]:
        """What a head sees of each image; see `patch_features`."""
        return in_chunks(images, self.chunk_features)

    def chunk_features(self, images: Images) -> Float[Tensor, "b f"]:
        """`image_features` of a few images, in one pass."""
        pixels = self.pixels(images)
        out = self.model.vision_model(pixel_values=pixels)
        first = self.model.vision_model.embeddings(pixels)
        return patch_features(F.normalize(out.pooler_output, dim=-1), out.last_hidden_state, first)

    def embed_prompts(self, prompts: Sequence[str]) -> Float[Tensor, "b p"]:
        """Unit text embeddings; each different prompt is encoded once; one that is too long is cut."""
        return embed_distinct(prompts, self.encode_prompts)

    def encode_prompts(self, prompts: list[str]) -> Float[Tensor, "q p"]:
        """The same of prompts that are all different. No mask: in training the tower saw the padding."""
        inputs = self.tokenizer(
            [prompt.lower() for prompt in prompts], padding="max_length", padding_side="right", truncation=True,
            max_length=self.max_tokens, return_tensors="pt",
        )  # fmt: skip
        return F.normalize(self.model.text_model(input_ids=inputs.input_ids.to(self.device)).pooler_output, dim=-1)

    @property
    def max_tokens(self) -> int:
        return self.model.config.text_config.max_position_embeddings

    def count_truncated(self, prompts: Sequence[str]) -> int:
        """How many of the different prompts are too long for the text tower."""
        distinct = sorted({prompt.lower() for prompt in prompts})
        return sum(len(ids) > self.max_tokens for ids in self.tokenizer(distinct).input_ids)

    def to(self, device: torch.device | str) -> "SiglipBackbone":
        """Move the weights; returns itself."""
        self.model.to(device)
        return self
