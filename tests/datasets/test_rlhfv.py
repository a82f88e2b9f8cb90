"""RLHF-V: pairs with an image, and the corrected spans."""

import json
from pathlib import Path
from typing import Any

import pytest

from mmrlhf.answers import AnswerPair, read_answer_pairs
from mmrlhf.datasets import reader
from mmrlhf.datasets.corrections import corrections
from mmrlhf.datasets.importing import ImportConfig, import_data
from mmrlhf.datasets.rows import Fault, Row
from mmrlhf.images import content_hash
from mmrlhf.segments import read_segments
from mmrlhf.types import SegmentLabel
from tests.datasets.files import json_file, jsonl, parquet, picture, touch

TEXTS = {"question": "What is it?", "chosen": "A black cat on a mat.", "rejected": "A red cat on a big mat."}


def published(number: int, **changes: Any) -> dict[str, Any]:
    """A row as the published parquet file has it."""
    return {
        "ds_name": "RLHF-V", "image": {"bytes": picture(number), "path": f"{number}.jpg"}, "text": json.dumps(TEXTS),
        "origin_dataset": "COCO", "origin_split": '{"model": "x"}', "idx": number, "image_path": f"RLHF-V/{number}.jpg",
    } | changes  # fmt: skip


def test_pairs_and_their_corrected_spans(tmp_path: Path) -> None:
    source = parquet([published(1), published(2)], tmp_path / "RLHF-V-Dataset.parquet")
    assert import_data(ImportConfig("rlhfv", source, tmp_path / "out")) == 2
    first, second = read_answer_pairs(tmp_path / "out" / "answers.jsonl")
    image = tmp_path / "out" / "images" / f"{content_hash(picture(1))}.jpg"
    assert first == AnswerPair(TEXTS["question"], TEXTS["chosen"], TEXTS["rejected"], 1.0, image)
    assert second.image is not None and second.image.read_bytes() == picture(2)
    lines = [json.loads(line) for line in (tmp_path / "out" / "segments.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and lines[0]["image"] == f"images/{image.name}"
    assert (lines[0]["prompt"], lines[0]["answer"]) == (TEXTS["question"], TEXTS["rejected"])
    assert lines[0]["segments"] == [
        {"start": 1, "end": 5, "tag": "misleading", "correction": " black"},
        {"start": 14, "end": 18, "tag": "misleading", "correction": ""},
    ]


def test_the_corrected_spans_are_read_as_labels(tmp_path: Path) -> None:
    other = TEXTS | {"chosen": "Ein 𝄞 und ein Hund, ja.", "rejected": "Der 𝄞 und Hund."}
    rows = [published(1), published(2, text=json.dumps(other))]
    import_data(ImportConfig("rlhfv", parquet(rows, tmp_path / "x.parquet"), tmp_path / "out"))
    pairs = read_answer_pairs(tmp_path / "out" / "answers.jsonl")
    items = read_segments(tmp_path / "out" / "segments.jsonl")
    assert len({item.item for item in items}) == 2
    for pair, item in zip(pairs, items, strict=True):
        assert (item.prompt, item.answer, item.image) == (pair.prompt, pair.answer_1, pair.image)
        spans = [
            SegmentLabel(item.item, s.start, s.end, s.tag, s.correction)
            for s in corrections(pair.answer_1, pair.answer_0)
        ]
        assert list(item.segments) == spans != []


def test_older_layouts(tmp_path: Path) -> None:
    touch(tmp_path, "coco/1.png", "coco/2.png", "coco/3.png")
    rows = [
        {"image": "coco/1.png", "text": TEXTS, "origin_split_inner_idx": 3},
        {"image": "train2014", "image_path": "coco/2.png", "text": json.dumps(TEXTS)},
        {"image": "coco/3.png", **TEXTS},
    ]
    for source in (json_file(rows, tmp_path / "x.json"), jsonl(rows, tmp_path / "x.jsonl")):
        found = list(reader("rlhfv")(source, None))
        pairs = [row.judgement for row in found if isinstance(row, Row)]
        assert [pair.image for pair in pairs if isinstance(pair, AnswerPair)] == [
            tmp_path / "coco" / f"{number}.png" for number in (1, 2, 3)
        ]
        assert {pair.answer_0 for pair in pairs if isinstance(pair, AnswerPair)} == {TEXTS["chosen"]}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"text": "{"}, "text is not JSON"),
        ({"text": "[1]"}, "text got [1], allowed is an object"),
        ({"text": json.dumps(TEXTS | {"chosen": ""})}, "chosen got ''"),
        ({"text": json.dumps(TEXTS | {"chosen": TEXTS["rejected"]})}, "compares an answer with itself"),
        ({"image": None}, "no file"),
        ({"image": None, "image_path": None}, "image got None"),
    ],
)
def test_a_bad_row_is_a_fault_with_its_row(changes: dict[str, Any], problem: str, tmp_path: Path) -> None:
    rows = list(reader("rlhfv")(parquet([published(1), published(2, **changes)], tmp_path / "x.parquet"), None))
    assert isinstance(rows[0], Row) and isinstance(rows[1], Fault)
    assert problem in rows[1].problem and rows[1].where.endswith("row 2")
