"""Label Studio's export JSON: tasks with `data` and `annotations`, and the predictions of models beside them.

An object tag is named as its column (<Image name="image_0" value="$image_0"/>), a control tag as the criterion. Pairwise,
choices, rating, ranker, labels (with a textarea for the correction of each) and keypointlabels are read. docs/exchange.md has
configurations.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mmrlhf.data import write_text
from mmrlhf.datasets.asked import (
    AI,
    LOCAL,
    POINTS,
    SPANS,
    TIE,
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

NAME = "Label Studio"
# what a choice between two says -> the place of the preferred one; None is a tie
CHOICES = {
    "left": 0, "right": 1, "image_0": 0, "image_1": 1, "answer_0": 0, "answer_1": 1, "first": 0, "second": 1,
    "tie": None, "both": None, "equal": None, "same": None, "neither": None,
}  # fmt: skip
SIDES = ("left", "right")
KEYPOINT = "keypointlabels"
DIGITS = 12  # of a point's place that a percentage keeps
DOT = 1.0  # percent of the image: how large a point is drawn


def read(source: Path, images: Path | None) -> Rows:
    """What every annotation and prediction says; `images` is where the tasks' files are, by default the folder of `source`."""

    def row(where: str, record: dict[str, Any]) -> list[Row]:
        return [judged(said_in(record), images or source.parent, where)]

    return rows_of(answers(source), row)


def answers(source: Path) -> Iterator[tuple[str, dict[str, Any] | BadRow]]:
    """({data, annotator, result}: what one annotation says with one control) for all of a file, with where it is."""
    for where, task in records(source, ("data",)):
        if isinstance(task, BadRow):
            yield where, task
        elif not isinstance(task["data"], dict):
            yield where, BadRow(f"data got {task['data']!r:.80}, allowed is an object")
        else:
            yield from answers_to(where, task)


def answers_to(where: str, task: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any] | BadRow]]:
    """The same of one task; skipped annotations say nothing."""
    found = False
    for kind in ("annotations", "predictions"):
        for number, sheet in enumerate(task.get(kind) or [], start=1):
            if not isinstance(sheet, dict) or sheet.get("was_cancelled"):
                continue  # an export may list predictions by their number only
            found = True
            here = f"{where} {kind.removesuffix('s')} {number}"
            results = sheet.get("result")
            if not isinstance(results, list) or not all(isinstance(result, dict) for result in results):
                yield here, BadRow(f"result got {results!r:.80}, allowed is a list of objects")
                continue
            who = of_model(sheet.get("model_version")) if kind == "predictions" else annotator_of(sheet)
            for part in parts(results):
                yield here, {"data": task["data"], "annotator": who, "results": part}
    if not found:
        yield where, BadRow("has no annotation: leave such tasks out, or annotate them")


