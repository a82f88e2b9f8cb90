"""Argilla's records as `dataset.records.to_json` writes them: fields, metadata, and responses and suggestions a question.

A question is named as the criterion; label, rating, ranking and span questions are read. A response knows its user by a UUID,
and a question's name is a slug: what either stands for is in the record's metadata `names`, as "UUID=name".
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

from mmrlhf.data import write_text
from mmrlhf.datasets.asked import (
    AI,
    OPTIONAL,
    Said,
    criterion_of,
    grouped,
    judged,
    of_model,
    question_name,
    refuse_unsuited,
    said_of,
)
from mmrlhf.datasets.judgements import Annotation
from mmrlhf.datasets.records import records
from mmrlhf.datasets.rows import BadRow, Row, Rows, is_number, rows_of
from mmrlhf.images import content_hash
from mmrlhf.points import PointedImage
from mmrlhf.segments import SegmentedItem

NAME = "Argilla"
SLUG = re.compile(r"[a-z0-9][a-z0-9_-]*")  # what Argilla allows as the name of a question
NAMES = "names"
PARTS = ("start", "end", "label")


def read(source: Path, images: Path | None) -> Rows:
    """What every response and suggestion says; `images` is where the fields' files are, by default the folder of `source`."""

    def row(where: str, record: dict[str, Any]) -> list[Row]:
        return [judged(said_in(**record), images or source.parent, where)]

    return rows_of(answers(source), row)


def answers(source: Path) -> Iterator[tuple[str, dict[str, Any] | BadRow]]:
    """({columns, question, annotator, value}: what one response or suggestion says) for all of a file, with where it is."""
    for where, record in records(source, ("fields",)):
        if isinstance(record, BadRow):
            yield where, record
            continue
        parts = {name: record.get(name) or {} for name in ("fields", "metadata", "responses", "suggestions")}
        if wrong := next((name for name, value in parts.items() if not isinstance(value, dict)), None):
            yield where, BadRow(f"{wrong} got {record[wrong]!r:.80}, allowed is an object")
            continue
        if not parts["responses"] and not parts["suggestions"]:
            yield where, BadRow("has no response: leave such records out, or answer them")
        yield from answers_to(where, **parts)


def answers_to(
    where: str, fields: dict[str, Any], metadata: dict[str, Any], responses: dict[str, Any], suggestions: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Any] | BadRow]]:
    """The same of one record."""
    columns = {name: metadata[name] for name in OPTIONAL if name in metadata} | fields
    names = dict(entry.split("=", 1) for entry in metadata.get(NAMES) or [] if isinstance(entry, str) and "=" in entry)
    for question, given in responses.items():
        for number, response in enumerate(given if isinstance(given, list) else [given], start=1):
            here = f"{where} response {number} to '{question}'"
            if not isinstance(response, dict) or "value" not in response:
                yield here, BadRow(f"got {response!r:.80}, allowed is an object with value and user_id")
                continue
            user = str(response.get("user_id") or "")
            about = {"question": names.get(question, question), "annotator": names.get(user, user)}
            yield here, {"columns": columns, **about, "value": response["value"]}
    for question, suggestion in suggestions.items():
        here = f"{where} suggestion to '{question}'"
        if not isinstance(suggestion, dict) or "value" not in suggestion:
            yield here, BadRow(f"got {suggestion!r:.80}, allowed is an object with a value")
            continue
        about = {"question": names.get(question, question), "annotator": of_model(suggestion.get("agent"))}
        yield here, {"columns": columns, **about, "value": suggestion["value"]}


def said_in(columns: dict[str, Any], question: str, annotator: str, value: Any) -> Said:
    """An answer; of which kind, its value says."""
    criterion = criterion_of(question)
    if value in ("safe", "unsafe"):
        return Said(columns, "safety", criterion, annotator, value)
    if isinstance(value, str):
        return Said(columns, "pair", criterion, annotator, value)
    if is_number(value):
        return Said(columns, "rating", criterion, annotator, value)
    if not isinstance(value, list):
        raise BadRow(f"value got {value!r:.80}, allowed is a label, a level, a ranking or a list of spans")
    if not value or (isinstance(value[0], dict) and "start" in value[0]):
        return Said(columns, "spans", "", annotator, [span_of(span) for span in value])
    return Said(columns, "ranking", criterion, annotator, dict(ranked(value)))


