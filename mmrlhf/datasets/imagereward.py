"""ImageReward's rankings (Xu et al. 2023): a JSON array of {"id", "prompt", "generations", "ranking"}, 1 the best rank.

A ranking of k images is its strict pairs, up to k(k − 1)/2; ties are left out, as the authors do.
"""

from pathlib import Path

from mmrlhf.datasets.json_array import objects
from mmrlhf.datasets.rows import BadRow, Fault, Rows, existing, names, numbers, ranked_pairs, text


def read(source: Path, images: Path | None) -> Rows:
    """The pairs of the file `source`; its image paths are relative to `images`, by default the file's folder."""
    for where, row in objects(source):
        try:
            files = names(row, "generations")
            ranks = numbers(row, "ranking", len(files))
            found = [existing(images or source.parent, name) for name in files]
            yield from ranked_pairs(where, text(row, "prompt"), found, ranks, text(row, "id"))
        except BadRow as error:
            yield Fault(where, str(error))
