import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf.config import parse
from mmrlhf.errors import UserError
from tests.vlm.benchmarks.files import json_lines
from vlm.benchmarks import pope

IMAGES = {
    "1.jpg": ["person", "dog", "ball"],
    "2.jpg": ["person", "dog", "tree"],
    "3.jpg": ["person", "cat", "sofa"],
    "4.jpg": ["car", "tree", "road"],
    "5.jpg": ["person", "car", "road"],
}


def asked(rows: list[dict[str, Any]], image: str, subset: str, label: str) -> set[str]:
    """The objects that an image's questions name."""
    kept = [row for row in rows if (row["image"], row["category"], row["label"]) == (image, subset, label)]
    return {
        row["text"].removeprefix("Is there a").removeprefix("n").strip().removesuffix(" in the image?") for row in kept
    }


def test_questions_by_hand() -> None:
    """For 1.jpg: absent tree, car, road (2 images each), cat, sofa (1 each); tree stands beside person and dog (2),
    car and road beside person (1 each), cat and sofa too."""
    rows = pope.build_questions(IMAGES, per_image=1)
    assert len(rows) == 3 * 5 * 2 and [row["question_id"] for row in rows] == [*range(1, 31)]
    assert [row["category"] for row in rows] == ["random"] * 10 + ["popular"] * 10 + ["adversarial"] * 10
    assert asked(rows, "1.jpg", "popular", "no") == {"car"}
    assert asked(rows, "1.jpg", "adversarial", "no") == {"tree"}
    assert asked(rows, "4.jpg", "popular", "no") == {"person"}
    assert asked(rows, "3.jpg", "adversarial", "no") == {"dog"}
    assert rows[0].keys() == {"question_id", "image", "text", "label", "category"}


def test_articles() -> None:
    rows = pope.build_questions({"a": ["apple"], "b": ["boat"]}, per_image=1)
    assert {row["text"] for row in rows} == {"Is there an apple in the image?", "Is there a boat in the image?"}


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.sets(st.sampled_from("abcdefghij"), min_size=2, max_size=7), min_size=2, max_size=6), st.integers(0, 9)
)
def test_questions_are_true_and_repeatable(sets: list[set[str]], seed: int) -> None:
    images = {str(number): [*objects] for number, objects in enumerate(sets)}
    known = set().union(*sets)
    if any(len(known - objects) < 2 for objects in sets):
        with pytest.raises(UserError, match="lacks only"):
            pope.build_questions(images, per_image=2, seed=seed)
        return
    rows = pope.build_questions(images, per_image=2, seed=seed)
    assert rows == pope.build_questions(
        {name: objects[::-1] for name, objects in images.items()}, per_image=2, seed=seed
    )
    for image, objects in images.items():
        positives = [asked(rows, image, subset, "yes") for subset in pope.SUBSETS]
        assert positives[0] == positives[1] == positives[2] <= set(objects) and len(positives[0]) == 2
        for subset in pope.SUBSETS:
            negatives = asked(rows, image, subset, "no")
            assert len(negatives) == 2 and negatives <= known - set(objects)
        frequency = Counter(name for names in sets for name in names)
        popular = asked(rows, image, "popular", "no")
        others = known - set(objects) - popular
        assert min(frequency[name] for name in popular) >= max((frequency[name] for name in others), default=0)


def test_the_seed_changes_the_random_questions() -> None:
    images = {str(n): [f"thing {n + k}" for k in range(3)] for n in range(10)}
    texts = [[row["text"] for row in pope.build_questions(images, seed=seed)] for seed in (0, 1)]
    assert texts[0] != texts[1]


def test_too_few_objects() -> None:
    with pytest.raises(UserError, match="no image has 4 objects or more"):
        pope.build_questions(IMAGES, per_image=4)
    with pytest.raises(UserError, match="image a lacks only 1 of the objects, 2 are asked for"):
        pope.build_questions({"a": ["x", "y"], "b": ["x", "y", "z"]}, per_image=2)


@pytest.mark.parametrize(
    ("text", "yes"),
    [("Yes", True), ("No", False), ("no, it is not", False), ("Yes. No.", True), ("There is not a dog.", False),
     ("I know", True), ("Nothing", True), ("Perhaps", True)],
)  # fmt: skip
def test_how_answers_are_read(text: str, yes: bool) -> None:
    assert pope.says_yes(text) == yes


def command(tmp_path: Path, *options: str) -> Path:
    """The file of questions that the command writes."""
    objects = json_lines(tmp_path / "objects.jsonl", [{"image": k, "objects": v} for k, v in IMAGES.items()])
    arguments = ["--objects", str(objects), "--out", str(tmp_path / "pope.jsonl"), "--per-image", "1", *options]
    pope.build(parse(pope.PopeConfig, arguments, "mmrlhf vlm pope"))
    return tmp_path / "pope.jsonl"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_command_writes_what_scoring_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = command(tmp_path)
    assert capsys.readouterr().out == f"30 questions about 5 of 5 images: {file}\n"
    right = [{"question_id": row["question_id"], "answer": row["label"].title()} for row in lines(file)]
    found = pope.score(json_lines(tmp_path / "right.jsonl", right), file)
    assert [found[name] for name in ("n", *pope.FIGURES)] == [30, 100, 100, 100, 100, 50]
    wrong = [row | {"answer": "No" if row["answer"] == "Yes" else "Yes"} for row in right]
    found = pope.score(json_lines(tmp_path / "wrong.jsonl", wrong), file)
    assert [found[name] for name in pope.FIGURES] == [0, 0, 0, 0, 50]
    always = [{"text": "Yes, there is."} for _ in right]  # in the questions' order
    found = pope.score(json_lines(tmp_path / "yes.jsonl", always), file)
    assert [found[name] for name in pope.FIGURES] == pytest.approx([50, 50, 100, 200 / 3, 100], abs=1e-5)
    assert {*found["by_subset"]} == {*pope.SUBSETS} and found["by_subset"]["popular"]["yes_ratio"] == 100


