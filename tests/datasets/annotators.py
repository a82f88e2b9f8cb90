"""What five people each said of 400 images for GenEval (Ghosh et al. 2023): real tables, not part of this project."""

import csv
import io
from pathlib import Path

from mmrlhf.outcomes import Rating

FOLDER = Path(__file__).parents[3] / "shared" / "data" / "annotators"


def ratings(model: str) -> list[Rating]:
    """The quality, 1 to 5, of each image by each of its raters, who are numbered image by image: the table has no names.

    A free text may hold a carriage return of its own, which would end the row for the csv module.
    """
    text = (FOLDER / f"geneval_{model}.csv").read_bytes().decode().replace("\r", " ")
    found: list[Rating] = []
    raters: dict[str, int] = {}
    for row in csv.DictReader(io.StringIO(text, newline="")):
        key = row["Input.index"]
        raters[key] = raters.get(key, 0) + 1
        image = Path(model) / f"{key}.png"
        found.append(Rating(row["Input.caption"], image, int(row["Answer.task-quality"]), annotator=f"{raters[key]}"))
    return found
