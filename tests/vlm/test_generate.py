"""`mmrlhf vlm generate`: questions as benchmarks and users write them, and files that other commands take."""

import json
from pathlib import Path
from typing import Any

import pytest

from apps.rate_items import read_questions as read_items
from mmrlhf.errors import UserError
from tests.vlm.helpers import broken_jpeg, pictures, write_rows
from vlm.benchmarks import pope
from vlm.generate import GenerateConfig, generate, read_questions


def asked(folder: Path, **columns: Any) -> Path:
    """A question about each of two pictures."""
    return write_rows(
        [{"prompt": "What?", "image": name} | columns for name in pictures(folder, 2)], folder / "q.jsonl"
    )


def answers(model: str, prompts: Path, **options: Any) -> list[dict[str, Any]]:
    """What is written."""
    out = prompts.with_name("answers.jsonl")
    generate(GenerateConfig(model, prompts, out, max_new_tokens=3, **options))
    return [json.loads(line) for line in out.read_text().split("\n")[:-1]]


def test_ids_are_the_questions_own_or_their_numbers_from_1(tmp_path: Path) -> None:
    assert [columns["id"] for columns, _ in read_questions(asked(tmp_path), None)] == [1, 2]
    assert [columns["id"] for columns, _ in read_questions(asked(tmp_path, id="a"), None)] == ["a", "a"]
    assert [columns["id"] for columns, _ in read_questions(asked(tmp_path, question_id=7), None)] == [7, 7]


def test_answers_to_popes_questions_are_scored(small_llava: str, tmp_path: Path) -> None:
    """The way through all three commands: build, answer, score."""
    images = dict(zip(pictures(tmp_path, 2), (["dog", "cat"], ["car", "tree"]), strict=True))
    questions = write_rows(pope.build_questions(images, per_image=1), tmp_path / "pope.jsonl")
    rows = answers(small_llava, questions)
    for row in rows:
        row["response"] = row["label"]
    found = pope.score(write_rows(rows, tmp_path / "said.jsonl"), questions)
    assert (found["n"], found["missing"], found["accuracy"]) == (12, 0, 100)
    for row in rows:  # as files of other numbers have it, question_id counts
        row["id"] -= 1
    assert pope.score(write_rows(rows, tmp_path / "said.jsonl"), questions)["accuracy"] == 100


def test_people_can_mark_what_is_written(tmp_path: Path) -> None:
    file = asked(tmp_path, response="A dog.")
    assert len(read_items(file, "segments")[1]) == 2


def test_bad_questions_leave_nothing(small_llava: str, tmp_path: Path) -> None:
    long = asked(tmp_path)
    write_rows([{"prompt": "What? " * 2000, "image": "0.png"}], long)
    with pytest.raises(UserError, match="1 of 1 questions leave no room for an answer in the .* tokens"):
        answers(small_llava, long)
    with pytest.raises(UserError, match="row 1: prompt got .*half of a surrogate pair"):
        answers(small_llava, write_rows([{"prompt": "a\ud800"}], long))
    broken_jpeg(tmp_path / "cut.jpg")
    with pytest.raises(UserError, match="cut.jpg is not a readable image"):
        answers(small_llava, asked(tmp_path, image="cut.jpg"))
    with pytest.raises(UserError, match="--out .* is a folder"):
        generate(GenerateConfig(small_llava, asked(tmp_path), tmp_path, resume=True))
    assert not [*tmp_path.glob("answers.jsonl*"), *tmp_path.parent.glob("*.part")]


def test_a_picture_that_is_an_address_is_asked_for(tmp_path: Path) -> None:
    """MMHal-Bench's rows."""
    rows = [{"image_id": "1", "image_src": "https://example.org/1.jpg", "question": "What is it?"}]
    (tmp_path / "mmhal.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match="entry 1 has no image, but image_src 'https://example.org/1.jpg': download"):
        read_questions(tmp_path / "mmhal.json", None)
