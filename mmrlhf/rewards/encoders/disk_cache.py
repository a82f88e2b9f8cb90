"""Image features in a file that is larger than memory may be, written once a picture and read row by row."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from mmrlhf.rewards.encoders.dual_encoder import DualEncoder
from mmrlhf.rewards.encoders.loading import preprocessed


def features_on_disk(
    backbone: DualEncoder, pictures: Mapping[str, Path], folder: Path, batch_size: int, progress: bool
) -> tuple[Float[Tensor, "u f"], dict[str, int]]:
    """(a table mapped from a file of `folder`, the row of each content hash); only pictures that lack a row are encoded.

    Two files a backbone, named by its weights: rows of float32, and the content hash of each, written after it, so that a
    killed run loses the batch in flight. One process at a time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem, width = folder / fingerprint(backbone), backbone.feature_width
    rows, names = stem.with_suffix(".f32"), stem.with_suffix(".hashes")
    known = whole_rows(rows, names, width)
    missing = [name for name in pictures if name not in known]
    with open(rows, "ab") as row_file, open(names, "a", encoding="ascii") as name_file:
        batches = [missing[i : i + batch_size] for i in range(0, len(missing), batch_size)]
        loaded = preprocessed(backbone, [[pictures[name] for name in batch] for batch in batches])
        bar = tqdm(batches, desc="embed", unit="batch", disable=not progress)
        for batch, pixels in zip(bar, loaded, strict=True):
            with torch.no_grad():
                row_file.write(backbone.image_features(pixels).float().cpu().numpy().tobytes())
            row_file.flush()
            name_file.write("".join(f"{name}\n" for name in batch))
            name_file.flush()
            known |= {name: len(known) + place for place, name in enumerate(batch)}
    table = np.memmap(rows, dtype=np.float32, mode="r+", shape=(len(known), width))
    return torch.from_numpy(table), known


def whole_rows(rows: Path, names: Path, width: int) -> dict[str, int]:
    """The row of each hash that both files hold whole; what a kill left behind them is cut off."""
    if not rows.exists() or not names.exists():
        rows.unlink(missing_ok=True)
        names.unlink(missing_ok=True)
        return {}
    listed = [line for line in names.read_text(encoding="ascii").split("\n")[:-1]]
    count = min(len(listed), rows.stat().st_size // (4 * width))
    with open(rows, "r+b") as file:
        file.truncate(count * 4 * width)
    names.write_text("".join(f"{name}\n" for name in listed[:count]), encoding="ascii")
    return {name: row for row, name in enumerate(listed[:count])}


def fingerprint(backbone: DualEncoder) -> str:
    """16 hex digits that tell one backbone's weights from another's."""
    digest = hashlib.sha256()
    for name, value in sorted(backbone.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if value.ndim else
                      repr(value.item()).encode())  # fmt: skip
    return digest.hexdigest()[:16]
