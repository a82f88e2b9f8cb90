"""Files of answers, questions and truths: a JSON list or an object a line, and every fault in one line."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from mmrlhf.data import read_text
from mmrlhf.errors import UserError

TEXTS = ("response", "answer", "text")
IDS = ("id", "question_id")
Kept = TypeVar("Kept")


class Answer(NamedTuple):
    """What a model said to the question `id`; `row` is the whole of what the file says of it."""

    id: str
    text: str
    where: str
    row: Mapping[str, Any]


def read_records(path: Path, wanted: str) -> list[tuple[str, dict[str, Any]]]:
    """(where, object) for each of a JSON list, or of an object a line. UserError for anything else, or none."""
    text = read_text(path, wanted)
    if text.lstrip().startswith("["):
        entries = [(f"{path} entry {number}", entry) for number, entry in enumerate(parsed(text, path), start=1)]
    else:
        lines = [(f"{path} row {number}", line) for number, line in enumerate(text.split("\n"), start=1)]
        entries = [(where, parsed(line, where)) for where, line in lines if line.strip()]
    if not entries:
        raise UserError(f"{path} is empty: give {wanted}")
    for where, entry in entries:
        if not isinstance(entry, dict):
            raise UserError(f"{where} is a {type(entry).__name__}, allowed is an object: give {wanted}")
    return entries


def parsed(text: str, where: object) -> Any:
    """JSON. UserError where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON ({error}): give a JSON list, or an object a line") from error


def read_object(path: Path, wanted: str) -> dict[str, Any]:
    """A file that is one JSON object. UserError where it is not."""
    found = parsed(read_text(path, wanted), path)
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a {type(found).__name__}, not an object: give {wanted}")
    return found


def read_answers(
    path: Path,
    *,
    texts: Sequence[str] = TEXTS,
    order: Sequence[str] = (),
    by_category: bool = False,
    ids: Sequence[str] = IDS,
) -> list[Answer]:
    """The answers of a file; where none has an id, they take those of `order`, and numbers after its end.

    A row's id is the first of the columns `ids` that it has.

    UserError for an id that comes twice (unless a "category" tells the two apart and `by_category`), and for an answer without
    id or text.
    """
    records = read_records(path, 'a JSON list, or an object a line, of {"id", "response"}')
    numbered = len(order) > 0 and not any(name in row for _, row in records for name in ids)
    names = [*order, *(f"number {number}" for number in range(len(order) + 1, len(records) + 1))]
    answers = [
        Answer(names[place] if numbered else id_of(row, where, ids), text_of(row, where, texts), where, row)
        for place, (where, row) in enumerate(records)
    ]
    seen: dict[tuple[str, str], str] = {}
    for answer in answers:
        key = (answer.id, str(answer.row.get("category")) if by_category else "")
        if key in seen:
            raise UserError(f"{answer.where} has the id {answer.id} of {seen[key]}: leave one answer a question")
        seen[key] = answer.where
    return answers


def id_of(row: Mapping[str, Any], where: str, names: Sequence[str] = IDS) -> str:
    """The id of a row as text, so that 7 and "7" are one."""
    value = next((row[name] for name in names if name in row), None)
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        got = "no id" if value is None else f"the id {value!r}"
        raise UserError(f'{where} has {got}: write {{"{names[0]}": whole number or text, …}}')
    return str(value)


def text_of(row: Mapping[str, Any], where: str, names: Sequence[str] = TEXTS) -> str:
    """The answer of a row, maybe empty, as a model's may be. UserError where it is missing or no text."""
    value = next((row[name] for name in names if name in row), None)
    if not isinstance(value, str):
        got = "no response text" if value is None else f"{value!r:.40} for a response"
        raise UserError(
            f'{where} has {got}: write "{names[0]}": "what the model said", or leave it out and give --partial'
        )
    return value


def texts_of(row: Mapping[str, Any], name: str, where: str) -> list[str]:
    """A list of texts. UserError for anything else."""
    value = row.get(name)
    if not isinstance(value, list) or not all(isinstance(entry, str) and entry.strip() for entry in value):
        raise UserError(f'{where} has {value!r:.60} for {name}, allowed is a list of texts: write "{name}": ["dog", …]')
    return value


def unique(entries: Iterable[tuple[str, str, Kept]], what: str) -> dict[str, Kept]:
    """{id: value} of (id, where, value). UserError for an id that comes twice."""
    found: dict[str, Kept] = {}
    for name, where, value in entries:
        if name in found:
            raise UserError(f"{where} has the id {name} a second time: give each {what} once")
        found[name] = value
    return found


def check_ids(answers: Sequence[Answer], wanted: Collection[str], *, partial: bool, known: Collection[str] = ()) -> int:
    """How many of `wanted` have no answer. UserError for an answer to no question (`known`, else `wanted`), and for missing
    answers unless `partial`."""
    allowed = known or wanted
    strange = [answer for answer in answers if answer.id not in allowed]
    if strange:
        raise UserError(
            f"{strange[0].where} has the unknown id {strange[0].id} ({len(strange)} such of {len(answers)}): allowed are those "
            f"of the data, {listed(allowed)}"
        )
    given = {answer.id for answer in answers}
    missing = [name for name in wanted if name not in given]
    if missing and not partial:
        raise UserError(
            f"{len(missing)} of {len(wanted)} answers are missing (ids {listed(missing)}): give them all, or --partial for the "
            "figures of those there"
        )
    return len(missing)


def listed(names: Collection[str], most: int = 5) -> str:
    """The first few of some names."""
    first = [*names][:most]
    return ", ".join(first) + (" …" if len(names) > most else "")


def gaps_noted(answers: Sequence[Answer], missing: int, wanted: int) -> list[str]:
    """The remarks on a partial file, and on answers that say nothing."""
    notes = [f"{missing} of {wanted} answers are missing: figures are of those there"] if missing else []
    if blank := sum(not answer.text.strip() for answer in answers):
        notes.append(f"{blank} of {len(answers)} answers are empty, and count as answers that name nothing")
    return notes
