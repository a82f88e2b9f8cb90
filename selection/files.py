"""What `mmrlhf select` reads and writes: a matrix that need not fit into memory, rows selected earlier, whole files."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from mmrlhf.errors import UserError
from selection.parquet import parquet_embeddings
from selection.stacked import Matrix, Piece, Stacked, join, widest


def read_embeddings(path: Path) -> Float[np.ndarray, "n d"]:
    """A .npy matrix of floats, or the column "embedding" of a .parquet file, read whole. UserError for anything else."""
    return parquet_embeddings(path) if path.suffix.lower() == ".parquet" else read_matrix(path, "embeddings")


def read_matrix(path: Path, what: str) -> Float[np.ndarray, "n d"]:
    """A .npy matrix of floats, memory-mapped, never unpickled. UserError for anything else."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        pickled = "it holds pickled objects, which are never loaded" if "object" in str(error) else ""
        reason = getattr(error, "strerror", None) or pickled or " ".join(str(error).split()) or "damaged"
        raise UserError(f"cannot read the {what} {path} ({reason}): give a .npy file of numpy.save") from error
    if not isinstance(array, np.ndarray):
        raise UserError(f"{path} is an archive of arrays (.npz): save the one matrix with numpy.save as .npy")
    if array.ndim != 2:
        raise UserError(f"{path} has shape {array.shape}, allowed is (rows, columns): save one row an item")
    if array.dtype.kind != "f" or array.dtype.itemsize not in (2, 4, 8):
        raise UserError(f"{path} holds {array.dtype}, allowed are float16, float32 and float64: convert with astype")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def read_stacked(sources: Sequence[Path | np.ndarray]) -> Stacked:
    """Matrices in memory, and memory-mapped .npy files, one after another. UserError for anything else."""
    named = [source.resolve() if isinstance(source, Path) else source for source in sources]
    return Stacked([read_source(source) for source in named], named)


def read_pieces(pieces: Sequence[Piece]) -> Float[np.ndarray, "n d"]:
    """Their rows, in order; memory-mapped where they are of one file."""
    parts = [read_source(piece.source)[piece.start : piece.stop] for piece in pieces]
    return join(parts, parts[0].shape[1], widest(parts))


def read_source(source: Path | np.ndarray) -> Float[np.ndarray, "n d"]:
    """The matrix of a .npy file, or the matrix."""
    return read_matrix(source, "embeddings") if isinstance(source, Path) else source


def npy_files(folder: Path) -> list[Path]:
    """The .npy files of a folder, in the order of their names. UserError where there is none."""
    files = sorted(path for path in folder.iterdir() if path.suffix == ".npy" and path.is_file())
    if not files:
        raise UserError(f"no .npy file in {folder}: give a .npy file, or a folder of .npy files of numpy.save")
    return files


def embedding_hash(embeddings: Matrix) -> str:
    """The first 32 hex digits of the SHA-256 of the matrix's type, shape and values: which embedding made a selection."""
    digest = hashlib.sha256(f"{embeddings.dtype} {embeddings.shape}".encode())
    for start in range(0, len(embeddings), 8192):
        digest.update(np.ascontiguousarray(embeddings[start : start + 8192]).tobytes())
    return digest.hexdigest()[:32]


def read_already(path: Path, hashes: Sequence[str] | None = None) -> list[int]:
    """Rows selected earlier: a result of `mmrlhf select` (with those that it was given), a JSON list, or a row number a line.

    With `hashes`, those of the images now, an earlier result's images are found again by content; files that have gone
    since are passed over.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(
            f"cannot read --already {path} ({reason}): give a result of select, or a row number a line"
        ) from error
    try:
        content: Any = json.loads(text) if text.lstrip().startswith(("{", "[")) else text.split()
        if isinstance(content, dict):
            if hashes is not None and "hashes" in content:
                rows = {name: row for row, name in reversed(list(enumerate(hashes)))}
                return [rows[name] for name in [*content.get("already_hashes", []), *content["hashes"]] if name in rows]
            content = [*content.get("already", []), *content["indices"]]
        if any(isinstance(entry, bool | float) for entry in content):
            raise ValueError
        return [int(entry) for entry in content]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--already {path} holds no row numbers: give a result of select, a JSON list, or a row number a line"
        ) from error


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
