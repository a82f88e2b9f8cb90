"""Matrices below one another: indexed as numpy indexes the whole, from memory and from files."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf.errors import UserError
from selection.coverage import coverage
from selection.files import embedding_hash, npy_files, read_pieces, read_stacked
from selection.rows import Rows
from tests.selection.data import gaussian


@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(0, 5), min_size=1, max_size=6), data=st.data())
def test_indexed_as_the_whole(counts: list[int], data: st.DataObject) -> None:
    parts = [gaussian(count, 3, seed) for seed, count in enumerate(counts)]
    whole, stacked = np.concatenate(parts), read_stacked(parts)
    assert (len(stacked), stacked.shape, stacked.size) == (len(whole), whole.shape, whole.size)
    start, stop = (data.draw(st.integers(0, len(whole))) for _ in "ab")
    assert (stacked[start:stop] == whole[start:stop]).all() and len(stacked[start:stop]) == max(0, stop - start)
    if start < stop:
        assert (read_pieces(stacked.pieces(start, stop)) == whole[start:stop]).all()
    if len(whole):
        numbers = np.array(data.draw(st.lists(st.integers(0, len(whole) - 1))), dtype=np.int64)
        assert (stacked[numbers] == whole[numbers]).all()
        assert embedding_hash(stacked) == embedding_hash(whole)


def test_files_of_a_folder_are_mapped_in_the_order_of_their_names(tmp_path: Path) -> None:
    parts = [gaussian(7, 4, 1).astype(np.float16), gaussian(5, 4, 2), gaussian(3, 4, 3, np.float64)]
    for name, part in zip(("b.npy", "c.npy", "a.npy"), parts, strict=True):
        np.save(tmp_path / name, part)
    (tmp_path / "notes.txt").write_text("not a matrix")
    stacked = read_stacked(npy_files(tmp_path))
    assert stacked.counts == [3, 7, 5] and stacked.dtype == np.float64
    assert (stacked[:] == np.concatenate([parts[2], parts[0], parts[1]])).all()
    assert isinstance(read_pieces(stacked.pieces(3, 10)), np.memmap)
    assert [piece.start for piece in stacked.pieces(4, 12)] == [1, 0]


def test_distances_are_those_of_the_whole_and_no_copy_is_kept() -> None:
    parts = [gaussian(300, 5, 1), gaussian(100, 5, 2)]
    assert Rows(read_stacked(parts)).kept is None
    found, expected = (coverage(each, [3, 350]) for each in (read_stacked(parts), np.concatenate(parts)))
    assert found == expected


def test_what_does_not_fit_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a matrix has 4 columns, allowed are the 3 of the first"):
        read_stacked([gaussian(2, 3), gaussian(2, 4)])
    with pytest.raises(UserError, match="no .npy file in"):
        npy_files(tmp_path)
    np.save(tmp_path / "x.npy", gaussian(2, 3))
    np.save(tmp_path / "y.npy", gaussian(2, 4))
    with pytest.raises(UserError, match="y.npy has 4 columns"):
        read_stacked(npy_files(tmp_path))
