"""Embedding rows as float32 blocks, from memory or from a memory-mapped file that does not fit into it."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Float32, Float64, Int

from mmrlhf.errors import UserError
from selection.stacked import Matrix

BLOCK = 8192
KEEP_BYTES = 2 << 30
LARGEST = 1e15


class Rows:
    """Rows of `embeddings` as float32: centred and scaled by a power of two (for distances), or of unit length (for cosines).

    A float32 copy is kept where it takes at most `keep_bytes`; beyond, and of `Stacked` files, rows are read anew in
    blocks, so that memory stays bounded. UserError where a value is NaN, infinite or above 1e15, or the matrix has no rows
    or columns.
    """

    def __init__(self, embeddings: Matrix, *, unit: bool = False, keep_bytes: int = KEEP_BYTES):
        self.source, self.unit = embeddings, unit
        mean, low, high = scan(embeddings)
        self.work = np.float64 if embeddings.dtype.itemsize > 4 else np.float32
        self.shift = np.zeros_like(mean, self.work) if unit else mean.astype(self.work)
        spread = float(np.maximum(high - self.shift, self.shift - low).max())
        self.scale = 2.0 ** min(120, -int(np.frexp(spread)[1]))
        self.kept: np.ndarray | None = None
        if isinstance(embeddings, np.ndarray) and embeddings.size * 4 <= keep_bytes:
            kept = np.empty(embeddings.shape, np.float32)
            for part in self.parts():
                kept[part] = self.convert(embeddings[part])
            self.kept = kept

    def __len__(self) -> int:
        return len(self.source)

    @property
    def dim(self) -> int:
        """The number of columns."""
        return self.source.shape[1]

    def __getitem__(self, rows: slice | Int[np.ndarray, " b"]) -> Float32[np.ndarray, "b d"]:
        return self.convert(self.source[rows]) if self.kept is None else self.kept[rows]

    def raw(self, rows: slice | Int[np.ndarray, " b"]) -> Float64[np.ndarray, "b d"]:
        """The rows as they were given, in float64."""
        return np.asarray(self.source[rows], dtype=np.float64)

    def parts(self, size: int = BLOCK) -> Iterator[slice]:
        """Slices of `size` rows that together cover all of them."""
        for start in range(0, len(self), size):
            yield slice(start, min(start + size, len(self)))

    def convert(self, raw: Float[np.ndarray, "b d"]) -> Float32[np.ndarray, "b d"]:
        """Shift and scale, or bring to unit length (a row of zeros stays one)."""
        values = (np.asarray(raw, dtype=self.work) - self.shift) * self.work(self.scale)
        if self.unit:
            length = np.sqrt(np.einsum("ij,ij->i", values, values, dtype=np.float64))
            values = values / np.where(length > 0, length, 1)[:, None]
        return values.astype(np.float32, copy=False)


def scan(
    embeddings: Matrix,
) -> tuple[Float64[np.ndarray, " d"], Float64[np.ndarray, " d"], Float64[np.ndarray, " d"]]:
    """Mean, smallest and largest value of each column, in one pass. UserError for what no distance can be taken of."""
    count, dim = embeddings.shape
    if count == 0 or dim == 0:
        raise UserError(f"embeddings have shape {count} x {dim}, allowed is at least one row and one column")
    total = np.zeros(dim)
    low, high = np.full(dim, np.inf), np.full(dim, -np.inf)
    for start in range(0, count, BLOCK):
        block = np.asarray(embeddings[start : start + BLOCK])
        block = block.astype(np.float32 if block.dtype.itemsize <= 4 else np.float64, copy=False)
        low = np.minimum(low, block.min(axis=0))
        high = np.maximum(high, block.max(axis=0))
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            row = start + int(np.flatnonzero(~np.isfinite(block).all(axis=1))[0])
            raise UserError(f"row {row} of the embeddings holds NaN or infinity: remove it or embed that item again")
        if max(high.max(), -low.min()) > LARGEST:
            row = start + int(np.flatnonzero((np.abs(block) > LARGEST).any(axis=1))[0])
            raise UserError(
                f"row {row} of the embeddings holds a value above {LARGEST:g}: divide all rows by a constant"
            )
        total += block.sum(axis=0, dtype=np.float64)
    return total / count, low, high


def squared_norms(rows: Float32[np.ndarray, "b d"]) -> Float32[np.ndarray, " b"]:
    """The squared length of each row, summed in float64."""
    return np.einsum("ij,ij->i", rows, rows, dtype=np.float64).astype(np.float32)


def nearest_squared(
    rows: Float32[np.ndarray, "b d"],
    norms: Float32[np.ndarray, " b"],
    centres: Float32[np.ndarray, "c d"],
    centre_norms: Float32[np.ndarray, " c"],
) -> Float32[np.ndarray, " b"]:
    """Squared distance of each row to the nearest centre, as |x|² + |y|² - 2xy by one matrix product, clamped at 0."""
    products = (-2 * centres) @ rows.T
    products += centre_norms[:, None]
    return np.maximum(products.min(axis=0) + norms, 0)
