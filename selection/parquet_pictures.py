"""Pictures in parquet files: columns of bytes, or of structures with `bytes` as data sets have them; the rest is metadata."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmrlhf.errors import UserError
from selection.inside import Inside, Listed, Picture
from selection.parquet import parquet_columns, reason_of

SUFFIX = ".parquet"


def is_table(path: Path) -> bool:
    """Whether a name is that of a parquet file."""
    return path.name.lower().endswith(SUFFIX)


@dataclass(frozen=True)
class Cell(Inside):
    """The picture in one row of a column."""

    table: Path
    column: str
    row: int
    reader: "TableReader" = field(compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.table}/{self.column}/{self.row}"

    def read_bytes(self) -> bytes:
        data = self.reader.read(self.table, self.column, self.row)
        if not data:
            raise UserError(
                f"{self} holds no picture: embed pictures from a folder, or fill the column with their bytes"
            )
        return data

    def where(self) -> dict[str, Any]:
        return {"table": str(self.table), "column": self.column, "row": self.row}


class TableReader:
    """Keeps the row group in memory that was read last, so that cells read in order cost one pass; picklable."""

    def __init__(self) -> None:
        self.held: tuple[Any, int, Any] = (None, 0, None)

    def read(self, table: Path, column: str, row: int) -> bytes | None:
        """The bytes of a cell, None where it has none. UserError where the file cannot be read."""
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        held, first, values = self.held
        if held != (table, column) or not first <= row < first + len(values):
            try:
                with pq.ParquetFile(table) as file:
                    group, first = group_of(file.metadata, row)
                    values = file.read_row_group(group, columns=[column]).column(0).combine_chunks()
            except (pa.ArrowException, OSError) as error:
                raise UserError(f"cannot read {table} ({reason_of(error)}): get the file again") from error
            if pa.types.is_struct(values.type):
                values = pc.struct_field(values, "bytes")
            self.held = ((table, column), first, values)
        found: bytes | None = values[row - first].as_py()
        return found

    def __getstate__(self) -> dict[str, Any]:
        return vars(TableReader())


def group_of(metadata: Any, row: int) -> tuple[int, int]:
    """The row group that a row is in, and that group's first row."""
    first = 0
    for group in range(metadata.num_row_groups):
        count = metadata.row_group(group).num_rows
        if row < first + count:
            return group, first
        first += count
    raise OSError(f"it has no row {row}")


def picture_columns(schema: Any) -> Iterator[str]:
    """The columns of bytes, and of structures with a field `bytes`."""
    import pyarrow as pa

    for each in schema:
        kind = each.type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            yield each.name


def holds_pictures(table: Path) -> bool:
    """Whether it has such a column, and is not metadata or embeddings; of one that cannot be read, `read_table` tells why."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return any(True for _ in picture_columns(pq.read_schema(table)))
    except (pa.ArrowException, OSError):
        return True


def read_table(table: Path, reader: TableReader) -> Listed:
    """The pictures of a parquet file, row by row, and its other plain columns, once for each picture of the row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(table) as file:
            names, rows = list(picture_columns(file.schema_arrow)), file.metadata.num_rows
            others = [name for name in file.schema_arrow.names if name not in names]
    except (pa.ArrowException, OSError) as error:
        return Listed([], {}, {str(table): f"{table} is no parquet file ({reason_of(error)}): get it again"})
    if not names:
        why = f"{table} has no column of pictures' bytes, only {', '.join(others)}: pictures by path belong in a folder"
        return Listed([], {}, {str(table): why})
    pictures: list[Picture] = [Cell(table, name, row, reader) for row in range(rows) for name in names]
    known = parquet_columns(table, without=names)
    columns = {name: [value for value in values for _ in names] for name, values in known.items()}
    return Listed(pictures, columns, {})
