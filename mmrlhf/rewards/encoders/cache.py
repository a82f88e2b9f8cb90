"""Frozen towers see each image and each prompt once; heads then train on rows of two tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from mmrlhf.data import Item
from mmrlhf.images import content_hash
from mmrlhf.rewards.encoders.disk_cache import features_on_disk
from mmrlhf.rewards.encoders.dual_encoder import DualEncoder
from mmrlhf.rewards.encoders.loading import preprocessed


@dataclass(frozen=True)
class EmbeddedItems:
    """Features of the different images and prompts, and which row of each an item has."""

    images: Float[Tensor, "u f"]
    prompts: Float[Tensor, "q p"]
    image_rows: Int[Tensor, " i"]
    prompt_rows: Int[Tensor, " i"]

    def inputs(self, items: Int[Tensor, " b"]) -> tuple[Float[Tensor, "b f_plus_p"], Float[Tensor, " b"]]:
        """(what a head sees, cosine of image and prompt) of some items."""
        images, texts = self.images[self.image_rows[items]], self.prompts[self.prompt_rows[items]]
        return torch.cat([images, texts], dim=-1), (images[:, : texts.shape[1]] * texts).sum(dim=-1)


def embed_items(
    backbone: DualEncoder,
    items: Sequence[Item],
    *,
    batch_size: int = 32,
    progress: bool = False,
    folder: Path | None = None,
) -> EmbeddedItems:
    """Encode each different image (by the hash of its file) and prompt once, in float32.

    The image features are kept in memory, or, with a `folder`, in a file there that is read as needed (see
    `mmrlhf.rewards.encoders.disk_cache`), which a later call with the same backbone goes on with.
    """
    paths = list(dict.fromkeys(item.image for item in items))
    hashes = {path: content_hash(path.read_bytes()) for path in paths}
    first = {hashes[path]: path for path in reversed(paths)}
    row = {name: number for number, name in enumerate(first)}
    prompts = list(dict.fromkeys(item.prompt for item in items))
    prompt_row = {prompt: number for number, prompt in enumerate(prompts)}
    if folder is None:
        images, place = encode_images(backbone, list(first.values()), batch_size, progress), row
    else:
        images, place = features_on_disk(backbone, first, folder, batch_size, progress)
    return EmbeddedItems(
        images=images,
        prompts=encode_prompts(backbone, prompts, batch_size),
        image_rows=torch.tensor([place[hashes[item.image]] for item in items]),
        prompt_rows=torch.tensor([prompt_row[item.prompt] for item in items]),
    )


@torch.no_grad()
def encode_images(
    backbone: DualEncoder, paths: Sequence[Path], batch_size: int, progress: bool
) -> Float[Tensor, "i f"]:
    """`image_features` of files of any sizes."""
    parts = []
    with tqdm(total=len(paths), desc="embed", unit="image", disable=not progress) as bar:
        for batch in preprocessed(backbone, [paths[i : i + batch_size] for i in range(0, len(paths), batch_size)]):
            parts.append(backbone.image_features(batch).cpu())
            bar.update(len(batch))
    return torch.cat(parts)


@torch.no_grad()
def encode_prompts(backbone: DualEncoder, prompts: Sequence[str], batch_size: int) -> Float[Tensor, "q p"]:
    """Text embeddings; prompts of like length go together, so that little is padded."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    parts = [
        backbone.embed_prompts([prompts[i] for i in order[start : start + batch_size]]).cpu()
        for start in range(0, len(prompts), batch_size)
    ]
    embedded = torch.cat(parts)
    return embedded[torch.tensor(order).argsort()]
