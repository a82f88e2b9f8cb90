"""Columns and embeddings of a parquet file."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from mmrlhf.errors import UserError

EMBEDDING = "embedding"


def parquet_columns(path: Path, without: Collection[str] = ()) -> dict[str, list[Any]]:
    """Columns of a parquet file but those of lists and structures, and those named."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            plain = (field.name for field in file.schema_arrow if not pa.types.is_nested(field.type))
            names = [name for name in plain if name not in without]
            return {name: values.to_pylist() for name, values in zip(names, file.read(names).columns, strict=True)}
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"cannot read the metadata {path} ({reason_of(error)}): give a parquet file") from error


def parquet_embeddings(path: Path) -> Float[np.ndarray, "n d"]:
    """The column "embedding" of a parquet file, lists of numbers of one length, in float32 (float64 where it is).

    UserError for anything else.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if EMBEDDING not in names:
                raise UserError(
                    f"{path} has no column '{EMBEDDING}', only {', '.join(names)}: give each row's list of numbers there"
                )
            values = file.read([EMBEDDING]).column(0).combine_chunks()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"cannot read the embeddings {path} ({reason_of(error)}): give a parquet file") from error
    kind = values.type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not lists or not (pa.types.is_floating(kind.value_type)):
        raise UserError(f"the column '{EMBEDDING}' of {path} holds {kind}, allowed are lists of floating point numbers")
    flat = values.flatten()
    lengths = set(values.value_lengths().to_pylist())
    if len(values) == 0 or len(lengths) != 1 or None in lengths or flat.null_count:
        raise UserError(
            f"the column '{EMBEDDING}' of {path} must have one list of numbers a row, all of one length and none missing: embed "
            "those items again or leave them out"
        )
    array = flat.to_numpy(zero_copy_only=False).reshape(len(values), lengths.pop())
    return array if array.dtype == np.float64 else array.astype(np.float32)


def reason_of(error: Exception) -> str:
    """Why a file could not be read, in one line."""
    return getattr(error, "strerror", None) or str(error).split("\n")[0]
