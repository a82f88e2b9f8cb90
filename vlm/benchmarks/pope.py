"""POPE (Li et al. 2023, https://arxiv.org/abs/2305.10355): is there such an object in the image, yes or no."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmrlhf.config import check, check_seed
from mmrlhf.data import write_jsonl
from mmrlhf.errors import UserError
from vlm.benchmarks.answers import (
    Answer,
    check_ids,
    gaps_noted,
    id_of,
    read_answers,
    read_records,
    texts_of,
    unique,
)
from vlm.benchmarks.pooled import Columns, Row, binary, binary_row, percent, pooled

IDS = ("question_id", "id")  # what mmrlhf vlm generate writes has both
SUBSETS = ("random", "popular", "adversarial")
FIGURES = ("accuracy", "precision", "recall", "f1", "yes_ratio")
LAYOUT = '{"question_id", "image", "text", "label": "yes" or "no"}, a line each'


@dataclass(frozen=True)
class PopeConfig:
    """Yes/no questions about the objects of images whose objects are known."""

    objects: Path
    """JSON lines {"image", "objects": [...]}: all the objects of each image."""
    out: Path
    """File for the questions of all three subsets, in POPE's layout with the subset as "category"."""
    per_image: int = 3
    """Questions with the answer yes, and as many with no, about an image."""
    seed: int = 0
    """Same seed, same questions."""


class Question(NamedTuple):
    """A question of a subset."""

    image: str
    truth: bool


def build(config: PopeConfig) -> None:
    """Write the questions; images with too few objects are left out."""
    check(config, "per_image", lambda value: value >= 1, "1 or more")
    check_seed(config.seed)
    records = read_records(config.objects, 'JSON lines of {"image", "objects": [...]}')
    images = unique(
        ((id_of(row, where, ("image",)), where, texts_of(row, "objects", where)) for where, row in records), "image"
    )
    questions = build_questions(images, per_image=config.per_image, seed=config.seed)
    write_jsonl(questions, config.out)
    asked = len({question["image"] for question in questions})
    print(f"{len(questions)} questions about {asked} of {len(images)} images: {config.out}")


def build_questions(images: Mapping[str, Sequence[str]], *, per_image: int = 3, seed: int = 0) -> list[dict[str, Any]]:
    """Questions of the three subsets about images whose true objects are given, in order, ids from 1.

    Each image has `per_image` true objects, the same in all subsets, and as many absent ones: any (random), the most frequent
    (popular), or those most often beside the objects of this image (adversarial); names decide ties. Images with fewer true
    objects are left out. UserError where none is left, or an image lacks too few of the objects.
    """
    present = {image: sorted(set(objects)) for image, objects in images.items()}
    frequency = Counter(name for objects in present.values() for name in objects)
    together = Counter((a, b) for objects in present.values() for a in objects for b in objects if a != b)
    asked = [image for image, objects in present.items() if len(objects) >= per_image]
    if not asked:
        raise UserError(f"no image has {per_image} objects or more: give more of them, or a smaller --per-image")
    questions: dict[str, list[dict[str, Any]]] = {subset: [] for subset in SUBSETS}
    for image in asked:
        generator = np.random.default_rng(
            [seed, *image.encode()]
        )  # an image's questions do not depend on the others' order
        objects = present[image]
        absent = sorted(set(frequency) - set(objects))
        if len(absent) < per_image:
            raise UserError(
                f"image {image} lacks only {len(absent)} of the objects, {per_image} are asked for: give more kinds of objects, "
                "or a smaller --per-image"
            )
        beside = {name: sum(together[own, name] for own in objects) for name in absent}
        negatives = {
            "random": drawn(absent, per_image, generator),
            "popular": sorted(absent, key=lambda name: (-frequency[name], name))[:per_image],
            "adversarial": sorted(absent, key=lambda name: (-beside[name], -frequency[name], name))[:per_image],
        }
        positives = drawn(objects, per_image, generator)
        for subset in SUBSETS:
            for true, false in zip(positives, negatives[subset], strict=True):
                questions[subset] += [
                    question_row(image, true, "yes", subset),
                    question_row(image, false, "no", subset),
                ]
    rows = [row for subset in SUBSETS for row in questions[subset]]
    return [{"question_id": number} | row for number, row in enumerate(rows, start=1)]


def drawn(names: Sequence[str], count: int, generator: np.random.Generator) -> list[str]:
    """Some of the names, none twice."""
    return [names[place] for place in generator.choice(len(names), size=count, replace=False)]


def question_row(image: str, name: str, label: str, subset: str) -> dict[str, Any]:
    """A line of POPE's layout, without its id."""
    article = "an" if name[0].lower() in "aeiou" else "a"
    return {"image": image, "text": f"Is there {article} {name} in the image?", "label": label, "category": subset}


def score(answers: Path, data: Path, *, partial: bool = False, seed: int = 0) -> dict[str, Any]:
    """The figures of each subset and their means, in percent; `data` is a folder of three question files, or one file.

    Answers name their question by "question_id" (and "category", where subsets number theirs alike), or come in its order.
    `answers` may be a folder of a file a subset as well.
    """
    subsets = read_questions(data)
    given = answers_by_subset(answers, subsets)
    missing, found = 0, {}
    for subset, questions in subsets.items():
        if not given[subset] and not partial:
            raise UserError(f"{answers} has no answers to the {subset} questions: give them, or --partial")
        missing += check_ids(given[subset], questions, partial=partial)
        if given[subset]:
            found[subset] = {"n": len(given[subset])} | subset_figures(given[subset], questions, seed)
    if not found:
        raise UserError(f"{answers} answers none of the questions of {data}: give their question_id")
    wanted = sum(map(len, subsets.values()))
    total: dict[str, Any] = {"n": sum(map(len, given.values())), "missing": missing}
    total |= means(given, subsets, seed)
    notes = ["an answer is no when its first sentence holds No, not or no, else yes; intervals resample images"]
    everything = [answer for part in given.values() for answer in part]
    return total | {"by_subset": found, "notes": gaps_noted(everything, missing, wanted) + notes}


