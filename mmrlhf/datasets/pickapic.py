"""Pick-a-Pic v1 and v2 (Kirstain et al. 2023): parquet files with a comparison a row, the images as bytes or as urls.

A url is looked for in a folder of images that were fetched before, as UID.jpg (or .png, .webp): nothing is downloaded here.
"""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmrlhf.data import Pair, replacing
from mmrlhf.datasets.pairs import suited
from mmrlhf.datasets.records import ROWS_AT_ONCE, records
from mmrlhf.datasets.rows import BadRow, Picture, Row, Rows, is_number, picture, rows_of, text
from mmrlhf.images import SUFFIXES, content_hash

__all__ = ["read", "suited", "write"]

REQUIRED = ("caption", "image_0_uid", "image_1_uid", "label_0", "label_1")
OPTIONAL = ("jpg_0", "jpg_1", "has_label", "user_id")
SCHEMA = pa.schema(
    [
        ("are_different", pa.bool_()),
        ("best_image_uid", pa.string()),
        ("caption", pa.string()),
        ("has_label", pa.bool_()),
    ]
    + [(f"image_{side}_uid", pa.string()) for side in (0, 1)]
    + [(f"jpg_{side}", pa.binary()) for side in (0, 1)]
    + [(f"label_{side}", pa.float64()) for side in (0, 1)]
    + [("num_example_per_prompt", pa.int64()), ("user_id", pa.string())]
)


def read(source: Path, images: Path | None) -> Rows:
    """The rows of a parquet file, or of every parquet file below a folder, a few at a time."""
    return rows_of(records(source, REQUIRED, OPTIONAL), lambda where, record: [comparison(where, record, images)])


def comparison(where: str, record: dict[str, Any], images: Path | None) -> Row:
    """One row, checked."""
    if record["image_0_uid"] == record["image_1_uid"]:
        raise BadRow(f"compares image {record['image_0_uid']} with itself")
    labels = [record["label_0"], record["label_1"]]
    if not all(is_number(label) and 0 <= label <= 1 for label in labels) or not math.isclose(sum(labels), 1):
        raise BadRow(f"label_0 and label_1 got {labels[0]} and {labels[1]}, allowed are numbers from 0 to 1 of sum 1")
    (first, held_0), (second, held_1) = (image_of(record, side, images) for side in (0, 1))
    user = record.get("user_id")
    pair = Pair(
        text(record, "caption"), first, second, float(labels[0]), has_label=record.get("has_label") is not False,
        annotator="" if user is None else str(user),
    )  # fmt: skip
    return Row(where, pair, held_0 | held_1)


def image_of(record: dict[str, Any], side: int, images: Path | None) -> Picture:
    """The bytes in the row, or the file of its uid in the folder `images`."""
    if data := record.get(f"jpg_{side}"):
        return picture(data, f"jpg_{side}", Path())
    uid = text(record, f"image_{side}_uid")
    found = [images / f"{Path(uid).name}{suffix}" for suffix in SUFFIXES] if images else []
    for file in found:
        if file.is_file():
            return file, {}
    raise BadRow(f"jpg_{side} is empty and {uid}.jpg is not in the folder of --images: fetch it there first")


def write(pairs: Sequence[Pair], file: Path) -> None:
    """Write comparisons in Pick-a-Pic's columns, the images as bytes and their uids their content hashes.

    `user_id` is the annotator's name, a text, where Pick-a-Pic has numbers.
    """
    counts = Counter(pair.prompt for pair in pairs)
    with replacing(file) as temporary, pq.ParquetWriter(temporary, SCHEMA) as writer:
        for start in range(0, len(pairs), ROWS_AT_ONCE):
            rows = [columns_of(pair, counts[pair.prompt]) for pair in pairs[start : start + ROWS_AT_ONCE]]
            writer.write_table(pa.Table.from_pylist(rows, SCHEMA))


def columns_of(pair: Pair, examples: int) -> dict[str, Any]:
    """One comparison as a row; `examples` is how many there are of its prompt."""
    data = [pair.image_0.read_bytes(), pair.image_1.read_bytes()]
    uids = [content_hash(image) for image in data]
    best = uids[pair.label_0 < 0.5] if pair.label_0 != 0.5 else "tie"
    return {
        "are_different": data[0] != data[1], "best_image_uid": best, "caption": pair.prompt, "has_label": pair.has_label,
        "image_0_uid": uids[0], "image_1_uid": uids[1], "jpg_0": data[0], "jpg_1": data[1], "label_0": pair.label_0,
        "label_1": 1 - pair.label_0, "num_example_per_prompt": examples, "user_id": pair.annotator or None,
    }  # fmt: skip
