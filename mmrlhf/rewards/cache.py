"""Frozen towers see each image and each prompt once; heads then train on rows of two tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from mmrlhf.data import Pair
from mmrlhf.images import content_hash, load_image
from mmrlhf.rewards.backbone import CLIPBackbone


@dataclass(frozen=True)
class EmbeddedPairs:
    """Features of the different images and prompts, and which rows of them each pair compares."""

    images: Float[Tensor, "i f"]
    prompts: Float[Tensor, "q p"]
    image_rows: Int[Tensor, "n 2"]
    prompt_rows: Int[Tensor, " n"]


def embed_items(
    backbone: CLIPBackbone, pairs: Sequence[Pair], *, batch_size: int = 64, progress: bool = False
) -> EmbeddedPairs:
    """Encode each different image (by the hash of its file) and prompt once; features are kept on the CPU in float32."""
    paths = list(dict.fromkeys(path for pair in pairs for path in (pair.image_0, pair.image_1)))
    hashes = {path: content_hash(path.read_bytes()) for path in paths}
    first = {hashes[path]: path for path in reversed(paths)}
    row = {name: number for number, name in enumerate(first)}
    prompts = list(dict.fromkeys(pair.prompt for pair in pairs))
    prompt_row = {prompt: number for number, prompt in enumerate(prompts)}
    return EmbeddedPairs(
        images=encode_images(backbone, list(first.values()), batch_size, progress),
        prompts=encode_prompts(backbone, prompts, batch_size),
        image_rows=torch.tensor([[row[hashes[p.image_0]], row[hashes[p.image_1]]] for p in pairs]),
        prompt_rows=torch.tensor([prompt_row[pair.prompt] for pair in pairs]),
    )


@torch.no_grad()
def encode_images(
    backbone: CLIPBackbone, paths: Sequence[Path], batch_size: int, progress: bool
) -> Float[Tensor, "i f"]:
    """`image_features` of files of any sizes."""
    parts = []
    with tqdm(total=len(paths), desc="embed", unit="image", disable=not progress) as bar:
        for start in range(0, len(paths), batch_size):
            batch = load_preprocessed(backbone, paths[start : start + batch_size])
            parts.append(backbone.image_features(batch).cpu())
            bar.update(len(batch))
    return torch.cat(parts)


@torch.no_grad()
def encode_prompts(backbone: CLIPBackbone, prompts: Sequence[str], batch_size: int) -> Float[Tensor, "q p"]:
    """Text embeddings; prompts of like length go together, so that little is padded."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    parts = [
        backbone.embed_prompts([prompts[i] for i in order[start : start + batch_size]]).cpu()
        for start in range(0, len(prompts), batch_size)
    ]
    embedded = torch.cat(parts)
    return embedded[torch.tensor(order).argsort()]


def load_preprocessed(backbone: CLIPBackbone, paths: Sequence[Path]) -> Float[Tensor, "b 3 size size"]:
    """Files of any sizes as one batch, resized as the reward itself would do."""
    return torch.cat([backbone.preprocess(load_image(path).unsqueeze(0)) for path in paths])
