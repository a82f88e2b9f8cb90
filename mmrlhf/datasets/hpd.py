"""Human Preference Dataset v2 (Wu et al. 2023): train.json holds pairs with votes, test.json rankings of several images.

train.json: {"prompt", "file_path": [2 names], "human_preference": [1 for the preferred, 0], "user_hash", …}, images in train/;
test.json: {"prompt", "image_path": [names], "rank": [1 the best], …}, images in test/.
"""

from pathlib import Path
from typing import Any

from mmrlhf.data import Pair
from mmrlhf.datasets.records import records
from mmrlhf.datasets.rows import BadRow, Row, Rows, existing, names, numbers, ranks, rows_of, text
from mmrlhf.outcomes import Ranking


def read(source: Path, images: Path | None) -> Rows:
    """The pairs of train.json or the rankings of test.json; images lie in the folder of that name beside it, or in `images`."""
    folder = images or source.parent / source.stem

    def row(where: str, record: dict[str, Any]) -> list[Row]:
        return [Row(where, ranking(record, folder) if "rank" in record else vote(record, folder))]

    return rows_of(records(source, ("prompt",)), row)


def vote(record: dict[str, Any], folder: Path) -> Pair:
    """A row of train.json: the votes for each image, as a soft label."""
    column = "file_path" if "file_path" in record else "image_path"
    files = names(record, column)
    votes = numbers(record, "human_preference", len(files))
    if len(files) != 2 or min(votes) < 0 or not sum(votes):
        raise BadRow(f"{column} and human_preference got {files} and {votes}, allowed are two images and a vote")
    first, second = (existing(folder, name) for name in files)
    annotator = str(record.get("user_hash") or "")
    return Pair(text(record, "prompt"), first, second, votes[0] / sum(votes), annotator=annotator)


def ranking(record: dict[str, Any], folder: Path) -> Ranking:
    """A row of test.json, a group of its own."""
    files = names(record, "image_path")
    found = ranks(record, "rank", len(files))
    images = tuple(existing(folder, name) for name in files)
    return Ranking(text(record, "prompt"), images, tuple(found), f"{folder.name}/{files[0]}")
