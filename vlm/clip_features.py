"""What an image-text model such as CLIP tells of the parts of answers: their text, their picture, and how far the two agree."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from mmrlhf.errors import UserError
from mmrlhf.images import load_image
from mmrlhf.models import pick_device
from mmrlhf.rewards.encoders.cache import encode_prompts
from mmrlhf.rewards.encoders.clip import load_backbone
from mmrlhf.rewards.encoders.dual_encoder import CHUNK, DualEncoder
from mmrlhf.rewards.language.inputs import Row
from mmrlhf.rewards.segments.text import TextFeatures
from vlm.spans import Parts, spans_of

Picture = Path | Float[Tensor, "3 h w"]
PARTS_AT_ONCE = 256


class ClipReader:
    """An `AnswerReader` whose pieces are the parts of an answer, and their features those of `part_features`.

    The prompt is not read, nor what stands around a part. A part of more tokens than the text tower takes loses its end, as the
    encoder's own tokenizer cuts it. `crops` n > 1: the n × n equal pieces of a picture are looked at too, each as the encoder
    looks at a picture: with CLIP their middle squares.
    """

    def __init__(self, backbone: DualEncoder, crops: int = 1) -> None:
        self.backbone, self.crops = backbone, crops

    @classmethod
    def load(cls, settings: dict[str, Any], device: str) -> "ClipReader":
        """The model that `settings` name, with their crops. UserError for one that reads no text."""
        backbone = load_backbone(settings["model"])
        if not backbone.max_tokens:
            raise UserError(
                f"model {settings['model']} reads no text, which --features clip compares with pictures: give tiny-clip, or the "
                "folder or hub id of an image-text model"
            )
        return cls(backbone.to(pick_device(device)), settings["crops"])

    def check(self, rows: Sequence[Row], parts: Parts) -> None:
        """UserError for an answer without a picture; a line says how many parts are cut."""
        refuse_without_picture(rows)
        if cut := self.backbone.count_truncated([text for own in texts_of(rows, parts) for text in own]):
            print(f"note: {cut} parts are longer than the text tower's {self.backbone.max_tokens} tokens and are cut")

    @torch.no_grad()
    def read(self, rows: Sequence[Row], parts: Parts, *, progress: bool = False) -> TextFeatures:
        """Features of the parts of each row's answer, on the CPU in float32; each different text and picture is read once.

        UserError for a row without a picture, or one whose picture cannot be read.
        """
        refuse_without_picture(rows)
        spans, texts = [spans_of(row.answer or "", parts) for row in rows], texts_of(rows, parts)
        words = {text: place for place, text in enumerate(dict.fromkeys(text for own in texts for text in own))}
        # tensors are told apart by where they are: equal ones are read again, which is harmless
        pictures = {picture_name(row): row.image for row in rows if row.image is not None}
        places = {name: place for place, name in enumerate(pictures)}
        mask = torch.zeros(len(rows), max(map(len, texts), default=0), dtype=torch.bool)
        features = torch.zeros(*mask.shape, self.width)
        if not words:
            return TextFeatures(features, mask, spans)
        read = encode_prompts(self.backbone, list(words), PARTS_AT_ONCE)
        seen = embed_views(self.backbone, list(pictures.values()), self.crops, progress=progress)
        for i, own in enumerate(texts):
            mask[i, : len(own)] = True
            chosen = torch.tensor([words[text] for text in own], dtype=torch.long)
            features[i, : len(own)] = part_features(read[chosen], seen[places[picture_name(rows[i])]])
        return TextFeatures(features, mask, spans)

    @property
    def width(self) -> int:
        """How many features a part has."""
        return 3 * self.backbone.embedding_width + 1 + (2 + self.crops**2 if self.crops > 1 else 0)

    def to(self, device: torch.device | str) -> "ClipReader":
        """Move the model; returns itself."""
        self.backbone.to(device)
        return self


def part_features(texts: Float[Tensor, "n p"], views: Float[Tensor, "c p"]) -> Float[Tensor, "n f"]:
    """Features of some parts of an answer from their unit embeddings, and those of the picture (first) and its crops.

    Side by side: the text t, the picture v, their product t∘v, and their cosine; where there are crops, the highest and the
    mean cosine with a crop, and the cosine with each, row by row from the top left: where in the picture something is can be
    told by the text. The product is times √p, so that its entries are of the size of those of t and v.
    """
    whole = views[0].expand_as(texts)
    cosines = texts @ views.T
    found = [texts, whole, texts * whole * math.sqrt(texts.shape[1]), cosines[:, :1]]
    if len(views) > 1:
        crops = cosines[:, 1:]
        found += [crops.amax(dim=1, keepdim=True), crops.mean(dim=1, keepdim=True), crops]
    return torch.cat(found, dim=1)


def embed_views(
    backbone: DualEncoder, pictures: Sequence[Picture], crops: int, *, progress: bool = False
) -> Float[Tensor, "u c p"]:
    """Unit embeddings of pictures of any sizes, each whole and then its crops (see `views_of`); on the CPU."""
    found = []
    at_once = max(1, CHUNK // (1 + crops**2))
    for first in tqdm(range(0, len(pictures), at_once), desc="look", unit="batch", disable=not progress):
        views = [view for picture in pictures[first : first + at_once] for view in views_of(picture, crops)]
        squares = torch.cat([backbone.preprocess(view.unsqueeze(0).float()) for view in views])
        found.append(backbone.embed_images(squares).cpu())
    return torch.cat(found).unflatten(0, (len(pictures), -1))


def views_of(picture: Picture, crops: int) -> list[Float[Tensor, "3 _ _"]]:
    """A picture, and where `crops` is above 1 the pieces of a grid of so many rows and columns, row by row.

    None is empty: where a side has fewer pixels than pieces, neighbours share some.
    """
    image = load_image(picture) if isinstance(picture, Path) else picture
    if crops == 1:
        return [image]
    rows, columns = (
        [(i * side // crops, -(-(i + 1) * side // crops)) for i in range(crops)] for side in image.shape[1:]
    )
    return [image, *(image[:, top:bottom, left:right] for top, bottom in rows for left, right in columns)]


def texts_of(rows: Sequence[Row], parts: Parts) -> list[list[str]]:
    """The texts of the parts of each row's answer."""
    answers = [row.answer or "" for row in rows]
    return [[answer[start:end] for start, end in spans_of(answer, parts)] for answer in answers]


def picture_name(row: Row) -> str:
    """What tells a row's picture from others: the file's path, or where the tensor is."""
    return str(row.image) if isinstance(row.image, Path) else f"tensor {id(row.image)}"


def refuse_without_picture(rows: Sequence[Row]) -> None:
    """UserError where a row has no picture."""
    for row in rows:
        if row.image is None:
            raise UserError(
                f"the answer {row.answer or ''!r:.60} has no image, which a reward of --features clip compares it with: give its "
                "image, or train the reward with --features states"
            )
