"""What TRL's trainers read, written and read again."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mmrlhf.answers import AnswerPair, read_answer_pairs, write_answer_pairs
from mmrlhf.datasets.export import ExportConfig, export
from mmrlhf.datasets.importing import ImportConfig, import_data
from mmrlhf.errors import UserError
from tests.datasets.files import touch

DIALOGUE = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
STRING = {"dtype": "string", "_type": "Value"}


def exported(pairs: list[AnswerPair], folder: Path, **options: object) -> Path:
    write_answer_pairs(pairs, folder / "answers.jsonl")
    file = folder / "trl.parquet"
    export(ExportConfig(file, data=folder / "answers.jsonl", format="trl", **options))  # type: ignore[arg-type]
    return file


def test_texts_are_conversations_and_come_back_the_same(tmp_path: Path) -> None:
    file = exported([AnswerPair("p", "x", "y", 1.0), AnswerPair(DIALOGUE, " x", " y", 0.0, margin=0.5)], tmp_path)
    table = pq.read_table(file)
    assert table.to_pylist()[1] == {
        "prompt": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
        ],
        "chosen": [{"role": "assistant", "content": "y"}],
        "rejected": [{"role": "assistant", "content": "x"}],
        "margin": 0.5,
    }
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert set(features) == set(table.column_names) and features["prompt"] == [{"role": STRING, "content": STRING}]
    assert import_data(ImportConfig("trl", file, tmp_path / "again")) == 2
    again = read_answer_pairs(tmp_path / "again" / "answers.jsonl")
    assert again == [AnswerPair("p", "x", "y", 1.0), AnswerPair(DIALOGUE, " y", " x", 1.0, margin=0.5)]


def test_images_go_with_the_first_message_of_the_user(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    file = exported([AnswerPair("p", "x", "y", 1.0, tmp_path / "a.png"), AnswerPair("q", "x", "y", 1.0)], tmp_path)
    table = pq.read_table(file)
    first, second = table.to_pylist()
    data = (tmp_path / "a.png").read_bytes()
    assert first["images"] == [{"bytes": data, "path": "a.png"}] and second["images"] == []
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "p"}]
    assert first["prompt"] == [{"role": "user", "content": parts}]
    assert second["prompt"] == [{"role": "user", "content": [{"type": "text", "text": "q"}]}]
    assert first["chosen"] == [{"role": "assistant", "content": [{"type": "text", "text": "x"}]}]
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["images"] == {"feature": {"_type": "Image"}, "_type": "Sequence"}
    import_data(ImportConfig("trl", file, tmp_path / "again"))
    again = read_answer_pairs(tmp_path / "again" / "answers.jsonl")
    assert [(p.prompt, p.answer_0, p.label_0) for p in again] == [("p", "x", 1.0), ("q", "x", 1.0)]
    assert again[0].image is not None and again[0].image.read_bytes() == data and again[1].image is None


@pytest.mark.parametrize(
    ("pair", "what"),
    [(AnswerPair("p", "x", "y", 0.5), "label_0 0.5"), (AnswerPair("p", "x", "y", 1.0, has_label=False), "no label")],
)
def test_what_is_not_strict_is_refused_or_left_out(pair: AnswerPair, what: str, tmp_path: Path) -> None:
    pairs = [AnswerPair("q", "x", "y", 1.0), pair]
    with pytest.raises(UserError, match=f"judgement 2 of .* has {what}, and TRL wants one answer preferred"):
        exported(pairs, tmp_path)
    assert not (tmp_path / "trl.parquet").exists()
    assert pq.read_table(exported(pairs, tmp_path, on_fault="skip")).num_rows == 1
    with pytest.raises(UserError, match="nothing to write as trl \\(1 judgements do not suit it\\)"):
        exported(pairs[1:], tmp_path, on_fault="skip")


def test_criteria_are_not_mixed_up(tmp_path: Path) -> None:
    pairs = [AnswerPair("q", "x", "y", 1.0), AnswerPair("q", "x", "y", 0.0, criterion="safety")]
    with pytest.raises(UserError, match="criteria \\['', 'safety'\\], which trl cannot tell apart"):
        exported(pairs, tmp_path)
    (row,) = pq.read_table(exported(pairs, tmp_path, criterion="safety")).to_pylist()
    assert row["chosen"][0]["content"] == "y"
