"""`--gold`: questions whose answer is known, from a file whose rows say it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from apps.rate_items import KINDS, Items, Mode, Reader, read_rows
from mmrlhf.data import label_of
from mmrlhf.errors import UserError
from mmrlhf.store import Task
from mmrlhf.store.checks import SIDES, Check, is_number

COLUMNS = {"pair": {"image_0", "image_1"}, "rank": {"images"}, "likert": {"image"}, "criteria": {"image"}}
LEVELS = 5


def read_gold(source: Path, mode: Mode, criteria: tuple[str, ...] = ()) -> tuple[Items, list[Check]]:
    """(items, checks) of a JSONL file; UserError names the row that says no answer.

    pair: rows of a PAIRS.jsonl with label_0 and label_1, or "expected": left, right (of the screen) or tie. likert: rows of an
    ITEMS.jsonl with "score", or "scores" by the criteria. rank: "images" and "ranks". "tolerance" is how far levels may be off,
    or how many two images the wrong way round.
    """
    if mode not in COLUMNS:
        raise UserError(f"--gold goes with --mode pair, rank or likert, got {mode}: leave one of the two out")
    if not source.is_file():
        raise UserError(f"no check questions at {source}: give a JSONL file")
    reader, checks = Reader(), dict[str, Check]()
    for where, folder, row in read_rows(source, [COLUMNS[mode]]):
        prompt = row.get("prompt", "")
        if not isinstance(prompt, str):
            raise UserError(f"{where}: the prompt is {prompt!r}: give a text")
        items = tuple(reader.add(where, folder, name, prompt) for name in names_of(row, mode, where))
        if len(set(items)) < len(items):
            raise UserError(f"{where} shows one picture twice: give different pictures")
        expected = EXPECTED[mode](row, where, items, criteria)
        tolerance = row.get("tolerance", 0)
        if not is_number(tolerance) or tolerance < 0:  # type: ignore[operator]
            raise UserError(f"{where}: tolerance got {tolerance!r:.40}, allowed is a number of 0 or more")
        task = Task(prompt, items, KINDS[mode], criteria=criteria if mode == "criteria" else (), why="check")
        if task.key in checks:
            raise UserError(f"{where} asks what a line before it asks: leave one of them out")
        checks[task.key] = Check(task, expected | ({"tolerance": tolerance} if tolerance else {}))
    if not checks:
        raise UserError(f"no check questions in {source}: write one a line")
    return reader.items, list(checks.values())


def names_of(row: dict[str, Any], mode: Mode, where: str) -> list[object]:
    """The files of the pictures that a row asks about."""
    if mode != "rank":
        return [row["image_0"], row["image_1"]] if mode == "pair" else [row["image"]]
    if not isinstance(row["images"], list) or len(row["images"]) < 2:
        raise UserError(f"{where}: images got {row['images']!r:.80}, allowed is a list of two files or more")
    return list(row["images"])


def pair_answer(row: dict[str, Any], where: str, items: tuple[str, ...], _: tuple[str, ...]) -> dict[str, Any]:
    """The better picture, a side of the screen, or a tie."""
    side = row.get("expected")
    if side in SIDES:
        return {"side": side}
    if side == "tie":
        return {"tie": True}
    if side is not None or not {"label_0", "label_1"} <= set(row):
        got = "no answer" if side is None else f"the answer {side!r:.40}"
        raise UserError(f'{where} has {got}: write label_0 and label_1, or "expected": left, right or tie')
    first, second = (label_of(row, name, where) for name in ("label_0", "label_1"))
    if abs(first + second - 1) > 1e-6:
        raise UserError(f"{where}: label_0 {first:g} and label_1 {second:g} sum to {first + second:g}, allowed is 1")
    return {"tie": True} if first == second else {"item": items[0 if first > second else 1]}


def score_answer(row: dict[str, Any], where: str, _: tuple[str, ...], __: tuple[str, ...]) -> dict[str, Any]:
    """A level of the one picture."""
    return {"score": level_of(row.get("score"), where, "score")}


def scores_answer(row: dict[str, Any], where: str, _: tuple[str, ...], criteria: tuple[str, ...]) -> dict[str, Any]:
    """A level by each criterion."""
    scores = row.get("scores")
    if not isinstance(scores, dict) or set(scores) != set(criteria):
        raise UserError(f"{where}: scores got {scores!r:.80}, allowed is a level for each of {', '.join(criteria)}")
    return {"scores": {name: level_of(scores[name], where, name) for name in criteria}}


def level_of(value: object, where: str, name: str) -> Any:
    """A place on the app's scale."""
    if not is_number(value) or not 1 <= value <= LEVELS:  # type: ignore[operator]
        raise UserError(f"{where}: {name} got {value!r:.40}, allowed is a number from 1 to {LEVELS}")
    return value


def rank_answer(row: dict[str, Any], where: str, items: tuple[str, ...], _: tuple[str, ...]) -> dict[str, Any]:
    """A rank for each picture, 1 the best; those of equal rank may come in any order."""
    ranks = row.get("ranks")
    if not isinstance(ranks, list) or len(ranks) != len(items) or not all(map(is_number, ranks)):
        raise UserError(
            f"{where}: ranks got {ranks!r:.80}, allowed is a number for each of the {len(items)} images, 1 the best"
        )
    return {"ranks": dict(zip(items, ranks, strict=True))}


EXPECTED: dict[str, Callable[[dict[str, Any], str, tuple[str, ...], tuple[str, ...]], dict[str, Any]]] = {
    "pair": pair_answer,
    "likert": score_answer,
    "criteria": scores_answer,
    "rank": rank_answer,
}
