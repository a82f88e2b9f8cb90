import json
from pathlib import Path
from typing import Any

import pytest

from mmrlhf.errors import UserError
from tests.vlm.benchmarks.files import json_list, responses
from vlm.benchmarks import mmhal

JUDGE = """
def length(question, answer):
    return len(answer) - len(question["gt_answer"])

class Judge:
    def __call__(self, question, answer):
        return 6.0

def failing(question, answer):
    raise KeyError("no key")
"""


def questions(path: Path, count: int = 96) -> Path:
    rows = [{"question_type": mmhal.TYPES[n % 8], "question": "?", "gt_answer": "a"} for n in range(count)]
    return json_list(path / "response_template.json", rows)


def answers(path: Path, count: int = 96) -> Path:
    """In order, of 1 to 7 letters."""
    return json_list(path / "answers.jsonl", [{"model_answer": "x" * (n % 7 + 1)} for n in range(count)])


def score(tmp_path: Path, **options: Any) -> dict[str, Any]:
    return mmhal.score(answers(tmp_path), questions(tmp_path), **options)


def test_a_judge_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "judge.py").write_text(JUDGE)
    found = score(tmp_path, judge=f"{tmp_path}/judge.py:length")
    expected = [n % 7 for n in range(96)]
    assert found["average_score"] == pytest.approx(sum(expected) / 96, abs=1e-5)
    assert found["hallucination_rate"] == pytest.approx(100 * sum(value < 3 for value in expected) / 96, abs=1e-5)
    assert [*found["by_type"]] == [*mmhal.TYPES]
    assert found["by_type"]["comparison"]["average_score"] == pytest.approx(sum(expected[2::8]) / 12, abs=1e-5)
    assert found["n"] == 96 and len(found["average_score_ci95"]) == 2 and len(found["notes"]) == 1
    assert mmhal.score(answers(tmp_path), tmp_path, judge=f"{tmp_path}/judge.py:Judge")["average_score"] == 6
    assert mmhal.score(answers(tmp_path), tmp_path, judge=f"{tmp_path}/judge.py:Judge")["hallucination_rate"] == 0


def test_ratings_in_a_file(tmp_path: Path) -> None:
    """3 is no hallucination, 2 is one; a list is in order, rows have ids."""
    plain = json_list(tmp_path / "ratings", [3] * 72 + [2] * 24)
    found = score(tmp_path, ratings=plain)
    assert found["average_score"] == 2.75 and found["hallucination_rate"] == 25
    rows = json_list(tmp_path / "rated", [{"id": n, "rating": 3 if n <= 72 else 2} for n in range(96, 0, -1)])
    again = score(tmp_path, ratings=rows)
    assert {**again, "notes": 0} == {**found, "notes": 0}


def test_partial_answers_and_smaller_data(tmp_path: Path) -> None:
    ratings = json_list(tmp_path / "ratings", [{"id": n, "rating": 6} for n in range(1, 5)])
    some = json_list(tmp_path / "some.json", responses({2: "x"}))
    with pytest.raises(UserError, match="3 of 4 answers are missing"):
        mmhal.score(some, questions(tmp_path, 4), ratings=ratings)
    found = mmhal.score(some, tmp_path / "response_template.json", ratings=ratings, partial=True)
    assert found["missing"] == 3 and [*found["by_type"]] == ["adversarial"]
    assert "the data have 4 questions, the published benchmark 96" in found["notes"]


@pytest.mark.parametrize(
    ("rated", "message"),
    [
        ([7] * 96, "gave 7, allowed is a number from 0 to 6"),
        ([True] * 96, "gave True, allowed is a number from 0 to 6"),
        ([1], "has 1 ratings for 96 questions"),
        ([{"id": 1, "rating": 3}], r"has no rating of question 2 \(95 such\)"),
        ([{"id": 1, "rating": 3}] * 2, "has the id 1 a second time"),
        ([{"id": 97, "rating": 3}], "rates the unknown question 97"),
        ([], "is empty: give a JSON list"),
    ],
)
def test_bad_ratings(tmp_path: Path, rated: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        score(tmp_path, ratings=json_list(tmp_path / "ratings", rated))


def test_bad_judges(tmp_path: Path) -> None:
    (tmp_path / "judge.py").write_text(JUDGE)
    for options in ({}, {"judge": "a:b", "ratings": tmp_path}):
        with pytest.raises(UserError, match="mmhal needs one of --judge module:function and --ratings FILE"):
            score(tmp_path, **options)
    with pytest.raises(UserError, match=r"the judge .* failed on question 1 \(KeyError: 'no key'\): mend it"):
        score(tmp_path, judge=f"{tmp_path}/judge.py:failing")
    with pytest.raises(UserError, match="has no 'none'"):
        score(tmp_path, judge=f"{tmp_path}/judge.py:none")
    with pytest.raises(UserError, match="asked about question 1, gave 'x', allowed is a number from 0 to 6"):
        score(tmp_path, judge="tests.vlm.benchmarks.test_mmhal:echo")


def echo(question: dict[str, Any], answer: str) -> str:
    return answer


def test_bad_questions(tmp_path: Path) -> None:
    file = json_list(tmp_path / "q.json", [{"question_type": "odd"}])
    with pytest.raises(UserError, match="has the question_type 'odd', allowed are attribute, adversarial"):
        mmhal.score(answers(tmp_path), file, judge="a:b")
    json_list(tmp_path / "p.json", [])
    with pytest.raises(UserError, match="has 2 .json files, allowed is one"):
        mmhal.score(answers(tmp_path), tmp_path, judge="a:b")
    assert json.loads(file.read_text())
