"""Pick-a-Pic v1 and v2 (Kirstain et al. 2023): parquet files with a comparison a row, the images as bytes or as urls.

A url is looked for in a folder of images that were fetched before, as UID.jpg (or .png, .webp): nothing is downloaded here.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmrlhf.data import Pair, replacing
from mmrlhf.datasets.rows import BadRow, Fault, Row, Rows, is_number, text
from mmrlhf.errors import UserError
from mmrlhf.images import SUFFIXES, content_hash

REQUIRED = ("caption", "image_0_uid", "image_1_uid", "label_0", "label_1")
COLUMNS = (*REQUIRED, "jpg_0", "jpg_1", "has_label")
ROWS_AT_ONCE = 64
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
    + [("num_example_per_prompt", pa.int64())]
)


def read(source: Path, images: Path | None) -> Rows:
    """The rows of a parquet file, or of every parquet file below a folder, a few at a time."""
    for file in parquet_files(source):
        for number, row in enumerate(rows_of(file), start=1):
            where = f"{file} row {number}"
            try:
                yield comparison(where, row, images)
            except BadRow as error:
                yield Fault(where, str(error))


def parquet_files(source: Path) -> list[Path]:
    """`source` itself, or the parquet files below it. UserError where there is none."""
    files = sorted(source.rglob("*.parquet")) if source.is_dir() else [source]
    if not files or not files[0].is_file():
        raise UserError(f"no parquet file at {source}: give a .parquet file, or a folder that holds some")
    return files


def rows_of(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of one file, only the columns that are used. UserError where it is no parquet file, or lacks columns."""
    try:
        with pq.ParquetFile(file) as parquet:
            present = parquet.schema_arrow.names
            if missing := [name for name in REQUIRED if name not in present]:
                raise UserError(
                    f"{file} lacks {', '.join(missing)}: give Pick-a-Pic's columns ({', '.join(REQUIRED)}, jpg_0, jpg_1)"
                )
            columns = [name for name in COLUMNS if name in present]
            for batch in parquet.iter_batches(ROWS_AT_ONCE, columns=columns):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{file} is not a readable parquet file ({reason}): restore it") from error


def comparison(where: str, row: dict[str, Any], images: Path | None) -> Row:
    """One row, checked."""
    if row["image_0_uid"] == row["image_1_uid"]:
        raise BadRow(f"compares image {row['image_0_uid']} with itself")
    labels = [row["label_0"], row["label_1"]]
    if not all(is_number(label) and 0 <= label <= 1 for label in labels) or not math.isclose(sum(labels), 1):
        raise BadRow(f"label_0 and label_1 got {labels[0]} and {labels[1]}, allowed are numbers from 0 to 1 of sum 1")
    first, second = (image_of(row, side, images) for side in (0, 1))
    has_label = row.get("has_label")
    return Row(where, text(row, "caption"), first, second, float(labels[0]), has_label=has_label is not False)


def image_of(row: dict[str, Any], side: int, images: Path | None) -> Path | bytes:
    """The bytes in the row, or the file of its uid in the folder `images`."""
    if data := row.get(f"jpg_{side}"):
        return data
    uid = text(row, f"image_{side}_uid")
    found = [images / f"{Path(uid).name}{suffix}" for suffix in SUFFIXES] if images else []
    for file in found:
        if file.is_file():
            return file
    raise BadRow(f"jpg_{side} is empty and {uid}.jpg is not in the folder of --images: fetch it there first")


def write(pairs: Sequence[Pair], file: Path) -> None:
    """Write comparisons in Pick-a-Pic's columns, the images as bytes and their uids their content hashes."""
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
        "image_0_uid": uids[0], "image_1_uid": uids[1], "jpg_0": data[0], "jpg_1": data[1],
        "label_0": pair.label_0, "label_1": 1 - pair.label_0, "num_example_per_prompt": examples,
    }  # fmt: skip