def test_the_command_refuses(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--per-image got 0, allowed is 1 or more"):
        command(tmp_path, "--per-image", "0")
    objects = json_lines(tmp_path / "o.jsonl", [{"image": "a", "objects": ["x"]}] * 2)
    with pytest.raises(UserError, match="has the id a a second time: give each image once"):
        pope.build(pope.PopeConfig(objects, tmp_path / "out.jsonl"))
    objects = json_lines(tmp_path / "o.jsonl", [{"image": "a", "objects": "x"}])
    with pytest.raises(UserError, match="has 'x' for objects, allowed is a list of texts"):
        pope.build(pope.PopeConfig(objects, tmp_path / "out.jsonl"))
    assert not (tmp_path / "out.jsonl").exists()


def three_files(folder: Path) -> Path:
    """The published layout: a file a subset, each numbered from 1."""
    folder.mkdir()
    for subset in pope.SUBSETS:
        rows = [{"question_id": n, "image": f"{(n + 1) // 2}.jpg", "text": "?", "label": label}
                for n, label in enumerate(["yes", "no", "yes", "no"], start=1)]  # fmt: skip
        json_lines(folder / f"coco_pope_{subset}.json", rows)
    return folder


SAID = {
    "random": ["yes", "no", "yes", "no"],
    "popular": ["yes", "yes", "yes", "no"],
    "adversarial": ["no", "yes", "yes", "yes"],
}


def test_three_files_of_questions(tmp_path: Path) -> None:
    """Subset by subset: accuracy 100, 75, 25; precision 100, 2/3, 1/3; recall 100, 100, 50; yes 50, 75, 75."""
    data = three_files(tmp_path / "data")
    (tmp_path / "said").mkdir()
    for subset, said in SAID.items():
        json_lines(tmp_path / "said" / f"{subset}.jsonl", [{"question": "?", "answer": text} for text in said])
    rows = [{"question_id": n, "category": subset, "answer": text}
            for subset, said in SAID.items() for n, text in enumerate(said, start=1)]  # fmt: skip
    one = json_lines(tmp_path / "said.jsonl", rows[::-1])
    found = pope.score(tmp_path / "said", data)
    assert found == pope.score(one, data)
    assert found["accuracy"] == pytest.approx(200 / 3, abs=1e-5) and found["recall"] == pytest.approx(250 / 3, abs=1e-5)
    assert found["precision"] == pytest.approx(200 / 3, abs=1e-5) and found["yes_ratio"] == pytest.approx(
        200 / 3, abs=1e-5
    )
    assert found["f1"] == pytest.approx(np.mean([100, 80, 40]), abs=1e-5)
    assert found["by_subset"]["adversarial"]["f1"] == pytest.approx(40, abs=1e-5)
    with pytest.raises(UserError, match='the subsets of the questions have the same ids: write "category"'):
        pope.score(json_lines(tmp_path / "ids.jsonl", [{"question_id": 1, "answer": "yes"}]), data)
    with pytest.raises(UserError, match="has the unknown id other:1"):
        pope.score(json_lines(tmp_path / "ids.jsonl", [rows[0] | {"category": "other"}]), data)


def test_missing_answers(tmp_path: Path) -> None:
    data = three_files(tmp_path / "data")
    some = json_lines(tmp_path / "some.jsonl", [{"question_id": 1, "category": "random", "answer": "yes"}])
    with pytest.raises(UserError, match="3 of 4 answers are missing"):
        pope.score(some, data)
    found = pope.score(some, data, partial=True)
    assert (
        found["n"] == 1 and found["missing"] == 11 and [*found["by_subset"]] == ["random"] and found["accuracy"] == 100
    )
    only = json_lines(tmp_path / "only.jsonl",
                      [{"question_id": n, "category": "random", "answer": "yes"} for n in (1, 2, 3, 4)])  # fmt: skip
    with pytest.raises(UserError, match="has no answers to the popular questions: give them, or --partial"):
        pope.score(only, data)


def test_other_data(tmp_path: Path) -> None:
    answers = json_lines(tmp_path / "a.jsonl", [{"question_id": 1, "answer": "yes"}])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"has 0 JSON files with 'random' in the name \(none\), allowed is one"):
        pope.score(answers, tmp_path / "empty")
    one = json_lines(tmp_path / "q_popular.json", [{"question_id": 1, "image": "a", "text": "?", "label": "maybe"}])
    with pytest.raises(UserError, match="has 'maybe' for label, allowed are yes and no"):
        pope.score(answers, one)
    json_lines(one, [{"question_id": 1, "image": "a", "text": "?", "label": "no"}])
    assert [*pope.score(answers, one)["by_subset"]] == ["popular"]