def ranked(value: list[Any]) -> Iterator[tuple[str, float]]:
    """(field, rank) of a ranking: names in their order, or objects with a value and mostly a rank, equal for ties."""
    for place, entry in enumerate(value, start=1):
        name = entry.get("value") if isinstance(entry, dict) else entry
        rank = entry.get("rank") if isinstance(entry, dict) else place
        rank = place if rank is None else rank
        if not isinstance(name, str) or not is_number(rank):
            raise BadRow(f"the ranking got {entry!r:.80}, allowed is a field's name, with a rank or at its place")
        yield name, float(rank)


def span_of(span: Any) -> dict[str, Any]:
    """A span as SEGMENTS.jsonl has it."""
    if not isinstance(span, dict) or not all(name in span for name in PARTS):
        raise BadRow(f"a span got {span!r:.80}, allowed is an object with {', '.join(PARTS)}")
    return {"start": span["start"], "end": span["end"], "tag": span["label"]}


def suited(judgement: Annotation) -> Sequence[Annotation]:
    """What has an answer that Argilla's questions can take; spans have no place for a correction, and points none at all."""
    refuse_unsuited(judgement, NAME)
    if isinstance(judgement, PointedImage):
        raise BadRow("points at places in an image, for which Argilla has no question (Label Studio has one)")
    if isinstance(judgement, SegmentedItem) and any(
        getattr(s, "correction", None) is not None for s in judgement.segments
    ):
        raise BadRow("has a correction, for which Argilla's spans have no place (Label Studio has one)")
    return [judgement]


def write(judgements: Sequence[Annotation], file: Path) -> None:
    """Write records that `dataset.records.from_json` takes, one for what several people were asked.

    A person answers a record once, and a question has one suggestion: further ones are in a record of the same fields.
    """
    found = []
    said = (said_of(judgement, file) for judgement in judgements)
    for columns, people in grouped(said, lambda each: AI if each.annotator.startswith(AI) else each.annotator):
        for number in range(max(map(len, people))):
            sheets = [sheets[number] for sheets in people if len(sheets) > number]
            found.append(record_of(columns, [each for sheet in sheets for each in sheet], number))
    write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", file)


def record_of(columns: Mapping[str, Any], said: Sequence[Said], number: int) -> dict[str, Any]:
    """A record and what was said of it."""
    names: dict[str, str] = {}
    responses: dict[str, list[dict[str, Any]]] = {}
    suggestions: dict[str, dict[str, Any]] = {}
    for each in said:
        question = alias(question_name(each), names)
        if each.annotator.startswith(AI):
            agent = each.annotator.removeprefix(AI)
            suggestions[question] = {"value": value_of(each), "score": None, "agent": agent}
        else:
            answer = {"value": value_of(each), "user_id": user_id(each.annotator, names)}
            responses.setdefault(question, []).append(answer)
    fields = {name: value for name, value in columns.items() if name not in OPTIONAL}
    metadata: dict[str, Any] = {
        name: int(value) if isinstance(value, bool) else value for name, value in columns.items() if name in OPTIONAL
    }
    if names:
        metadata[NAMES] = [f"{short}={name}" for short, name in names.items()]
    key = content_hash(json.dumps([fields, metadata, number]).encode())
    about = {"suggestions": suggestions, "responses": responses, "vectors": {}}
    return {"id": key, "fields": fields, "metadata": metadata, **about}


def value_of(said: Said) -> Any:
    """An answer as a question of its kind takes it."""
    if said.kind == "ranking":
        in_order = sorted(said.value.items(), key=lambda each: each[1])
        return [{"value": name, "rank": int(rank) if rank.is_integer() else rank} for name, rank in in_order]
    if said.kind == "spans":
        return [{"start": span["start"], "end": span["end"], "label": span["tag"]} for span in said.value]
    return said.value


def alias(name: str, names: dict[str, str]) -> str:
    """A name that Argilla allows for a question; `names` learns what it stands for."""
    if SLUG.fullmatch(name):
        return name
    words = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40]
    short = f"{words or 'question'}-{content_hash(name.encode('utf-8', 'surrogatepass'))[:6]}"
    names[short] = name
    return short


def user_id(annotator: str, names: dict[str, str]) -> str:
    """The UUID that is an annotator's name, or one that stands for it; `names` learns what for."""
    try:
        if str(UUID(annotator)) == annotator:
            return annotator
    except ValueError:
        pass
    found = str(uuid5(NAMESPACE_URL, f"mmrlhf:{annotator}"))
    names[found] = annotator
    return found
