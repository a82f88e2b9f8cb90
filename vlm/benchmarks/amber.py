"""AMBER (Wang et al. 2023, https://arxiv.org/abs/2311.07397): hallucination in descriptions and in yes/no answers."""

import re
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
from vlm.benchmarks.pooled import Columns, Row, binary, binary_row, percent, pooled
from vlm.benchmarks.words import Vocabulary, plain

Relation = Mapping[str, Collection[str]]
# what the annotations say of a question -> the dimension and the type of the paper
TYPES = {
    "generative": ("generative", ""),
    "discriminative-hallucination": ("existence", ""),
    "discriminative-attribute-state": ("attribute", "state"),
    "discriminative-attribute-number": ("attribute", "number"),
    "discriminative-attribute-action": ("attribute", "action"),
    "discriminative-relation": ("relation", ""),
    "relation": ("relation", ""),
}
DIMENSIONS = ("existence", "attribute", "relation")
NOTES = [
    "words: nouns are told by their neighbours and put in the singular by rule, where AMBER's script uses NLTK's tagger and "
    "WordNet's lemmas",
    "words: a noun names an object that it equals or is associated with in relation.json; the word vectors (similarity > 0.8) "
    "of AMBER's script are not used, so that a few synonyms more count as hallucinated here",
    "cover and cog credit every object that a noun names; *_one_credit credit one object a noun and none for safe words, as "
    "the loop of AMBER's script does",
]

NO_YES_NO = {f"asked:{name}": 0.0 for name in binary_row(True, True)}


class Question(NamedTuple):
    """What AMBER knows of a question: for descriptions the objects there and those likely imagined, else yes or no."""

    dimension: str
    type: str
    truth: list[str] | bool
    imagined: list[str]


class Counts(NamedTuple):
    """Of one description. Nouns with their repeats; objects as often as they are annotated."""

    nouns: int
    hallucinated: int
    objects: int
    covered: int
    imaginable: int
    imagined: int
    imagined_nouns: int
    covered_one_credit: int
    imagined_one_credit: int


def score(answers: Path, data: Path, *, partial: bool = False, seed: int = 0) -> dict[str, Any]:
    """The figures of a file of {"id", "response"}, in percent; `data` is AMBER's folder.

    Each dimension (descriptions, existence, attribute, relation) that is begun must be whole, unless `partial`.
    """
    questions = read_questions(data / "annotations.json")
    relation = read_relation(data / "relation.json")
    safe = {plain(line) for line in read_text(data / "safe_words.txt", "AMBER's folder").splitlines() if line.strip()}
    images = images_of(data, "query_generative.json") | images_of(data, "query_discriminative.json")
    given = read_answers(answers)
    begun = {questions[answer.id].dimension for answer in given if answer.id in questions}
    wanted = [name for name, question in questions.items() if question.dimension in begun]
    missing = check_ids(given, wanted, partial=partial, known=questions)
    described = [answer for answer in given if questions[answer.id].dimension == "generative"]
    asked = [answer for answer in given if questions[answer.id].dimension != "generative"]
    found: dict[str, Any] = {"n": len(given), "missing": missing}
    notes = gaps_noted(given, missing, len(wanted))
    if described:
        vocabulary = Vocabulary(relation)
        found["generative_n"] = len(described)
        counts = [counts_of(answer.text, questions[answer.id], vocabulary, relation, safe) for answer in described]
        found |= pooled([generative_row(count) for count in counts], generative, seed=seed)
        notes += NOTES
    if asked:
        found["discriminative_n"] = len(asked)
        found |= discriminative(asked, questions, images, seed)
        notes += discriminative_notes(begun, found["unread"], len(asked), bool(images))
    if described and begun.issuperset(DIMENSIONS):
        rows = [generative_row(count) | NO_YES_NO for count in counts]
        rows += [dict.fromkeys(rows[0], 0.0) | yes_no_row(answer, questions[answer.id], "asked:") for answer in asked]
        units = [images.get(answer.id, answer.id) for answer in (*described, *asked)]
        found |= pooled(rows, amber_score, units=units, seed=seed)
    return found | {"notes": notes}


def counts_of(
    text: str, question: Question, vocabulary: Vocabulary, relation: Relation, safe: Collection[str]
) -> Counts:
    """What a description says: a noun is hallucinated when it names no true object and is no safe word."""
    assert not isinstance(question.truth, bool)
    nouns = vocabulary.mentions(text)
    there = {word for name in question.truth for word in (name, *relation.get(name, ()))}
    false = [noun for noun in nouns if noun not in safe and noun not in there]
    likely = {word for name in question.imagined for word in (name, *relation.get(name, ()))}
    true = [noun for noun in nouns if noun in there and noun not in safe]
    return Counts(
        nouns=len(nouns), hallucinated=len(false),
        objects=len(question.truth), covered=named(nouns, question.truth, relation),
        imaginable=len(question.imagined), imagined=named(false, question.imagined, relation),
        imagined_nouns=sum(noun in likely for noun in false),
        covered_one_credit=named_one_credit(true, question.truth, relation),
        imagined_one_credit=named_one_credit(false, question.imagined, relation),
    )  # fmt: skip


def named(nouns: Collection[str], objects: Sequence[str], relation: Relation) -> int:
    """How many of the objects some noun equals or is associated with."""
    said = set(nouns)
    return sum(name in said or not said.isdisjoint(relation.get(name, ())) for name in objects)


def named_one_credit(nouns: Sequence[str], objects: Sequence[str], relation: Relation) -> int:
    """How many objects are named when a noun names one only: the first that it is associated with, else the first it equals."""
    credited = set()
    for noun in nouns:
        associated = (place for place, name in enumerate(objects) if noun in relation.get(name, ()))
        equal = (place for place, name in enumerate(objects) if noun == name)
        credited.add(next(associated, next(equal, None)))
    return len(credited - {None})