def parts(results: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The results of each control; labels and the texts that correct them are one, and so are the points in an image.

    No result at all marks nothing.
    """
    of_control: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        spans, points = result.get("type") in ("labels", "textarea"), result.get("type") == KEYPOINT
        name = KEYPOINT if points else result.get("from_name")
        of_control[SPANS if spans else (name, result.get("to_name"))].append(result)
    return list(of_control.values()) or [[]]


def annotator_of(sheet: dict[str, Any]) -> str:
    """The e-mail address of who completed an annotation, or their number; "" where nobody is named."""
    who = sheet.get("completed_by")
    if isinstance(who, dict):
        who = who.get("email") or who.get("username") or who.get("id")
    return "" if who is None else str(who)


def said_in(record: dict[str, Any]) -> Said:
    """What the results of one control say. `BadRow` for a control that says nothing we know."""
    data, results = columns_of(record["data"]), record["results"]
    if results[:1] and results[0].get("type") == KEYPOINT:
        return Said(
            of_object(data, str(results[0].get("to_name", ""))), "points", "", record["annotator"], points_in(results)
        )
    if not results and data.get("asked") == POINTS:
        return Said(data, "points", "", record["annotator"], [])
    if not results or results[0].get("type") in ("labels", "textarea"):
        if not results and "answer" not in data:
            raise BadRow("says nothing: skip such tasks in Label Studio, or leave them out")
        return Said(data, "spans", "", record["annotator"], spans_in(results, data))
    result = results[0]
    if len(results) > 1:
        raise BadRow(f"has {len(results)} results of '{result.get('from_name')}' for one object, allowed is one")
    kind, value = result.get("type"), result.get("value")
    if kind not in READERS or not isinstance(value, dict):
        raise BadRow(
            f"is of type {kind!r:.40}, allowed are {', '.join((*READERS, 'labels', KEYPOINT))}, each with a value"
        )
    name = result.get("from_name")
    return READERS[kind](data, str(result.get("to_name", "")), name, record["annotator"], value)


def columns_of(data: dict[str, Any]) -> dict[str, Any]:
    """A task's data with the images of its list `items` as columns, named by their `id`."""
    items = data.get("items")
    if not isinstance(items, list):
        return data
    named = {
        str(item["id"]): item["image"] for item in items if isinstance(item, dict) and {"id", "image"} <= item.keys()
    }
    places = {name: f"image_{place}" for place, name in enumerate(named)}
    return {**data, "items": places, **{places[name]: image for name, image in named.items()}}


def of_pairwise(data: dict[str, Any], to: str, name: Any, annotator: str, value: dict[str, Any]) -> Said:
    """The left or the right one: of two objects that `to_name` lists, or, as Label Studio writes its own name there, 0 and 1."""
    selected = value.get("selected")
    if selected not in SIDES:
        raise BadRow(f"selected got {selected!r:.80}, allowed are left and right")
    objects = [part.strip() for part in to.split(",")]
    if len(objects) != 2:
        objects = [f"{thing_of(data)}_{place}" for place in (0, 1)]
    return Said(data, "pair", criterion_of(name), annotator, objects[SIDES.index(selected)])


def thing_of(data: dict[str, Any]) -> str:
    """What is compared."""
    return "answer" if "answer_0" in data else "image"


def of_choices(data: dict[str, Any], to: str, name: Any, annotator: str, value: dict[str, Any]) -> Said:
    """A choice between two, which knows ties, or whether an image is safe."""
    given = value.get("choices")
    choice = (
        given[0].strip().lower() if isinstance(given, list) and len(given) == 1 and isinstance(given[0], str) else ""
    )
    if choice in ("safe", "unsafe"):
        return Said(of_object(data, to), "safety", criterion_of(name), annotator, choice)
    if choice not in CHOICES:
        raise BadRow(f"choices got {given!r:.80}, allowed is one of safe, unsafe, {', '.join(CHOICES)}")
    place = CHOICES[choice]
    criterion = criterion_of(name)
    criterion = "" if criterion == TIE else criterion.removesuffix(f" {TIE}")
    return Said(data, "pair", criterion, annotator, TIE if place is None else f"{thing_of(data)}_{place}")


def of_rating(data: dict[str, Any], to: str, name: Any, annotator: str, value: dict[str, Any]) -> Said:
    """A level of the object that `toName` names."""
    return Said(of_object(data, to), "rating", criterion_of(name), annotator, value.get("rating"))


def of_object(data: dict[str, Any], to: str) -> dict[str, Any]:
    """The columns of one image of several."""
    if to not in data:
        raise BadRow(f"is about '{to:.60}', which is no column of the task: name each object tag as its column")
    others = {name: value for name, value in data.items() if not name.startswith("image")}
    return {**others, "image": data[to]} if to.startswith("image") else {**others, to: data[to]}


def of_ranker(data: dict[str, Any], to: str, name: Any, annotator: str, value: dict[str, Any]) -> Said:
    """An order, or buckets that are named by their ranks."""
    given, places = value.get("ranker"), data.get("items")
    if isinstance(given, dict):
        given = {bucket: ids for bucket, ids in given.items() if ids or bucket != "_"}
        given = next(iter(given.values())) if len(given) == 1 else given
    if isinstance(given, list):
        given = {str(rank): [which] for rank, which in enumerate(given, start=1)}
    if not isinstance(given, dict) or not all(
        is_rank(bucket) and isinstance(ids, list) for bucket, ids in given.items()
    ):
        raise BadRow(f"ranker got {given!r:.80}, allowed is a list, or buckets named by their ranks 1, 2 …")
    if not isinstance(places, dict):
        raise BadRow("ranks images, and the task has no list items with an id and an image each")
    ranks = {places.get(str(which), str(which)): float(bucket) for bucket, ids in given.items() for which in ids}
    return Said(data, "ranking", criterion_of(name), annotator, ranks)


def is_rank(bucket: str) -> bool:
    try:
        return is_number(float(bucket))
    except ValueError:
        return False


READERS = {"pairwise": of_pairwise, "choices": of_choices, "rating": of_rating, "ranker": of_ranker}


def spans_in(results: list[dict[str, Any]], data: dict[str, Any]) -> list[dict[str, Any]]:
    """The labelled spans, each with the text that corrects it; positions are characters (code points), as in Python."""
    texts = {result.get("id"): value_of(result).get("text") for result in results if result.get("type") == "textarea"}
    found = []
    for result in results:
        if result.get("type") != "labels":
            continue
        value = value_of(result)
        labels = value.get("labels")
        if not isinstance(labels, list) or len(labels) != 1:
            raise BadRow(f"labels got {labels!r:.80}, allowed is one label a span")
        span = {"start": value.get("start"), "end": value.get("end"), "tag": labels[0]}
        refuse_another_text(span, value.get("text"), data.get("answer"))
        correction = texts.get(result.get("id"))
        if isinstance(correction, list):
            correction = "\n".join(map(str, correction))
        found.append(span if correction is None else {**span, "correction": correction})
    return found


def points_in(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The points as a POINTS.jsonl has them: Label Studio gives percent of the image's sides."""
    found = []
    for value in map(value_of, results):
        labels = value.get(KEYPOINT)
        if not isinstance(labels, list) or len(labels) != 1:
            raise BadRow(f"{KEYPOINT} got {labels!r:.80}, allowed is one label a point")
        x, y = (round(value[name] / 100, DIGITS) if is_number(value.get(name)) else value.get(name) for name in "xy")
        found.append({"x": x, "y": y, "tag": labels[0]})
    return found


def refuse_another_text(span: dict[str, Any], covered: Any, answer: Any) -> None:
    """`BadRow` where a span says what it covers, and that is not what stands there."""
    start, end = span["start"], span["end"]
    if isinstance(covered, str) and isinstance(answer, str) and isinstance(start, int) and isinstance(end, int):
        if answer[start:end] != covered:
            raise BadRow(f"the span {start} to {end} is {answer[start:end]!r:.40}, and its text says {covered!r:.40}")


def value_of(result: dict[str, Any]) -> dict[str, Any]:
    value = result.get("value")
    if not isinstance(value, dict):
        raise BadRow(f"value got {value!r:.80}, allowed is an object")
    return value


def suited(judgement: Annotation) -> Sequence[Annotation]:
    """What has an answer that Label Studio's controls can give."""
    refuse_unsuited(judgement, NAME)
    return [judgement]


def write(judgements: Sequence[Annotation], file: Path) -> None:
    """Write tasks that Label Studio imports with their annotations, one task for what several people were asked."""
    tasks = []
    for columns, people in grouped((said_of(judgement, file) for judgement in judgements), lambda said: said.annotator):
        task: dict[str, Any] = {"data": data_of(columns, people[0][0][0].kind), "annotations": [], "predictions": []}
        for sheet in (sheet for sheets in people for sheet in sheets):
            results = [result for said in sheet for result in results_of(said)]
            who = sheet[0].annotator
            if who.startswith(AI):
                task["predictions"].append({"model_version": who.removeprefix(AI), "result": results})
            else:
                task["annotations"].append({"result": results} | ({"completed_by": {"email": who}} if who else {}))
        tasks.append(task)
    write_text(json.dumps(tasks, ensure_ascii=False, indent=1) + "\n", file)


def data_of(columns: dict[str, Any], kind: str) -> dict[str, Any]:
    """A task's data: images by their address, those of a ranking as a list that the tag List shows."""
    data = {name: LOCAL + quote(value) if name.startswith("image") else value for name, value in columns.items()}
    if kind != "ranking":
        return data
    images = {name: data.pop(name) for name in list(data) if name.startswith("image_")}
    items = [
        {"id": name, "title": name, "image": image, "html": f'<img src="{escape(image)}" style="max-width: 100%">'}
        for name, image in images.items()
    ]
    return {**data, "items": items}


def results_of(said: Said) -> list[dict[str, Any]]:
    """An answer as the results of its controls."""
    name = question_name(said)
    if said.kind == "spans":
        return [
            result for number, segment in enumerate(said.value) for result in results_of_span(said, number, segment)
        ]
    if said.kind == "points":
        return [
            {
                "id": f"point-{number}",
                "from_name": name,
                "to_name": "image",
                "type": KEYPOINT,
                "value": key_point(point),
            }
            for number, point in enumerate(said.value)
        ]
    if said.kind == "ranking":
        buckets: dict[str, list[str]] = defaultdict(list)
        for column, rank in sorted(said.value.items(), key=lambda each: each[1]):
            buckets[f"{rank:g}" if float(f"{rank:g}") == rank else repr(rank)].append(column)
        return [{"from_name": name, "to_name": "items", "type": "ranker", "value": {"ranker": dict(buckets)}}]
    if said.kind == "rating":
        return [{"from_name": name, "to_name": "image", "type": "rating", "value": {"rating": said.value}}]
    if said.kind == "safety":
        return [{"from_name": name, "to_name": "image", "type": "choices", "value": {"choices": [said.value]}}]
    if said.value == TIE:
        name, to = f"{said.criterion} {TIE}".strip(), f"{thing_of(said.columns)}_0"
        return [{"from_name": name, "to_name": to, "type": "choices", "value": {"choices": [TIE]}}]
    side = SIDES[int(said.value[-1])]
    return [{"from_name": name, "to_name": name, "type": "pairwise", "value": {"selected": side}}]


def key_point(point: dict[str, Any]) -> dict[str, Any]:
    """A point as Label Studio has it."""
    x, y = (round(100 * point[name], DIGITS - 2) for name in "xy")
    return {"x": x, "y": y, "width": DOT, KEYPOINT: [point["tag"]]}


def results_of_span(said: Said, number: int, segment: dict[str, Any]) -> list[dict[str, Any]]:
    """A label, and the text that corrects it, which share their `id`."""
    start, end = segment["start"], segment["end"]
    about = {"id": f"span-{number}", "to_name": "answer"}
    where = {"start": start, "end": end}
    label = {**where, "text": said.columns["answer"][start:end], "labels": [segment["tag"]]}
    found = [{**about, "from_name": question_name(said), "type": "labels", "value": label}]
    if "correction" in segment:
        text = {**where, "text": [segment["correction"]]}
        found.append({**about, "from_name": "correction", "type": "textarea", "value": text})
    return found
