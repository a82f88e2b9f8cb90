"""Prompt coverage of images: whether CLIP sees each content word of the prompt in the picture; the weakest word counts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mmrlhf.errors import UserError
from mmrlhf.rewards.encoders.clip import load_backbone
from mmrlhf.rewards.encoders.dual_encoder import DualEncoder
from mmrlhf.rewards.rules.text_rules import content_words, stem
from mmrlhf.types import Images

TEMPLATE = "a photo of {}"
# what a picture might show as well: a word of the prompt counts by how far it lies above the mean of these
OTHER_WORDS = (
    "person", "dog", "bird", "fish", "tree", "flower", "house", "car", "boat", "chair", "table", "bottle", "food", "fruit",
    "book", "clock", "ball", "hand", "sun", "mountain", "water", "red", "green", "blue",
)  # fmt: skip
ABOUT_PICTURES = frozenset(("photo", "photograph", "picture", "image", "drawing", "painting", "illustration"))


class WordCoverage:
    """How well the least (or the mean) content word of a prompt is seen: cosine of the image with the word, minus its mean
    cosine with other common words. NaN where the prompt has no content word. Differentiable in the images, picklable.
    """

    differentiable = True

    def __init__(self, backbone: DualEncoder, reduce: Literal["min", "mean"] = "min") -> None:
        if reduce not in ("min", "mean"):
            raise UserError(f"reduce got '{reduce}', allowed are min, mean")
        self.backbone, self.reduce = backbone, reduce

    @classmethod
    def from_pretrained(cls, model: str | Path, reduce: Literal["min", "mean"] = "min") -> "WordCoverage":
        """By tiny-clip, or a folder or hub id of a CLIP, SigLIP or open_clip model."""
        return cls(load_backbone(model), reduce)

    def __call__(self, images: Images, prompts: Sequence[str]) -> Float[Tensor, " b"]:
        if len(images) != len(prompts):
            raise UserError(f"got {len(images)} images and {len(prompts)} prompts: give a prompt an image")
        asked = [[word for word in content_words(prompt) if word not in ABOUT_PICTURES] for prompt in prompts]
        column = {word: i for i, word in enumerate(dict.fromkeys([*OTHER_WORDS, *(w for ws in asked for w in ws)]))}
        if not prompts:
            return images.new_zeros(0)
        texts = self.backbone.embed_prompts([TEMPLATE.format(word) for word in column])
        cosines = self.backbone.embed_images(images) @ texts.T
        rows = [self.one(row, words, column) for row, words in zip(cosines, asked, strict=True)]
        return torch.stack(rows).to(images.device)

    def one(self, cosines: Float[Tensor, " w"], words: list[str], column: dict[str, int]) -> Float[Tensor, ""]:
        """The score of one image from its cosine with each word of `column`."""
        if not words:
            return cosines.new_tensor(float("nan"))
        asked = {stem(word) for word in words}
        others = cosines[[column[word] for word in OTHER_WORDS if stem(word) not in asked]]
        gaps = cosines[[column[word] for word in words]] - others.mean()
        return gaps.min() if self.reduce == "min" else gaps.mean()

    def to(self, device: torch.device | str) -> "WordCoverage":
        """Move the weights; returns itself."""
        self.backbone.to(device)
        return self