def generative_row(count: Counts) -> Row:
    """A description as counts, and as the shares that the paper averages."""
    shares = {
        "chair_share": count.hallucinated / max(count.nouns, 1),
        "cog_share": count.imagined_nouns / max(count.nouns, 1),
        "cover_share": count.covered / max(count.objects, 1),
    }
    flags = {"answers": 1, "hal": count.hallucinated > 0, "naming": count.nouns > 0}
    return {name: float(value) for name, value in {**count._asdict(), **shares, **flags}.items()}


def generative(sums: Columns) -> dict[str, np.ndarray]:
    """chair, cover, hal, cog pooled, and their means over answers as in the paper (those that name no object left out)."""
    return {
        "chair": percent(sums["hallucinated"], sums["nouns"]),
        "cover": percent(sums["covered"], sums["objects"]),
        "hal": percent(sums["hal"], sums["answers"]),
        "cog": percent(sums["imagined"], sums["imaginable"]),
        "chair_per_answer": percent(sums["chair_share"], sums["naming"]),
        "cover_per_answer": percent(sums["cover_share"], sums["answers"]),
        "cog_per_answer": percent(sums["cog_share"], sums["naming"]),
        "cover_one_credit": percent(sums["covered_one_credit"], sums["objects"]),
        "cog_one_credit": percent(sums["imagined_one_credit"], sums["imaginable"]),
    }


def amber_score(sums: Columns) -> dict[str, np.ndarray]:
    """½(100 − CHAIR + F1), from sums of `generative_row` and, after "asked:", of `yes_no_row`."""
    return {"score": (100 - generative(sums)["chair"] + binary(sums, "asked:")["f1"]) / 2}


def yes_no_row(answer: Answer, question: Question, prefix: str = "") -> Row:
    """A yes/no answer as counts, *no* being the positive."""
    said = yes_or_no(answer.text)
    row = binary_row(said is False, question.truth is False, said is question.truth)
    return {prefix + name: value for name, value in row.items()}


def discriminative(
    answers: Sequence[Answer], questions: Mapping[str, Question], images: Mapping[str, str], seed: int
) -> dict[str, Any]:
    """accuracy, precision, recall, f1 with *no* as the positive, of all and by type; answers about an image stay together."""
    rows: dict[str, list[Row]] = {"": []}
    units: dict[str, list[str]] = {"": []}
    for answer in answers:
        question = questions[answer.id]
        row = yes_no_row(answer, question)
        for part in {"", question.dimension, question.type}:
            rows.setdefault(part, []).append(row)
            units.setdefault(part, []).append(images.get(answer.id, answer.id))
    scored = {part: pooled(rows[part], binary, units=units[part], seed=seed) for part in rows}
    by_type = {part: {"n": len(rows[part])} | figures for part, figures in sorted(scored.items()) if part}
    unread = sum(yes_or_no(answer.text) is None for answer in answers)
    return scored[""] | {"unread": unread, "by_type": by_type}


def yes_or_no(text: str) -> bool | None:
    """Yes or no, by the first word of an answer; None where it is neither."""
    first = re.match(r"\W*(yes|no)\b", text.lower())
    return None if first is None else first[1] == "yes"


def discriminative_notes(begun: Collection[str], unread: int, asked: int, by_image: bool) -> list[str]:
    """Remarks on the yes/no part."""
    units = "images" if by_image else "answers, as AMBER's queries, which name the images, are not in its folder"
    notes = [f"yes/no: an answer is read by its first word, positives are No; intervals resample {units}"]
    if unread:
        notes.append(f"yes/no: {unread} of {asked} answers begin with neither Yes nor No and count as wrong")
    absent = [name for name in DIMENSIONS if name not in begun]
    if absent:
        notes.append(f"yes/no: nothing of {', '.join(absent)} is answered: accuracy … f1 are of the rest")
    return notes


def read_questions(path: Path) -> dict[str, Question]:
    """AMBER's annotations by id. UserError for what does not look so."""
    records = read_records(path, "AMBER's folder, with its annotations.json")
    return unique(((id_of(row, where), where, question_of(row, where)) for where, row in records), "question")


def question_of(row: Mapping[str, Any], where: str) -> Question:
    """An entry of annotations.json."""
    if row.get("type") not in TYPES:
        raise UserError(f"{where} has the type {row.get('type')!r}, allowed are {', '.join(TYPES)}")
    dimension, kind = TYPES[row["type"]]
    if dimension == "generative":
        truth, imagined = ([plain(word) for word in texts_of(row, name, where)] for name in ("truth", "hallu"))
        return Question(dimension, kind, truth, imagined)
    if row.get("truth") not in ("yes", "no"):
        raise UserError(f"{where} has {row.get('truth')!r} for truth, allowed are yes and no")
    return Question(dimension, kind, row["truth"] == "yes", [])


def read_relation(path: Path) -> dict[str, list[str]]:
    """Objects and the words associated with each, in lower case."""
    table = read_object(path, "AMBER's folder, with its relation.json")
    return {plain(name): [plain(word) for word in texts_of(table, name, str(path))] for name in table}


def images_of(data: Path, name: str) -> dict[str, str]:
    """Which image a question is about, by a file of AMBER's queries in its folder or in query/, where its authors keep
    them; nothing where it is not there."""
    path = next((file for file in (data / name, data / "query" / name) if file.exists()), None)
    if path is None:
        return {}
    records = read_records(path, "AMBER's folder, with its queries")
    return {id_of(row, where): str(row.get("image", where)) for where, row in records}
