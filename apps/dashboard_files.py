"""The files that the dashboard may read: those below the folders that it was given, links out of them refused."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmrlhf.data import SURROGATES
from mmrlhf.runs import METRICS

LARGEST_REPORT = 4 * 10**6  # bytes; figures are small, other JSON files need not be looked at


@dataclass(frozen=True)
class Found:
    """What lies below a folder: runs, JSON files, files of scores, and the links that lead out of it."""

    root: Path
    metrics: tuple[Path, ...]
    reports: tuple[Path, ...]
    scores: tuple[Path, ...]
    refused: tuple[str, ...]


def find(root: Path) -> Found:
    """Walk a folder, hidden folders and links to folders left out; in order of their names."""
    metrics: list[Path] = []
    reports: list[Path] = []
    scores: list[Path] = []
    refused: list[str] = []
    for place, folders, files in os.walk(root):
        folder = Path(place)
        links = [name for name in folders if (folder / name).is_symlink()]
        refused += [name_below(folder / name, root) for name in links if not is_inside(folder / name, [root])]
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in links)
        for name in sorted(files):
            kept = metrics if name == METRICS else reports if name.endswith(".json") else None
            kept = scores if name.endswith(".jsonl") and "scores" in name else kept
            if kept is None:
                continue
            if is_inside(folder / name, [root]):
                kept.append(folder / name)
            elif (folder / name).is_symlink():
                refused.append(name_below(folder / name, root))
    small = (path for path in reports if size_of(path) <= LARGEST_REPORT)
    return Found(root, tuple(metrics), tuple(small), tuple(scores), tuple(refused))


def is_inside(path: Path, roots: Sequence[Path]) -> bool:
    """Whether something is there that, all links followed, lies below one of the folders."""
    try:
        real = path.resolve(strict=True)
        return any(real.is_relative_to(root.resolve(strict=True)) for root in roots)
    except (OSError, RuntimeError):  # gone, or a circle of links
        return False


def size_of(path: Path) -> int:
    """Bytes; 0 for a file that has gone since."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def version_of(path: Path) -> tuple[int, int]:
    """(time of change in ns, bytes), which a changed file does not keep; (0, 0) where it has gone."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_size


def name_below(path: Path, root: Path) -> str:
    """A path as the page names it: relative to the folder that was given, that folder's own name for itself."""
    name = path.relative_to(root).as_posix()
    return printable(root.resolve().name or "/" if name == "." else name)


def printable(text: str) -> str:
    """A text that can be written as UTF-8: file names and JSON may hold halves of characters."""
    return SURROGATES.sub("\N{REPLACEMENT CHARACTER}", text)
