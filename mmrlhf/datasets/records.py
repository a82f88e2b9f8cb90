"""Tables row by row, never read whole: parquet files, JSON arrays, and JSON lines."""

from collections.abc import Sequence
from pathlib import Path

import ijson
import pyarrow as pa
import pyarrow.parquet as pq

from mmrlhf.datasets.json_lines import Records, objects, reading
from mmrlhf.datasets.rows import BadRow
from mmrlhf.errors import UserError

ROWS_AT_ONCE = 64


def records(source: Path, required: Sequence[str], optional: Sequence[str] = ()) -> Records:
    """(where, record) for each row of a file, or of every parquet file below a folder; a row that is none is a `BadRow`.

    UserError where the source cannot be read, holds no row, or is a parquet file without the `required` columns. A parquet
    file gives `required` and `optional` columns only.
    """
    for file in files_of(source):
        found = parquet_records(file, required, optional) if file.suffix == ".parquet" else json_records(file)
        for where, record in found:
            missing = [name for name in required if isinstance(record, dict) and name not in record]
            yield where, BadRow(f"lacks {', '.join(missing)}") if missing else record


def files_of(source: Path) -> list[Path]:
    """`source` itself, or the parquet files below it. UserError where there is none."""
    files = sorted(source.rglob("*.parquet")) if source.is_dir() else [source]
    if not files:
        raise UserError(f"no parquet file in {source}: give a data file, or a folder that holds parquet files")
    return files


def parquet_records(file: Path, required: Sequence[str], optional: Sequence[str]) -> Records:
    """The rows of one file, a few at a time."""
    try:
        with pq.ParquetFile(file) as parquet:
            present = parquet.schema_arrow.names
            if missing := [name for name in required if name not in present]:
                raise UserError(f"{file} lacks {', '.join(missing)}: it must have the columns {', '.join(required)}")
            columns = [name for name in (*required, *optional) if name in present]
            if not columns:
                raise UserError(f"{file} has none of the columns {', '.join(optional)}: give another file or --format")
            batches = parquet.iter_batches(ROWS_AT_ONCE, columns=columns)
            for number, row in enumerate((row for batch in batches for row in batch.to_pylist()), start=1):
                yield f"{file} row {number}", row
            if not parquet.metadata.num_rows:
                yield str(file), BadRow("holds no row")
    except (pa.ArrowException, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error).split("\n")[0]
        raise UserError(f"{file} is not a readable parquet file ({reason}): restore it") from error


def json_records(file: Path) -> Records:
    """The objects of a JSON array, or of a file with one a line."""
    with reading(file) as stream:
        beginning = stream.read(1)
        while beginning.isspace():
            beginning = stream.read(1)
    return array_records(file) if beginning == b"[" else objects(file)


def array_records(file: Path) -> Records:
    """The elements of a JSON array."""
    number = 0
    try:
        with reading(file) as stream:
            for number, row in enumerate(ijson.items(stream, "item", use_float=True), start=1):
                wrong = BadRow(f"is a {type(row).__name__}, allowed is an object")
                yield f"{file} row {number}", row if isinstance(row, dict) else wrong
    except ijson.JSONError as error:
        raise UserError(f"{file} is not a JSON array (after row {number}: {error}): restore the file") from error
    if not number:
        raise UserError(f"{file} holds no row: give a JSON array of objects")
