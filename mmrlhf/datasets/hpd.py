"""Human Preference Dataset v2 (Wu et al. 2023): train.json holds pairs with votes, test.json rankings of several images.

train.json: {"prompt", "file_path": [2 names], "human_preference": [1 for the preferred, 0], …}, images in train/;
test.json: {"prompt", "image_path": [names], "rank": [1 the best], …}, images in test/.
"""

from pathlib import Path
from typing import Any

from mmrlhf.datasets.json_array import objects
from mmrlhf.datasets.rows import BadRow, Fault, Row, Rows, existing, names, numbers, ranked_pairs, text


def read(source: Path, images: Path | None) -> Rows:
    """The pairs of train.json or test.json; images lie in the folder of the same name beside it, or in `images`."""
    folder = images or source.parent / source.stem
    for where, row in objects(source):
        try:
            yield from ranking(where, row, folder) if "rank" in row else [vote(where, row, folder)]
        except BadRow as error:
            yield Fault(where, str(error))


def vote(where: str, row: dict[str, Any], folder: Path) -> Row:
    """A row of train.json: the votes for each image, as a soft label."""
    column = "file_path" if "file_path" in row else "image_path"
    files = names(row, column)
    votes = numbers(row, "human_preference", len(files))
    if len(files) != 2 or min(votes) < 0 or not sum(votes):
        raise BadRow(f"{column} and human_preference got {files} and {votes}, allowed are two images and a vote")
    first, second = (existing(folder, name) for name in files)
    return Row(where, text(row, "prompt"), first, second, votes[0] / sum(votes))


def ranking(where: str, row: dict[str, Any], folder: Path) -> list[Row]:
    """A row of test.json: its strict pairs, kept together as one group."""
    files = names(row, "image_path")
    ranks = numbers(row, "rank", len(files))
    found = [existing(folder, name) for name in files]
    return ranked_pairs(where, text(row, "prompt"), found, ranks, f"{folder.name}/{files[0]}")
