"""Figures of answers about scenes: perfect, wrong, and counted by hand."""

import json
from pathlib import Path

import pytest

from mmrlhf.config import parse
from mmrlhf.errors import UserError
from mmrlhf.tiny.scene_files import write_scenes
from mmrlhf.tiny.scenes import Scene, Thing
from vlm.benchmarks.scenes import measured
from vlm.evaluate import EvalConfig, evaluate

SCENE = Scene("farm", "green", (Thing("cow", "", 0), Thing("pig", "", 7), Thing("pig", "", 8)))


def test_counted_by_hand() -> None:
    texts = ["A cow is at the top. A tractor is on the left. The background is green.", "There are two pigs."]
    found = measured(texts, [SCENE, SCENE])
    assert found["chair_i"] == pytest.approx(100 / 3)
    assert found["chair_s"] == 50 and found["coverage"] == 50
    assert found["false_sentences"] == 50  # the wrong place, the tractor
    assert found["length"] == (16 + 4) / 2


def test_the_true_descriptions_are_perfect(tmp_path: Path) -> None:
    file = write_scenes(tmp_path / "scenes", 12, seed=0)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    answers = tmp_path / "answers.jsonl"
    answers.write_text("".join(json.dumps({"id": row["id"], "response": row["answer"]}) + "\n" for row in rows))
    given = [
        "--benchmark",
        "scenes",
        "--answers",
        str(answers),
        "--data",
        str(file.parent),
        "--out",
        str(tmp_path / "o.json"),
    ]
    evaluate(parse(EvalConfig, given, "mmrlhf vlm eval"))
    found = json.loads((tmp_path / "o.json").read_text())
    assert (found["chair_i"], found["chair_s"], found["coverage"], found["false_sentences"]) == (0, 0, 100, 0)
    with pytest.raises(UserError, match="no file .*: give the scenes.jsonl that mmrlhf vlm scenes wrote"):
        evaluate(parse(EvalConfig, [*given, "--data", str(tmp_path / "nowhere")], "mmrlhf vlm eval"))
