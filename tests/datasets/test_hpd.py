"""HPD v2: votes and rankings."""

from pathlib import Path

from mmrlhf.datasets import reader
from mmrlhf.datasets.rows import Row
from tests.datasets.files import json_file, touch


def test_hpd_votes_are_soft_labels_and_rankings_strict_pairs(tmp_path: Path) -> None:
    touch(tmp_path / "train", "a.jpg", "b.jpg")
    touch(tmp_path / "test", "c.jpg", "d.jpg", "e.jpg")
    train = json_file(
        [{"prompt": "p", "file_path": ["a.jpg", "b.jpg"], "human_preference": [1, 3], "user_hash": "h"}],
        tmp_path / "train.json",
    )
    test = json_file(
        [{"prompt": "q", "image_path": ["c.jpg", "d.jpg", "e.jpg"], "rank": [2, 1, 2], "raw_annotations": []}],
        tmp_path / "test.json",
    )
    assert [row.label_0 for row in reader("hpd")(train, None) if isinstance(row, Row)] == [0.25]
    ranked = [row for row in reader("hpd")(test, None) if isinstance(row, Row)]
    assert [(Path(str(r.image_0)).name, Path(str(r.image_1)).name, r.label_0) for r in ranked] == [
        ("c.jpg", "d.jpg", 0.0),
        ("d.jpg", "e.jpg", 1.0),
    ]
    assert len({row.group for row in ranked}) == 1
