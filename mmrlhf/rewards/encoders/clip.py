"""The two towers of a CLIP model as functions of tensors: images and prompts in, features out, gradients to the images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

from mmrlhf.backbones import is_backbone
from mmrlhf.errors import UserError
from mmrlhf.models import quiet_loading, resolve_model
from mmrlhf.rewards.encoders.dual_encoder import (
    DualEncoder,
    embed_distinct,
    explain_loading,
    in_chunks,
    load_whole,
    model_type,
    patch_features,
)
from mmrlhf.rewards.encoders.resizing import normalise, to_short_side
from mmrlhf.types import Images


def load_backbone(model: str | Path, *, prompts: bool = True) -> DualEncoder:
    """tiny-clip, or a folder or hub id of a CLIPModel, a SiglipModel (SigLIP, and SigLIP 2 of a fixed size), a Dinov2Model or,
    written hf-hub:owner/name, of open_clip; or a folder that `mmrlhf select pretrain` wrote. It and DINOv2 read no prompt.

    UserError for anything else. It is read once, here. Without `prompts`, a CLIPModel needs no tokenizer, and has none.
    """
    from mmrlhf.rewards.encoders.dinov2 import DINOV2, Dinov2Backbone
    from mmrlhf.rewards.encoders.image_only import ImageOnlyBackbone
    from mmrlhf.rewards.encoders.open_clip import OpenClipBackbone, is_open_clip
    from mmrlhf.rewards.encoders.siglip import SiglipBackbone

    where = resolve_model(str(model))
    if is_backbone(where):
        return ImageOnlyBackbone.load(where)
    if is_open_clip(where):
        return OpenClipBackbone.load(model)
    with explain_loading("image-text", model, "tiny-clip, a model's folder, or a hub id that can be reached"):
        found = model_type(where)
    if found == "siglip":
        return SiglipBackbone.load(model)
    if found in DINOV2:
        return Dinov2Backbone.load(model)
    if found == "clip":
        return CLIPBackbone.load(model, prompts=prompts)
    raise UserError(
        f"model {model} is a {found}, allowed are clip, siglip (which SigLIP 2 of a fixed image size is, too), dinov2 and "
        "folders with an open_clip_config.json: give one of these"
    )


class CLIPBackbone:
    """A `transformers` CLIPModel in float32 with its tokenizer and preprocessing; picklable."""

    def __init__(self, model: Any, tokenizer: Any, pixel_mean: Sequence[float], pixel_std: Sequence[float]) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.pixel_mean, self.pixel_std = tuple(pixel_mean), tuple(pixel_std)

    @classmethod
    def load(cls, model: str | Path, *, prompts: bool = True) -> "CLIPBackbone":
        """tiny-clip, a folder that `CLIPModel.save_pretrained` wrote, or a hub id. UserError where it is none of these.

        Without `prompts` the weights are enough: their pixels are then those of the published models.
        """
        where = resolve_model(str(model))
        wanted = (
            "a folder with a CLIPModel, its tokenizer and its preprocessor_config.json, a hub id that can be reached, or "
            "tiny-clip"
        )
        with explain_loading("CLIP", model, wanted):
            if (found := model_type(where)) != "clip":
                raise UserError(
                    f"model {model} is a {found}, allowed is a CLIPModel: give tiny-clip or a CLIP model's folder"
                )
            processor = clip_processor(where, needed=prompts)
            tokenizer = AutoTokenizer.from_pretrained(where) if prompts else None
            return cls(load_whole(CLIPModel, where), tokenizer, processor.image_mean, processor.image_std)

    def save(self, folder: Path) -> None:
        """Write the model, tokenizer and preprocessing in the formats of `transformers`."""
        size = self.image_size
        with quiet_loading():
            self.model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
            CLIPImageProcessor(
                size={"shortest_edge": size}, crop_size={"height": size, "width": size},
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
        """What a cosine is multiplied by: the inverse of the temperature that the model was trained with."""
        return self.model.logit_scale.exp()

    @property
    def bias(self) -> Float[Tensor, ""]:
        """A softmax has none."""
        return torch.zeros((), device=self.device)

    @property
    def embedding_width(self) -> int:
        return self.model.config.projection_dim

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
        """Shorter side to the model's size (bicubic, antialiased), middle square, still in [0, 1]: CLIPImageProcessor's steps."""
        return to_short_side(images, self.image_size, "bicubic")

    def pixels(self, images: Images) -> Float[Tensor, "b 3 size size"]:
        """What the vision tower takes: preprocessed and normalised, on the model's device."""
        images = self.preprocess(images.to(self.device, torch.float32))
        return normalise(images, self.pixel_mean, self.pixel_std, self.device)

    def embed_images(self, images: Images) -> Float[Tensor, "b p"]:
        """Unit image embeddings."""
        pooled = in_chunks(images, lambda part: self.model.vision_model(pixel_values=self.pixels(part)).pooler_output)
        return F.normalize(self.model.visual_projection(pooled), dim=-1)

    def image_features(self, images: Images) -> Float[Tensor, "b f"]:
        """What a head sees of each image; see `patch_features`."""
        return in_chunks(images, self.chunk_features)

    def chunk_features(self, images: Images) -> Float[Tensor, "b f"]:
        """`image_features` of a few images, in one pass."""
        tower = self.model.vision_model
        first = tower.embeddings(self.pixels(images))
        # the tower's own forward would not give `first` away, and making it twice costs a tenth of a small tower
        last = tower.encoder(inputs_embeds=tower.pre_layrnorm(first)).last_hidden_state
        embedding = F.normalize(self.model.visual_projection(tower.post_layernorm(last[:, 0])), dim=-1)
        return patch_features(embedding, last[:, 1:], first[:, 1:])

    def embed_prompts(self, prompts: Sequence[str]) -> Float[Tensor, "b p"]:
        """Unit text embeddings; each different prompt is encoded once, padded to the longest of the batch.

        A prompt longer than the text tower is cut (see `count_truncated`); padding is behind a causal mask and changes nothing.
        """
        return embed_distinct(prompts, self.encode_prompts)

    def encode_prompts(self, prompts: list[str]) -> Float[Tensor, "q p"]:
        """The same of prompts that are all different."""
        inputs = self.tokenizer(
            prompts, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(self.device)
        pooled = self.model.text_model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).pooler_output
        return F.normalize(self.model.text_projection(pooled), dim=-1)

    @property
    def max_tokens(self) -> int:
        return self.model.config.text_config.max_position_embeddings

    def count_truncated(self, prompts: Sequence[str]) -> int:
        """How many of the different prompts are too long for the text tower."""
        return sum(len(ids) > self.max_tokens for ids in self.tokenizer(sorted(set(prompts))).input_ids)

    def to(self, device: torch.device | str) -> "CLIPBackbone":
        """Move the weights; returns itself."""
        self.model.to(device)
        return self


def clip_processor(where: str, *, needed: bool) -> Any:
    """The preprocessing beside a model's weights; that of the published CLIP models where there is none and none is `needed`."""
    try:
        return CLIPImageProcessor.from_pretrained(where)
    except (OSError, ValueError):
        if needed:
            raise
        return CLIPImageProcessor()
