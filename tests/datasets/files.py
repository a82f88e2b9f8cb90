"""Data sets in their authors' layouts, small, for the tests beside this file."""

import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def picture(seed: int, kind: str = "JPEG") -> bytes:
    """The bytes of a small random picture."""
    pixels = np.random.default_rng(seed).integers(0, 255, (9, 7, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def pickapic_row(first: int, second: int, label: float, **changes: Any) -> dict[str, Any]:
    """A row as Pick-a-Pic v1 and v2 have it, all of its columns."""
    return {
        "are_different": True, "best_image_uid": f"u{first}", "caption": "a red fox", "created_at": 0, "has_label": True,
        "image_0_uid": f"u{first}", "image_0_url": "https://example.org/0", "image_1_uid": f"u{second}",
        "image_1_url": "https://example.org/1", "jpg_0": picture(first), "jpg_1": picture(second), "label_0": label,
        "label_1": 1 - label, "model_0": "a", "model_1": "b", "ranking_id": 3, "user_id": 4, "num_example_per_prompt": 3,
    } | changes  # fmt: skip


def parquet(rows: list[dict[str, Any]], file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file


def json_file(rows: Any, file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(rows))
    return file


def jsonl(rows: list[Any], file: Path) -> Path:
    """One row a line, packed where the name ends in .gz."""
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    file.write_bytes(gzip.compress(data) if file.suffix == ".gz" else data)
    return file


def touch(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(number, "PNG"))
