"""Preference data sets as people have them on disk: a file a format, and the commands that read, check and write them."""

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from mmrlhf.datasets.rows import Rows

# format -> the module whose `read(source, images)` streams rows and faults; imported when it is asked for
READERS = {
    "pairs": "mmrlhf.datasets.pairs",
    "outcomes": "mmrlhf.datasets.outcomes",
    "answers": "mmrlhf.datasets.answers",
    "pickapic": "mmrlhf.datasets.pickapic",
    "hpd": "mmrlhf.datasets.hpd",
    "imagereward": "mmrlhf.datasets.imagereward",
    "folder": "mmrlhf.datasets.folder",
    "hh": "mmrlhf.datasets.hh",
    "saferlhf": "mmrlhf.datasets.saferlhf",
    "rlhfv": "mmrlhf.datasets.rlhfv",
    "trl": "mmrlhf.datasets.trl",
    "label-studio": "mmrlhf.datasets.label_studio",
    "argilla": "mmrlhf.datasets.argilla",
}
Format = Literal[
    "pairs", "outcomes", "answers", "pickapic", "hpd", "imagereward", "folder", "hh", "saferlhf", "rlhfv", "trl",
    "label-studio", "argilla",
]  # fmt: skip
# format -> the module whose `suited(judgement)` says what it has a place for, and whose `write(judgements, file)` writes it
WRITERS = {
    "pairs": "mmrlhf.datasets.pairs",
    "outcomes": "mmrlhf.datasets.outcomes",
    "answers": "mmrlhf.datasets.answers",
    "pickapic": "mmrlhf.datasets.pickapic",
    "trl": "mmrlhf.datasets.trl_writer",
    "verl-omni": "mmrlhf.datasets.verl_omni",
    "label-studio": "mmrlhf.datasets.label_studio",
    "argilla": "mmrlhf.datasets.argilla",
}
WrittenFormat = Literal["pairs", "outcomes", "answers", "pickapic", "trl", "verl-omni", "label-studio", "argilla"]


def reader(name: str) -> Callable[[Path, Path | None], Rows]:
    """(source, folder of images or None) -> the rows of a data set of this format."""
    return importlib.import_module(READERS[name]).read


def writer(name: str) -> tuple[Callable[[Any], Sequence[Any]], Callable[[Sequence[Any], Path], None]]:
    """(judgement -> those that the format holds in its place, BadRow where none; (judgements, file) -> the file)."""
    module = importlib.import_module(WRITERS[name])
    return module.suited, module.write
