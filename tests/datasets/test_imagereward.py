"""ImageReward: the real expert rankings, and rows that are none."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from mmrlhf.datasets import reader
from mmrlhf.datasets.rows import Fault, Row
from mmrlhf.outcomes import Ranking, strict_pairs
from tests.datasets.files import json_file, touch

RANKINGS = Path(__file__).parents[3] / "shared" / "data" / "rankings" / "imagereward_test.json"


def test_imagereward_expert_rankings_are_466_or_6399_strict_pairs(tmp_path: Path) -> None:
    """The real file; its images, which it only names, are stood in for by empty files."""
    if not RANKINGS.exists():
        pytest.skip("shared/data/rankings is not there")
    truth = json.loads(RANKINGS.read_text())
    for name in {name for row in truth for name in row["generations"]}:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    rankings = [row.judgement for row in reader("imagereward")(RANKINGS, tmp_path) if isinstance(row, Row)]
    assert [isinstance(ranking, Ranking) for ranking in rankings] == [True] * 466
    assert [list(ranking.ranks) for ranking in rankings if isinstance(ranking, Ranking)] == [
        row["ranking"] for row in truth
    ]
    pairs = [pair for ranking in rankings if isinstance(ranking, Ranking) for pair in strict_pairs(ranking)]
    assert len(pairs) == 6399 and {pair.label_0 for pair in pairs} == {0.0, 1.0}
    wins = {
        (row["id"], a, b)
        for row in truth
        for (a, rank_a), (b, rank_b) in itertools.permutations(zip(row["generations"], row["ranking"], strict=True), 2)
        if rank_a < rank_b
    }
    found = set()
    for pair in pairs:
        order = (pair.image_0, pair.image_1) if pair.label_0 == 1 else (pair.image_1, pair.image_0)
        first, second = (path.relative_to(tmp_path).as_posix() for path in order)
        found.add((pair.group, first, second))
    assert found == wins and len(wins) == 6399


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"ranking": [1, 2, 3]}, "allowed is a list of 2 numbers"),
        ({"ranking": [1, None]}, "allowed is a list of 2 numbers"),
        ({"ranking": [2, 2]}, "all equal"),
        ({"generations": ["a.png", "a.png"]}, "names a file twice"),
        ({"generations": ["a.png"]}, "allowed is a list of 2 or more file names"),
        ({"generations": ["a.png", "gone.png"]}, "no file"),
        ({"prompt": " "}, "prompt got ' '"),
    ],
)
def test_a_bad_ranking_is_a_fault_with_its_row(change: dict[str, Any], problem: str, tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png")
    good = {"id": "1", "prompt": "p", "generations": ["a.png", "b.png"], "ranking": [1, 2]}
    rows = list(reader("imagereward")(json_file([good, good | change], tmp_path / "r.json"), None))
    assert isinstance(rows[0], Row) and isinstance(rows[1], Fault)
    assert problem in rows[1].problem and rows[1].where.endswith("row 2")
