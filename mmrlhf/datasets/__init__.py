"""Preference data sets as people have them on disk: a file a format, and the commands that read, check and write them."""

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from mmrlhf.data import Pair
from mmrlhf.datasets.rows import Rows

# format -> the module whose `read(source, images)` streams rows and faults; imported when it is asked for
READERS = {
    "pairs": "mmrlhf.datasets.pairs",
    "pickapic": "mmrlhf.datasets.pickapic",
    "hpd": "mmrlhf.datasets.hpd",
    "imagereward": "mmrlhf.datasets.imagereward",
}
Format = Literal["pairs", "pickapic", "hpd", "imagereward"]
# format -> the module whose `write(pairs, file)` writes them
WRITERS = {"pairs": "mmrlhf.datasets.pairs", "pickapic": "mmrlhf.datasets.pickapic"}


def reader(name: str) -> Callable[[Path, Path | None], Rows]:
    """(source, folder of images or None) -> the rows of a data set of this format."""
    return importlib.import_module(READERS[name]).read


def writer(name: str) -> Callable[[Sequence[Pair], Path], None]:
    """(pairs, file) -> the file in this format."""
    return importlib.import_module(WRITERS[name]).write
