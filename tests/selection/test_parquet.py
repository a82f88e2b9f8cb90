"""Embeddings from a column of lists."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmrlhf.errors import UserError
from selection.files import read_embeddings
from tests.selection.data import gaussian


def write(path: Path, column: Any, kind: Any = None) -> Path:
    pq.write_table(
        pa.table({"embedding": pa.array(column, kind), "x": list(range(len(column)))}), path, row_group_size=2
    )
    return path


def test_lists_of_any_kind_are_the_matrix(tmp_path: Path) -> None:
    for dtype in (np.float16, np.float32, np.float64):
        x = gaussian(5, 3).astype(dtype)
        value = pa.from_numpy_dtype(dtype)
        for kind in (pa.list_(value), pa.large_list(value), pa.list_(value, 3)):
            found = read_embeddings(write(tmp_path / "x.parquet", list(x), kind))
            assert (found == x).all() and found.dtype == (np.float64 if dtype == np.float64 else np.float32)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([[1.0], [1.0, 2.0]], "all of one length and none missing"),
        ([[1.0], None], "all of one length and none missing"),
        ([[1.0, None], [1.0, 2.0]], "all of one length and none missing"),
        ([[1], [2]], "allowed are lists of floating point numbers"),
        ([1.0, 2.0], "holds double, allowed are lists"),
    ],
)
def test_what_is_no_matrix_is_told(column: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read_embeddings(write(tmp_path / "x.parquet", column))


def test_a_missing_list_of_fixed_size_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none missing"):
        read_embeddings(write(tmp_path / "x.parquet", [[1.0, 2.0], None], pa.list_(pa.float32(), 2)))


def test_other_files_are_told(tmp_path: Path) -> None:
    pq.write_table(pa.table({"vector": [[1.0]]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="has no column 'embedding', only vector"):
        read_embeddings(tmp_path / "x.parquet")
    (tmp_path / "x.parquet").write_text("text")
    with pytest.raises(UserError, match="cannot read the embeddings"):
        read_embeddings(tmp_path / "x.parquet")
    with pytest.raises(UserError, match="cannot read the embeddings .*No such file"):
        read_embeddings(tmp_path / "none.parquet")
