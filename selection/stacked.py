"""Matrices one after another as one matrix of rows numbered through: files that together are larger than memory."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from mmrlhf.errors import UserError


class Piece(NamedTuple):
    """Rows `start` to `stop` of a .npy file, or of a matrix in memory: what a worker is told to read."""

    source: Path | np.ndarray
    start: int
    stop: int


class Stacked:
    """The rows of matrices, in order; indexed by slices and arrays of row numbers. `dtype` is the widest of all.

    `sources` are what the matrices were read from: .npy files, or the matrices. UserError where the numbers of columns
    differ.
    """

    def __init__(self, arrays: Sequence[np.ndarray], sources: Sequence[Path | np.ndarray]):
        self.arrays, self.sources = list(arrays), list(sources)
        for source, array in zip(self.sources, self.arrays, strict=True):
            if array.shape[1] != self.arrays[0].shape[1]:
                name = source if isinstance(source, Path) else "a matrix"
                raise UserError(
                    f"{name} has {array.shape[1]} columns, allowed are the {self.arrays[0].shape[1]} of "
                    "the first: embed all with one model"
                )
        self.counts = [len(array) for array in self.arrays]
        self.ends = np.cumsum(self.counts)
        self.dtype = widest(self.arrays)
        self.shape = (int(self.ends[-1]), self.arrays[0].shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return self.shape[0] * self.shape[1]

    def __getitem__(self, rows: slice | Int[np.ndarray, " b"]) -> Float[np.ndarray, "b d"]:
        """The rows; no copy is made of a slice of one file."""
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(len(self))
            parts = [self.arrays[number][begin:end] for number, begin, end in self.spans(start, stop)]
            return join(parts, self.shape[1], self.dtype)
        found = np.empty((len(rows), self.shape[1]), self.dtype)
        which = np.searchsorted(self.ends, rows, side="right")
        for one in np.unique(which).tolist():
            here = which == one
            found[here] = self.arrays[one][rows[here] - (self.ends[one] - self.counts[one])]
        return found

    def pieces(self, start: int, stop: int) -> tuple[Piece, ...]:
        """What lies between two row numbers: parts of files by their names, parts of matrices themselves."""
        found = []
        for number, begin, end in self.spans(start, stop):
            source = self.sources[number]
            if isinstance(source, Path):
                found.append(Piece(source, begin, end))
            else:
                found.append(Piece(source[begin:end], 0, end - begin))
        return tuple(found)

    def spans(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """(number of the matrix, its first row, the row after its last) of what lies between two row numbers."""
        found = []
        for number, (end, count) in enumerate(zip(self.ends.tolist(), self.counts, strict=True)):
            first = end - count
            if max(start, first) < min(stop, end):
                found.append((number, max(start, first) - first, min(stop, end) - first))
        return found


Matrix = Float[np.ndarray, "n d"] | Float[Stacked, "n d"]


def widest(arrays: Sequence[np.ndarray]) -> np.dtype:
    """The type, of float16, float32 and float64, that holds the values of all (numpy.result_type takes only so many)."""
    return max((array.dtype for array in arrays), key=lambda dtype: dtype.itemsize)


def join(parts: Sequence[np.ndarray], columns: int, dtype: np.dtype) -> Float[np.ndarray, "n d"]:
    """The parts below one another; the part itself where there is one."""
    if len(parts) == 1:
        return parts[0].astype(dtype, copy=False)
    return np.concatenate(parts) if parts else np.empty((0, columns), dtype)
