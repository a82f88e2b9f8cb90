"""The two towers of a CLIP model as functions of tensors: images and prompts in, features out, gradients to the images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoTokenizer, CLIPImageProcessor, CLIPModel

from mmrlhf.errors import UserError
from mmrlhf.models import quiet_loading, resolve_model
from mmrlhf.types import Images

CHUNK = 64  # images encoded at a time


class CLIPBackbone:
    """A `transformers` CLIPModel in float32 with its tokenizer and preprocessing; picklable."""

    def __init__(self, model: Any, tokenizer: Any, pixel_mean: Sequence[float], pixel_std: Sequence[float]) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.pixel_mean, self.pixel_std = tuple(pixel_mean), tuple(pixel_std)

    @classmethod
    def load(cls, model: str | Path) -> "CLIPBackbone":
        """tiny-clip, a folder that `CLIPModel.save_pretrained` wrote, or a hub id. UserError where it is none of these."""
        where = resolve_model(str(model))
        try:
            found = AutoConfig.from_pretrained(where).model_type
            if found != "clip":
                raise UserError(
                    f"model {model} is a {found}, allowed is a CLIPModel: give tiny-clip or a CLIP model's folder"
                )
            with quiet_loading():
                towers = CLIPModel.from_pretrained(where, dtype=torch.float32)
                tokenizer = AutoTokenizer.from_pretrained(where)
                processor = CLIPImageProcessor.from_pretrained(where)
        except Exception as error:  # what transformers, its hub client and safetensors raise shares no class
            if isinstance(error, UserError):
                raise
            reason = str(error).strip().split("\n")[0][:200]
            raise UserError(
                f"cannot load the CLIP model {model} ({reason}): give a folder with a CLIPModel, its tokenizer and its "
                "preprocessor_config.json, a hub id that can be reached, or tiny-clip"
            ) from error
        return cls(towers, tokenizer, processor.image_mean, processor.image_std)

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
    def embedding_width(self) -> int:
        return self.model.config.projection_dim

    @property
    def feature_width(self) -> int:
        """Columns of `image_features`."""
        return self.embedding_width + 4 * self.model.config.vision_config.hidden_size

    def preprocess(self, images: Images) -> Float[Tensor, "b 3 size size"]:
        """Shorter side to the model's size (bicubic, antialiased), middle square, still in [0, 1]: CLIPImageProcessor's steps."""
        height, width = images.shape[-2:]
        size = self.image_size
        if (height, width) != (size, size):
            short = min(height, width)
            shape = [max(size, int(side * size / short)) for side in (height, width)]
            images = F.interpolate(images, shape, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
            top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
            images = images[..., top : top + size, left : left + size]
        return images

    def pixels(self, images: Images) -> Float[Tensor, "b 3 size size"]:
        """What the vision tower takes: preprocessed and normalised, on the model's device."""
        images = self.preprocess(images.to(self.device, torch.float32))
        mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (self.pixel_mean, self.pixel_std))
        return (images - mean) / std

    def embed_images(self, images: Images) -> Float[Tensor, "b p"]:
        """Unit image embeddings."""
        parts = [self.model.vision_model(pixel_values=self.pixels(part)).pooler_output for part in images.split(CHUNK)]
        return F.normalize(self.model.visual_projection(torch.cat(parts)), dim=-1)

    def image_features(self, images: Images) -> Float[Tensor, "b f"]:
        """What a head sees of each image, side by side: the unit embedding, the mean over the patches of the last layer,
        and of the embedding layer, before the tower forgets plain colours, the mean and the spread over the patches, and
        the mean over those at the border.
        """
        return torch.cat([self.chunk_features(part) for part in images.split(CHUNK)])

    def chunk_features(self, images: Images) -> Float[Tensor, "b f"]:
        """`image_features` of a few images, in one pass."""
        pixels = self.pixels(images)
        out = self.model.vision_model(pixel_values=pixels)
        last = out.last_hidden_state[:, 1:]
        first = self.model.vision_model.embeddings(pixels)[:, 1:]
        spread = (first.var(dim=1, correction=0) + 1e-8).sqrt()  # the root of 0 has no gradient
        embedding = F.normalize(self.model.visual_projection(out.pooler_output), dim=-1)
        border = first[:, border_patches(first.shape[1], first.device)].mean(dim=1)
        return torch.cat([embedding, last.mean(dim=1), first.mean(dim=1), spread, border], dim=-1)

    def embed_prompts(self, prompts: Sequence[str]) -> Float[Tensor, "b p"]:
        """Unit text embeddings; each different prompt is encoded once, padded to the longest of the batch.

        A prompt longer than the text tower is cut (see `count_truncated`); padding is behind a causal mask and changes nothing.
        """
        distinct = list(dict.fromkeys(prompts))
        inputs = self.tokenizer(
            distinct, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(self.device)
        pooled = self.model.text_model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).pooler_output
        embedded = F.normalize(self.model.text_projection(pooled), dim=-1)
        row = {prompt: number for number, prompt in enumerate(distinct)}
        return embedded[torch.tensor([row[prompt] for prompt in prompts], device=self.device)]

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


def border_patches(count: int, device: torch.device) -> Tensor:
    """Row numbers of the patches along the edges of a square grid of `count`."""
    side = round(count**0.5)
    inner = torch.zeros(side, side, dtype=torch.bool, device=device)
    inner[1:-1, 1:-1] = True
    return (~inner.flatten()).nonzero().flatten()


def pick_device(name: str) -> str:
    """`auto` is the GPU where there is one. UserError for a device that is not there."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return str(torch.empty(0, device=name).device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            f"--device got '{name}' ({reason}), allowed are auto, cpu, cuda … where there is one"
        ) from error
