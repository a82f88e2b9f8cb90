"""Writes crowd_kit.json beside it: the consensus by crowd-kit of random votes, and of five people's ratings of 400 images.

Run where crowd-kit is, which these tests do without: python -m venv V && V/bin/pip install crowd-kit==1.4.2 &&
V/bin/python tests/golden/crowd_kit.py [../shared/data/annotators/geneval_sdv2.csv]
"""

import csv
import io
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
from crowdkit.aggregation import DawidSkene

STEPS = 2000


def random_votes(seed: int = 0) -> list[list[int]]:
    """(unit, annotator, answer): 60 units of 3 kinds, 6 annotators from careful to random, some answers missing."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(3, size=60)
    votes = []
    for unit, right in enumerate(truth.tolist()):
        for annotator, error in enumerate((0.1, 0.2, 0.3, 0.4, 0.6, 0.67)):
            if generator.random() < 0.8:
                other = int(generator.integers(1, 3))
                votes.append([unit, annotator, (right + other) % 3 if generator.random() < error else right])
    return votes


def seated_votes(table: Path) -> list[list[int]]:
    """(image, seat, quality from 0): the tables do not name the raters, so that a seat is the first to answer, the second …"""
    rows = csv.DictReader(io.StringIO(table.read_bytes().decode().replace("\r", " "), newline=""))
    found, seen = [], Counter[str]()
    images: dict[str, int] = {}
    for row in rows:
        key = row["Input.index"]
        found.append([images.setdefault(key, len(images)), seen[key], int(row["Answer.task-quality"]) - 1])
        seen[key] += 1
    return found


def consensus(votes: list[list[int]]) -> list[list[float]]:
    """P(truth) of each unit, at the end of the iterations."""
    data = pd.DataFrame(votes, columns=["task", "worker", "label"])
    found = DawidSkene(n_iter=STEPS, tol=-1.0).fit_predict_proba(data)
    found = found.reindex(columns=sorted(found.columns)).sort_index()
    return [[round(float(value), 7) for value in row] for row in found.to_numpy()]


if __name__ == "__main__":
    made = {"random": {"votes": random_votes(), "posteriors": consensus(random_votes())}}
    if len(sys.argv) > 1:
        made["real"] = {"posteriors": consensus(seated_votes(Path(sys.argv[1])))}
    Path(__file__).with_suffix(".json").write_text(json.dumps(made) + "\n")
