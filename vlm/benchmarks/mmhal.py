"""MMHal-Bench (Sun et al. 2023, https://arxiv.org/abs/2309.14525): answers rated from 0 to 6 by a judge."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmrlhf.errors import UserError
from vlm.benchmarks.answers import (
    TEXTS,
    Answer,
    check_ids,
    gaps_noted,
    id_of,
    listed,
    parsed,
    read_answers,
    read_records,
    unique,
)
from vlm.benchmarks.pooled import Columns, percent, pooled, ratio

TYPES = ("attribute", "adversarial", "comparison", "counting", "relation", "environment", "holistic", "other")
QUESTIONS = 96
BEST, NO_HALLUCINATION = 6, 3
Judge = Callable[[dict[str, Any], str], float]


def score(
    answers: Path,
    data: Path,
    *,
    partial: bool = False,
    seed: int = 0,
    judge: str | None = None,
    ratings: Path | None = None,
) -> dict[str, Any]:
    """Mean rating and hallucination rate (ratings below 3), of all and by type; `data` is the benchmark's file or folder.

    `judge` names a function (question, answer) -> 0 to 6 as module:function or file.py:function; `ratings` is a file of
    {"id", "rating"}, or a list of ratings in the order of the questions. UserError unless exactly one is given.
    """
    if (judge is None) == (ratings is None):
        raise UserError("mmhal needs one of --judge module:function and --ratings FILE: give who rates the answers")
    questions = read_questions(data)
    given = read_answers(answers, texts=(*TEXTS, "model_answer"), order=[*questions])
    missing = check_ids(given, questions, partial=partial)
    if ratings is not None:
        rated = read_ratings(ratings, given, questions)
    else:
        assert judge is not None
        rated = ask(named_judge(judge), judge, given, questions)
    rows = [{"n": 1.0, "rating": value, "false": float(value < NO_HALLUCINATION)} for value in rated]
    kinds = [questions[answer.id]["question_type"] for answer in given]
    by_type = {
        kind: pooled([row for row, own in zip(rows, kinds, strict=True) if own == kind], figures, seed=seed)
        for kind in TYPES
        if kind in kinds
    }
    notes = gaps_noted(given, missing, len(questions))
    if len(questions) != QUESTIONS:
        notes.append(f"the data have {len(questions)} questions, the published benchmark {QUESTIONS}")
    notes.append(f"rated by {judge or ratings}; a rating below {NO_HALLUCINATION} of {BEST} is a hallucination")
    return (
        {"n": len(given), "missing": missing} | pooled(rows, figures, seed=seed) | {"by_type": by_type, "notes": notes}
    )


def figures(sums: Columns) -> dict[str, np.ndarray]:
    """The figures from sums of ratings."""
    return {
        "average_score": ratio(sums["rating"], sums["n"]),
        "hallucination_rate": percent(sums["false"], sums["n"]),
    }


def read_questions(data: Path) -> dict[str, dict[str, Any]]:
    """The questions by id (their order, from 1, where none has one). UserError for a type that is not one of the eight."""
    if data.is_dir():
        files = sorted(data.glob("*.json"))
        if len(files) != 1:
            raise UserError(f"{data} has {len(files)} .json files, allowed is one: give the file of questions itself")
        data = files[0]
    records = read_records(data, "MMHal-Bench's questions, with question, question_type, gt_answer")
    numbered = not any("id" in row or "question_id" in row for _, row in records)
    for where, row in records:
        if row.get("question_type") not in TYPES:
            raise UserError(
                f"{where} has the question_type {row.get('question_type')!r}, allowed are {', '.join(TYPES)}"
            )
    return unique(
        ((str(n) if numbered else id_of(row, where), where, row) for n, (where, row) in enumerate(records, start=1)),
        "question",
    )


def named_judge(reference: str) -> Judge:
    """The function that `module:function` or `file.py:function` names. UserError where there is none."""
    from mmrlhf.rewards.rules.python_function import absolute, load_function

    return load_function(absolute(reference.removeprefix("python:")))


def ask(judge: Judge, name: str, answers: Sequence[Answer], questions: Mapping[str, dict[str, Any]]) -> list[float]:
    """The judge's ratings. UserError where it fails, or says anything but 0 to 6."""
    found = []
    for answer in answers:
        try:
            rating = judge(dict(questions[answer.id]), answer.text)
        except Exception as error:  # the user's code may raise anything
            message = " ".join(str(error).split())[:200]
            raise UserError(
                f"the judge {name} failed on question {answer.id} ({type(error).__name__}: {message}): mend it"
            ) from error
        found.append(checked_rating(rating, f"the judge {name}, asked about question {answer.id},"))
    return found


def checked_rating(value: Any, where: str) -> float:
    """A rating. UserError for anything but a number from 0 to 6."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not 0 <= value <= BEST:
        raise UserError(f"{where} gave {value!r:.40}, allowed is a number from 0 to {BEST}")
    return float(value)


def read_ratings(path: Path, answers: Sequence[Answer], questions: Mapping[str, Any]) -> list[float]:
    """The rating of each answer, of a file of {"id", "rating"} or a list of numbers in the order of the questions."""
    try:
        plain = parsed(path.read_text(encoding="utf-8-sig"), path)
    except (OSError, UserError, UnicodeDecodeError):
        plain = None  # the reader of records says what is wrong
    if isinstance(plain, list) and plain and not isinstance(plain[0], dict):
        if len(plain) != len(questions):
            raise UserError(
                f"{path} has {len(plain)} ratings for {len(questions)} questions: give one each, or with ids"
            )
        rated = {name: (value, str(path)) for name, value in zip(questions, plain, strict=True)}
    else:
        records = read_records(path, 'a JSON list of {"id", "rating"}, or of numbers')
        rated = unique(((id_of(row, where), where, (row.get("rating"), where)) for where, row in records), "rating")
    strange = [name for name in rated if name not in questions]
    if strange:
        raise UserError(f"{path} rates the unknown question {strange[0]}: allowed are {listed(questions)}")
    unrated = [answer.id for answer in answers if answer.id not in rated]
    if unrated:
        raise UserError(f"{path} has no rating of question {unrated[0]} ({len(unrated)} such): rate every answer")
    return [checked_rating(*rated[answer.id]) for answer in answers]
