"""CHAIR (Rohrbach et al. 2018, https://arxiv.org/abs/1809.02156): how many of the objects that an answer names are not there."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmrlhf.data import read_text
from mmrlhf.errors import UserError
from vlm.benchmarks.answers import (
    Answer,
    check_ids,
    gaps_noted,
    id_of,
    read_answers,
    read_object,
    read_records,
    texts_of,
    unique,
)
from vlm.benchmarks.pooled import Columns, Row, percent, pooled, ratio, totals
from vlm.benchmarks.words import Vocabulary, plain

TRUTH_IDS = ("id", "question_id", "image_id", "image")
TRUTH_FILES = ("objects.jsonl", "objects.json")
SYNONYM_FILES = ("synonyms.json", "synonyms.txt")
NOTES = [
    "objects are told in the answers by word: the nouns of the vocabulary and its synonyms, in singular or plural, by rule"
]


class ChairFigures(NamedTuple):
    """In percent, None where nothing is named (or, for coverage, nothing is there); `length` is the mean count of words."""

    chair_i: float | None
    chair_s: float | None
    coverage: float | None
    length: float | None


def chair(
    mentions: Sequence[Sequence[str]], truths: Sequence[Collection[str]], lengths: Sequence[int] | None = None
) -> ChairFigures:
    """CHAIR of answers by the objects that each names (repeats kept) and those that are there.

    chair_i: mentions of absent objects / mentions; chair_s: answers that name an absent object / answers; coverage: true
    objects named / true objects, pooled. UserError where there is no answer, or the lists differ in length.
    """
    found = totals(rows_of(mentions, truths, lengths), figures)
    if lengths is None:
        found["length"] = None
    return ChairFigures(*(found[name] for name in ChairFigures._fields))


def rows_of(
    mentions: Sequence[Sequence[str]], truths: Sequence[Collection[str]], lengths: Sequence[int] | None = None
) -> list[Row]:
    """Each answer as counts. UserError where there is none, or the lists differ in length."""
    counted = [0] * len(mentions) if lengths is None else lengths
    if not mentions or not len(mentions) == len(truths) == len(counted):
        raise UserError(
            f"CHAIR got {len(mentions)} answers, {len(truths)} truths and {len(counted)} lengths: give as many, at least one"
        )
    return [counts(*entry) for entry in zip(mentions, truths, counted, strict=True)]


def counts(mentions: Sequence[str], truth: Collection[str], length: int) -> Row:
    """One answer as counts."""
    false = sum(name not in truth for name in mentions)
    covered = len(set(mentions) & set(truth))
    counted = {"n": 1, "mentions": len(mentions), "false": false, "wrong": false > 0, "naming": len(mentions) > 0,
               "covered": covered, "there": len(set(truth)), "words": length}  # fmt: skip
    return {name: float(value) for name, value in counted.items()}


def figures(sums: Columns) -> dict[str, np.ndarray]:
    """The figures from sums of `counts`."""
    return {
        "chair_i": percent(sums["false"], sums["mentions"]),
        "chair_s": percent(sums["wrong"], sums["n"]),
        "chair_s_naming": percent(sums["wrong"], sums["naming"]),
        "coverage": percent(sums["covered"], sums["there"]),
        "length": ratio(sums["words"], sums["n"]),
    }


def score(answers: Path, data: Path, *, partial: bool = False, seed: int = 0) -> dict[str, Any]:
    """CHAIR_i, CHAIR_s, coverage and length of a file of {"id", "response"}; `data` as in `read_data`."""
    given, truths, missing, vocabulary = read_all(answers, data, partial)
    found = measured(given, truths, vocabulary, seed)
    found.pop("chair_s_naming"), found.pop("chair_s_naming_ci95")
    return {"n": len(given), "missing": missing} | found | {"notes": gaps_noted(given, missing, len(truths)) + NOTES}


def measured(
    answers: Sequence[Answer], truths: Mapping[str, Collection[str]], vocabulary: Vocabulary, seed: int
) -> dict[str, Any]:
    """The figures of answers that are texts, with intervals; `chair_s_naming` divides by those that name an object."""
    mentions = [vocabulary.mentioned_objects(answer.text) for answer in answers]
    lengths = [len(answer.text.split()) for answer in answers]
    return pooled(rows_of(mentions, [truths[answer.id] for answer in answers], lengths), figures, seed=seed)


def read_all(answers: Path, data: Path, partial: bool) -> tuple[list[Answer], dict[str, set[str]], int, Vocabulary]:
    """(answers, {id: true objects}, how many answers are missing, vocabulary), all checked."""
    truths, vocabulary = read_data(data)
    given = read_answers(answers)
    missing = check_ids(given, truths, partial=partial)
    return given, truths, missing, vocabulary


def read_data(data: Path) -> tuple[dict[str, set[str]], Vocabulary]:
    """({id: true objects}, vocabulary) of a file of {"id", "objects"}, or of a folder with it as objects.jsonl or .json.

    The vocabulary is all true objects and, from synonyms.json ({object: [synonyms]}) or synonyms.txt (an object a line, commas
    before its synonyms) beside the file, what else there is. Objects in the truth may be synonyms too.
    """
    file = data
    if data.is_dir():
        there = [data / name for name in TRUTH_FILES if (data / name).exists()]
        if not there:
            raise UserError(f'{data} has no {" or ".join(TRUTH_FILES)}: give lines of {{"id", "objects": [...]}}')
        file = there[0]
    records = read_records(file, 'JSON lines of {"id", "objects": [...]}')
    rows = [(id_of(row, where, TRUTH_IDS), where, texts_of(row, "objects", where)) for where, row in records]
    objects = unique(rows, "image")
    synonyms = read_synonyms(file.parent)
    known = Vocabulary(synonyms).objects
    others = sorted({name for names in objects.values() for name in names if plain(name) not in known})
    vocabulary = Vocabulary(synonyms | {name: [] for name in others})
    return {key: {vocabulary.objects[plain(name)] for name in names} for key, names in objects.items()}, vocabulary


def read_synonyms(folder: Path) -> dict[str, list[str]]:
    """{object: other words for it} of the synonyms file in a folder; nothing where there is none."""
    file = next((folder / name for name in SYNONYM_FILES if (folder / name).exists()), None)
    if file is None:
        return {}
    if file.suffix == ".json":
        table = read_object(file, "{object: [synonyms]}")
        return {name: texts_of(table, name, str(file)) for name in table}
    lines = [[word.strip() for word in line.split(",")] for line in read_text(file, "synonyms").splitlines()]
    return {line[0]: [word for word in line[1:] if word] for line in lines if line[0]}