def says_yes(text: str) -> bool:
    """How POPE reads an answer: no when its first sentence holds No, not or no as a word, else yes."""
    words = re.split(r"[^\w'’]+", text.partition(".")[0])
    return not {"No", "not", "no"} & set(words)


def answer_row(answer: Answer, question: Question) -> Row:
    """An answer as counts."""
    return binary_row(says_yes(answer.text), question.truth)


def with_yes_ratio(columns: Columns, prefix: str = "") -> dict[str, np.ndarray]:
    """The figures of a subset from its sums."""
    return binary(columns, prefix) | {"yes_ratio": percent(columns[prefix + "said"], columns[prefix + "n"])}


def subset_figures(answers: Sequence[Answer], questions: Mapping[str, Question], seed: int) -> dict[str, Any]:
    """accuracy, precision, recall, f1 and yes_ratio of one subset, yes being the positive."""
    rows = [answer_row(answer, questions[answer.id]) for answer in answers]
    return pooled(rows, with_yes_ratio, units=[questions[answer.id].image for answer in answers], seed=seed)


def means(
    given: Mapping[str, Sequence[Answer]], subsets: Mapping[str, Mapping[str, Question]], seed: int
) -> dict[str, Any]:
    """The mean of each figure over the subsets that are answered."""
    answered = [subset for subset in subsets if given[subset]]
    nothing = dict.fromkeys((f"{subset}:{name}" for subset in answered for name in binary_row(True, True)), 0.0)
    rows, units = [], []
    for subset in answered:
        for answer in given[subset]:
            question = subsets[subset][answer.id]
            counted = answer_row(answer, question)
            rows.append(nothing | {f"{subset}:{name}": float(value) for name, value in counted.items()})
            units.append(question.image)

    def figures(sums: Columns) -> dict[str, np.ndarray]:
        parts = [with_yes_ratio(sums, f"{subset}:") for subset in answered]
        return {name: np.mean([part[name] for part in parts], axis=0) for name in FIGURES}

    return pooled(rows, figures, units=units, seed=seed)


def read_questions(data: Path) -> dict[str, dict[str, Question]]:
    """{subset: {id: question}} of a folder with a file a subset, or of one file; a file without categories is one subset."""
    if data.is_dir():
        return {subset: read_subset(subset_file(data, subset), None) for subset in SUBSETS}
    records = read_records(data, f"POPE's questions: {LAYOUT}")
    categories = {str(row["category"]) for _, row in records if "category" in row}
    if not categories:
        name = next((subset for subset in SUBSETS if subset in data.stem), "questions")
        return {name: read_subset(data, None)}
    ordered = [subset for subset in SUBSETS if subset in categories] + sorted(categories - {*SUBSETS})
    return {subset: read_subset(data, subset) for subset in ordered}


def subset_file(folder: Path, subset: str) -> Path:
    """The one JSON file in a folder that has the subset's name in its own."""
    found = sorted(file for file in folder.iterdir() if subset in file.name and file.suffix in (".json", ".jsonl"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise UserError(
            f"{folder} has {len(found)} JSON files with '{subset}' in the name ({names}), allowed is one: give a folder with one "
            f"file each for {', '.join(SUBSETS)}, or a single file"
        )
    return found[0]


def read_subset(file: Path, category: str | None) -> dict[str, Question]:
    """The questions of a file by id, of one category or all."""
    records = read_records(file, f"POPE's questions: {LAYOUT}")
    kept = [(where, row) for where, row in records if category is None or str(row.get("category")) == category]
    return unique(((id_of(row, where, IDS), where, question_of(row, where)) for where, row in kept),
                  "question")  # fmt: skip


def question_of(row: Mapping[str, Any], where: str) -> Question:
    """A line of POPE's layout."""
    if row.get("label") not in ("yes", "no"):
        raise UserError(f"{where} has {row.get('label')!r} for label, allowed are yes and no: write {LAYOUT}")
    return Question(str(row.get("image", where)), row["label"] == "yes")


def answers_by_subset(path: Path, subsets: Mapping[str, Mapping[str, Question]]) -> dict[str, list[Answer]]:
    """The answers to each subset's questions. UserError for ids that several subsets have and no category tells apart."""
    if path.is_dir():
        return {s: read_answers(subset_file(path, s), order=[*questions], ids=IDS) for s, questions in subsets.items()}
    places = [(subset, name) for subset, questions in subsets.items() for name in questions]
    answers = read_answers(
        path, order=[f"{subset}:{name}" for subset, name in places], by_category=len(subsets) > 1, ids=IDS
    )
    if not any(name in answer.row for answer in answers for name in IDS):
        owner = {f"{subset}:{name}": (subset, name) for subset, name in places}
    elif len(subsets) > 1 and any("category" in answer.row for answer in answers):
        answers = [answer._replace(id=f"{answer.row.get('category')}:{answer.id}") for answer in answers]
        owner = {f"{subset}:{name}": (subset, name) for subset, name in places}
    else:
        owner = {name: (subset, name) for subset, name in places}
        if len(owner) < len(places):
            raise UserError(
                f'the subsets of the questions have the same ids: write "category": "random" … beside those in {path}, or give '
                "a folder with a file of answers a subset"
            )
    check_ids(answers, owner, partial=True)
    given: dict[str, list[Answer]] = {subset: [] for subset in subsets}
    for answer in answers:
        subset, name = owner[answer.id]
        given[subset].append(answer._replace(id=name))
    return given
