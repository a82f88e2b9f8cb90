from pathlib import Path

import pytest

from mmrlhf.errors import UserError
from tests.vlm.benchmarks.files import json_lines, json_list, responses
from vlm.benchmarks.answers import check_ids, read_answers, read_object


def test_a_list_and_lines_say_the_same(tmp_path: Path) -> None:
    rows = [{"id": 7, "response": "a dog"}, {"id": "8", "response": "no"}]
    as_list = read_answers(json_list(tmp_path / "a.json", rows))
    as_lines = read_answers(json_lines(tmp_path / "a.jsonl", rows))
    assert [(a.id, a.text) for a in as_list] == [(a.id, a.text) for a in as_lines] == [("7", "a dog"), ("8", "no")]


def test_answers_without_ids_take_those_of_the_questions(tmp_path: Path) -> None:
    file = json_lines(tmp_path / "a.jsonl", [{"answer": "yes"}, {"answer": "no"}, {"answer": "no"}])
    assert [answer.id for answer in read_answers(file, order=["x", "y"])] == ["x", "y", "number 3"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty: give a JSON list"),
        ("[]", "is empty: give a JSON list"),
        ("[{]", "is not JSON"),
        ('{"id": 1, "response": "a"}\n{"id": 2', r"row 2 is not JSON"),
        ("[3]", r"entry 1 is a int, allowed is an object"),
        ('[{"response": "a"}]', r'entry 1 has no id: write \{"id"'),
        ('[{"id": true, "response": "a"}]', "has the id True"),
        ('[{"id": 1.5, "response": "a"}]', "has the id 1.5"),
        ('[{"id": 1}]', "entry 1 has no response text: write"),
        ('[{"id": 1, "response": 3}]', "entry 1 has 3 for a response"),
        ('[{"id": 1, "response": "a"}, {"id": "1", "response": "b"}]', "entry 2 has the id 1 of .*entry 1: leave one"),
    ],
)
def test_faults_of_a_file_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_answers(tmp_path / "a.json")


def test_a_file_that_is_not_there_or_no_object(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read .*none.json"):
        read_answers(tmp_path / "none.json")
    with pytest.raises(UserError, match="holds a list, not an object"):
        read_object(json_list(tmp_path / "l.json", [1]), "a table")


def test_unknown_and_missing_ids(tmp_path: Path) -> None:
    answers = read_answers(json_list(tmp_path / "a.json", responses({1: "a", 2: "b"})))
    assert check_ids(answers, ["1", "2"], partial=False) == 0
    assert check_ids(answers, ["1", "2", "3"], partial=True) == 1
    with pytest.raises(UserError, match=r"1 of 3 answers are missing \(ids 3\): give them all, or --partial"):
        check_ids(answers, ["1", "2", "3"], partial=False)
    for partial in (False, True):
        with pytest.raises(UserError, match=r"entry 2 has the unknown id 2 \(1 such of 2\)"):
            check_ids(answers, ["1"], partial=partial)
