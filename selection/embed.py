"""Images in, embeddings out, by the picture half of a CLIPModel or a pretrained backbone; kept on disk, so that it resumes."""

import hashlib
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from mmrlhf.backbones import is_backbone, load_backbone_folder
from mmrlhf.errors import UserError
from mmrlhf.images import content_hash, load_image
from mmrlhf.models import quiet_loading, resolve_model
from mmrlhf.rewards.encoders.resizing import normalise, to_short_side
from mmrlhf.types import Images
from selection.webdataset import Member

OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class EmbeddedFiles(NamedTuple):
    """One row a readable file, in order; the files' content hashes; and what could not be read, with the reason."""

    embeddings: Float32[np.ndarray, "n d"]
    paths: list[Path | Member]
    hashes: list[str]
    unreadable: dict[str, str]


class Embedder:
    """Calls a CLIPModel's picture half, or a backbone: images of any size -> embeddings of unit length, in float32.

    `model` is a tiny name, a folder that `save_pretrained` or `mmrlhf select pretrain` wrote, or a hub id. UserError where it is
    none of these.
    """

    def __init__(self, model: str, *, batch_size: int = 32, device: torch.device | str = "cpu"):
        folder = resolve_model(model)
        self.model: Any
        if is_backbone(folder):
            backbone = load_backbone_folder(folder)
            self.model, self.size = backbone.network, backbone.image_size
            mean, std = backbone.mean, backbone.std
            self.features: Callable[[Tensor], Tensor] = lambda pixels: self.model(pixels).flatten(1)
        else:
            self.model, mean, std = load_clip(folder, model)
            self.size = self.model.config.vision_config.image_size
            self.features = lambda pixels: self.model.visual_projection(
                self.model.vision_model(pixel_values=pixels).pooler_output
            )
        self.model.eval().requires_grad_(False).to(device)
        self.mean, self.std = mean, std
        self.batch_size, self.device = batch_size, torch.device(device)

    @torch.no_grad()
    def __call__(self, images: Images) -> Float[Tensor, "b d"]:
        parts = []
        for batch in images.split(self.batch_size):
            square = to_short_side(batch.to(self.device, torch.float32), self.size, "bicubic")
            pixels = normalise(square, self.mean, self.std, self.device)
            parts.append(F.normalize(self.features(pixels), dim=-1).to(images.device))
        return torch.cat(parts)

    def fingerprint(self) -> str:
        """A name for the weights themselves, wherever they lie: equal for equal weights and preprocessing."""
        digest = hashlib.sha256(repr((self.size, self.mean, self.std)).encode())
        for name, value in sorted(self.model.state_dict().items()):
            values = value.detach().cpu().double().flatten()
            ramp = torch.linspace(1, 2, len(values), dtype=torch.double)
            digest.update(
                repr((name, tuple(value.shape), f"{values.abs().sum():.9e}", f"{values @ ramp:.6e}")).encode()
            )
        return digest.hexdigest()[:16]


def load_clip(folder: str, model: str) -> tuple[Any, tuple[float, ...], tuple[float, ...]]:
    """A CLIPModel, and the mean and standard deviation of its pixels. UserError, which says `model`, where it is none."""
    from transformers import CLIPImageProcessor, CLIPModel

    wanted = "give the folder or hub id of a CLIPModel, or a backbone that `mmrlhf select pretrain` wrote"
    try:
        with quiet_loading():
            clip, info = CLIPModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"cannot load the model {model} ({reason}): {wanted}") from error
    if info["missing_keys"]:
        raise UserError(f"the model {model} has no weights for {sorted(info['missing_keys'])[0]}: {wanted}")
    try:
        processor = CLIPImageProcessor.from_pretrained(folder)
        return clip, tuple(processor.image_mean), tuple(processor.image_std)
    except (OSError, ValueError):  # weights without a preprocessor: those of the published CLIP models
        return clip, OPENAI_MEAN, OPENAI_STD


def embed_files(
    paths: Sequence[Path | Member], embedder: Embedder, *, cache: Path | None = None, at_once: int = 256
) -> EmbeddedFiles:
    """Embed image files, or members of .tar shards; equal files get equal rows. Unreadable ones are left out and listed.

    With `cache`, every `at_once` files their rows are written to `cache/FINGERPRINT/`, and rows found there are not
    computed again. UserError where no file can be read.
    """
    folder = None if cache is None else cache / embedder.fingerprint()
    known = {} if folder is None else read_cache(folder)
    found: list[tuple[Path | Member, str]] = []
    unreadable: dict[str, str] = {}
    with tqdm(total=len(paths), desc="embedding", disable=None, delay=1) as bar:
        for start in range(0, len(paths), at_once):
            new: dict[str, Tensor] = {}
            for path in paths[start : start + at_once]:
                try:
                    name = content_hash(path.read_bytes())
                    if name not in known and name not in new:
                        size = embedder.size
                        new[name] = load_image(path, size) if isinstance(path, Path) else path.pixels(size)
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
