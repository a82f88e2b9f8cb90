"""How different the pictures of one prompt are from each other: a fine-tuned model often gives that up for its reward."""

from collections.abc import Hashable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from tqdm import tqdm

from mmrlhf import distributed
from mmrlhf.errors import UserError
from mmrlhf.images import load_image
from mmrlhf.rewards.encoders.clip import load_backbone
from mmrlhf.rewards.encoders.dual_encoder import DualEncoder
from mmrlhf.rewards.evaluation.batches import score_batches
from mmrlhf.types import Rollout


def pairwise_distances(embeddings: Float[np.ndarray, "n p"], groups: Sequence[Hashable]) -> dict[Hashable, float]:
    """The mean of 1 − cosine over the pairs of rows of each group, 0 (all alike) to 2; groups of one row are left out.

    `embeddings` need not have unit length. No n × n: with unit rows, Σ over i ≠ j of cosines is ‖Σ x‖² − n.
    """
    rows: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        rows.setdefault(group, []).append(row)
    units = embeddings.astype(np.float64)
    units /= np.maximum(np.linalg.norm(units, axis=1, keepdims=True), 1e-12)
    found = {}
    for group, own in rows.items():
        if (count := len(own)) > 1:
            cosines = float(np.square(units[own].sum(axis=0)).sum()) - count
            found[group] = max(0.0, 1 - cosines / (count * (count - 1)))
    return found


def embed_files(backbone: DualEncoder, paths: Sequence[Path], batch_size: int = 32) -> Float[np.ndarray, "n p"]:
    """Image embeddings of files, in order."""
    bar = tqdm(paths, desc="embed", unit="image")
    images = ((load_image(path), "") for path in bar)
    return score_batches(lambda batch, _: backbone.embed_images(batch).T, images, batch_size).T


class DiversityWatch:
    """The diversity of an epoch's samples, by the embeddings of one model. To be made before a run writes its folder."""

    def __init__(self, embedder: str) -> None:
        """`embedder` as `load_backbone` takes it; "" watches nothing. UserError, naming the option, where it cannot be loaded."""
        self.backbone: DualEncoder | None = None
        try:  # now, for after the first epoch its samples would be lost
            self.backbone = load_backbone(embedder) if embedder else None
        except UserError as error:
            raise UserError(f"--embedder got '{embedder}': {error}") from error

    @torch.no_grad()
    def figures(self, rollout: Rollout, batch_size: int = 64) -> dict[str, float]:
        """`diversity`, the mean over prompts with two samples or more, also of other processes; {} where there is none."""
        if self.backbone is None:
            return {}
        backbone = self.backbone.to(rollout.images.device)
        parts = [backbone.embed_images(part).cpu() for part in rollout.images.split(batch_size)]
        everywhere = distributed.gather_objects(
            (torch.cat(parts).numpy(), rollout.prompts) if len(rollout.images) else None
        )
        rows, prompts = zip(*(part for part in everywhere if part is not None), strict=True)
        found = pairwise_distances(np.concatenate(rows), [prompt for part in prompts for prompt in part])
        return {"diversity": float(np.mean(list(found.values())))} if found else {}
