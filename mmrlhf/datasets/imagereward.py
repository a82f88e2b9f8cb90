"""ImageReward's rankings (Xu et al. 2023): a JSON array of {"id", "prompt", "generations", "ranking"}, 1 the best rank.

A ranking of k images is up to k(k − 1)/2 strict pairs (`mmrlhf.outcomes.strict_pairs`); ties are left out of those, as the
authors do.
"""

from pathlib import Path
from typing import Any

from mmrlhf.datasets.records import records
from mmrlhf.datasets.rows import Row, Rows, existing, names, ranks, rows_of, text
from mmrlhf.outcomes import Ranking


def read(source: Path, images: Path | None) -> Rows:
    """The rankings of the file `source`; its image paths are relative to `images`, by default the file's folder."""

    def row(where: str, record: dict[str, Any]) -> list[Row]:
        files = names(record, "generations")
        found = ranks(record, "ranking", len(files))
        paths = tuple(existing(images or source.parent, name) for name in files)
        return [Row(where, Ranking(text(record, "prompt"), paths, tuple(found), text(record, "id")))]

    return rows_of(records(source, ("prompt", "generations", "ranking")), row)
