"""Images in, embeddings out, by the picture half of whatever sees images; kept on disk, so that it resumes."""

import hashlib
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor
from tqdm import tqdm

from mmrlhf.errors import UserError
from mmrlhf.images import content_hash
from mmrlhf.rewards.encoders.clip import CLIPBackbone, load_backbone
from mmrlhf.rewards.encoders.image_only import ImageOnlyBackbone
from mmrlhf.rewards.encoders.open_clip import OpenClipBackbone
from mmrlhf.types import Images
from selection.inside import Picture, read_picture


class EmbeddedFiles(NamedTuple):
    """One row a readable file, in order; the files' content hashes; and what could not be read, with the reason."""

    embeddings: Float32[np.ndarray, "n d"]
    paths: list[Picture]
    hashes: list[str]
    unreadable: dict[str, str]


class Embedder:
    """Images of any size -> the unit embeddings of a model's picture half, in float32.

    `model` is whatever `load_backbone` takes: tiny-clip, a folder or hub id of a CLIPModel, SiglipModel or Dinov2Model, or of
    open_clip, or what `mmrlhf select pretrain` wrote. UserError where it is none of these.
    """

    def __init__(self, model: str, *, batch_size: int = 32, device: torch.device | str = "cpu"):
        self.backbone = load_backbone(model, prompts=False).to(device)
        self.model, self.size = self.backbone.model, self.backbone.image_size
        self.batch_size = batch_size

    @torch.no_grad()
    def __call__(self, images: Images) -> Float[Tensor, "b d"]:
        return torch.cat([self.backbone.embed_images(part).to(images.device) for part in images.split(self.batch_size)])

    def read(self, picture: Picture) -> Float[Tensor, "3 size size"]:
        """A picture as the model takes it. UserError if unreadable."""
        if isinstance(self.backbone, CLIPBackbone | ImageOnlyBackbone):  # Pillow's own resizing to the very same square
            return read_picture(picture, self.size)
        return self.backbone.preprocess(read_picture(picture)[None])[0]

    def fingerprint(self) -> str:
        """A name for the weights themselves, wherever they lie: equal for equal weights and preprocessing."""
        digest = hashlib.sha256(repr(preprocessing(self.backbone)).encode())
        for name, value in sorted(self.model.state_dict().items()):
            values = value.detach().cpu().double().flatten()
            ramp = torch.linspace(1, 2, len(values), dtype=torch.double)
            digest.update(
                repr((name, tuple(value.shape), f"{values.abs().sum():.9e}", f"{values @ ramp:.6e}")).encode()
            )
        return digest.hexdigest()[:16]


def preprocessing(backbone: Any) -> tuple[Any, ...]:
    """What becomes of a picture before a backbone's weights see it."""
    if isinstance(backbone, OpenClipBackbone):
        return tuple(sorted(backbone.preprocessing.items()))
    if isinstance(backbone, ImageOnlyBackbone):
        return backbone.image_size, backbone.backbone.mean, backbone.backbone.std
    further = [getattr(backbone, name) for name in ("resample", "short_side") if hasattr(backbone, name)]
    return (backbone.image_size, backbone.pixel_mean, backbone.pixel_std, *further)


def embed_files(
    paths: Sequence[Picture], embedder: Embedder, *, cache: Path | None = None, at_once: int = 256
) -> EmbeddedFiles:
    """Embed image files, or members of .tar shards; equal files get equal rows. Unreadable ones are left out and listed.

    With `cache`, every `at_once` files their rows are written to `cache/FINGERPRINT/`, and rows found there are not
    computed again. UserError where no file can be read.
    """
    folder = None if cache is None else cache / embedder.fingerprint()
    known = {} if folder is None else read_cache(folder)
    found: list[tuple[Picture, str]] = []
    unreadable: dict[str, str] = {}
    with tqdm(total=len(paths), desc="embedding", disable=None, delay=1) as bar:
        for start in range(0, len(paths), at_once):
            new: dict[str, Tensor] = {}
            for path in paths[start : start + at_once]:
                try:
                    name = content_hash(path.read_bytes())
                    if name not in known and name not in new:
                        new[name] = embedder.read(path)
                    found.append((path, name))
                except (UserError, OSError) as error:
                    unreadable[str(path)] = str(error)
            if new:
                rows = dict(zip(new, embedder(torch.stack(list(new.values()))).numpy(), strict=True))
                known.update(rows)
                if folder is not None:
                    write_cache(folder, rows)
            bar.update(min(at_once, len(paths) - start))
    if not found:
        reason = next(iter(unreadable.values()), "no file was given")
        raise UserError(f"none of {len(paths)} images can be embedded: {reason}")
    rows_of_all = np.stack([known[name] for _, name in found])
    return EmbeddedFiles(rows_of_all, [path for path, _ in found], [name for _, name in found], unreadable)


def read_cache(folder: Path) -> dict[str, np.ndarray]:
    """Content hash -> row, from every file of the cache; broken files are passed over, and their rows computed again."""
    known: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob("*.npz")):
        try:
            with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
                known.update(zip(file["names"].tolist(), file["rows"], strict=True))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            continue
    return known


def write_cache(folder: Path, rows: Mapping[str, np.ndarray]) -> None:
    """Add a file of rows, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{hashlib.sha256(''.join(rows).encode()).hexdigest()[:32]}.npz"
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        np.savez(file, names=np.array(list(rows)), rows=np.stack(list(rows.values())))
    os.replace(temporary, path)
