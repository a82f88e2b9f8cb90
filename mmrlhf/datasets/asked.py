"""Judgements as tasks and what people answered to them: what Label Studio and Argilla share, each in a JSON of its own.

The columns of a task are prompt; image, image_0 and image_1 (…), or answer_0 and answer_1 of a pair of answers, or the answer
whose spans are labelled; and, where they say something, group, levels, margin, item, safe_0 and safe_1. `asked` is points where
places in the image are pointed at, so that none says that there is nothing.
"""

import base64
import binascii
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote

from mmrlhf.answers import AnswerPair, answer_of
from mmrlhf.data import Pair, carried_of, margin_of, prompt_of, relative
from mmrlhf.datasets.judgements import Annotation
from mmrlhf.datasets.rows import BadRow, Picture, Row, is_number
from mmrlhf.images import content_hash
from mmrlhf.outcomes import SAFETY, Ranking, Rating
from mmrlhf.points import PointedImage, pointed_image_of
from mmrlhf.segments import SegmentedItem, segment_row, segmented_item_of
from mmrlhf.types import SegmentLabel

# questions without a criterion
PAIR, RATING, RANKING, SPANS, POINTS = "preference", "rating", "ranking", "spans", "points"
OVERALL = (PAIR, RATING, RANKING, SPANS, "pairwise", "pw", "ranker", "rank", "label")
PROMPTS = ("prompt", "text", "caption")
OPTIONAL = ("group", "levels", "margin", "item", "safe_0", "safe_1")
LEVELS = 5  # of a rating, if not said
AI = "ai-"  # what the names of annotators that are models begin with
LOCAL = "/data/local-files/?d="  # how Label Studio names a file below its document root
TIE = "tie"


class Said(NamedTuple):
    """One annotator's answer to a task. Its value is of a form for each kind.

    pair: the column that won, or "tie". rating: a level. safety: "safe" or "unsafe". ranking: the rank of each column.
    spans: the segments, as a SEGMENTS.jsonl has them; points: those of a POINTS.jsonl.
    """

    columns: dict[str, Any]
    kind: Literal["pair", "rating", "safety", "ranking", "spans", "points"]
    criterion: str
    annotator: str
    value: Any


def refuse_unsuited(judgement: Annotation, name: str) -> None:
    """`BadRow` for what neither has a place for: no answer, a soft label, scores of spans, a question without a name."""
    if isinstance(judgement, SegmentedItem):
        if judgement.answer is None or not all(isinstance(segment, SegmentLabel) for segment in judgement.segments):
            raise BadRow(f"has scores, or spans of steps, and {name} takes tags on an answer")
        return
    if isinstance(judgement, PointedImage):
        return
    if not judgement.has_label:
        raise BadRow(f"has no label, and {name} takes what somebody answered")
    if isinstance(judgement, Pair | AnswerPair) and judgement.label_0 not in (0.0, 0.5, 1.0):
        raise BadRow(f"has label_0 {judgement.label_0:g}, and {name} takes 1, 0 or 0.5, a tie")
    if judgement.criterion in (*OVERALL, TIE) or judgement.criterion.endswith(f" {TIE}"):
        raise BadRow(f"is by the criterion '{judgement.criterion}', which in {name} names the question without one")


def said_of(judgement: Annotation, file: Path) -> Said:
    """A judgement that is not `refuse_unsuited`, with images named relative to `file`."""
    j = judgement
    columns: dict[str, Any] = {"prompt": j.prompt}
    if isinstance(j, Pair | Ranking):
        images = (j.image_0, j.image_1) if isinstance(j, Pair) else j.images
        columns |= {f"image_{place}": relative(image, file) for place, image in enumerate(images)}
    else:
        texts = ("answer_0", "answer_1") if isinstance(j, AnswerPair) else ("answer",)
        columns |= {name: getattr(j, name) for name in texts if hasattr(j, name)}
        columns |= {} if j.image is None else {"image": relative(j.image, file)}
    columns |= {"asked": POINTS} if isinstance(j, PointedImage) else {}
    is_veto = isinstance(j, Rating) and j.criterion == SAFETY and j.levels == 2
    for name in OPTIONAL:
        value = getattr(j, name, None)
        if value not in (None, "", 0.0) or value is False:
            columns[name] = value
    if isinstance(j, Rating) and (is_veto or j.levels == LEVELS):
        del columns["levels"]
    return Said(columns, *answered(j))


def answered(j: Annotation) -> tuple[Any, str, str, Any]:
    """(kind, criterion, annotator, value) of a judgement."""
    if isinstance(j, SegmentedItem):
        return "spans", "", j.annotator, [segment_row(segment) for segment in j.segments]
    if isinstance(j, PointedImage):
        return "points", "", j.annotator, [point._asdict() for point in j.points]
    if isinstance(j, Ranking):
        return (
            "ranking",
            j.criterion,
            j.annotator,
            {f"image_{place}": float(rank) for place, rank in enumerate(j.ranks)},
        )
    if isinstance(j, Rating):
        if j.criterion == SAFETY and j.levels == 2:
            return "safety", j.criterion, j.annotator, "safe" if j.rating == 2 else "unsafe"
        return "rating", j.criterion, j.annotator, j.rating
    thing = "answer" if isinstance(j, AnswerPair) else "image"
    value = TIE if j.label_0 == 0.5 else f"{thing}_{0 if j.label_0 == 1 else 1}"
    return "pair", j.criterion, j.annotator, value


def judged(said: Said, folder: Path, where: str) -> Row:
    """The judgement in an answer; its images are below `folder`. `BadRow` or UserError where it is none."""
    columns = said.columns
    if not (named := [name for name in PROMPTS if name in columns]):
        raise BadRow(f"lacks prompt (or {', '.join(PROMPTS[1:])})")
    prompt = prompt_of({"prompt": columns[named[0]]}, where)
    names: dict[str, Any] = {
        "annotator": said.annotator,
        "criterion": said.criterion,
        "group": columns.get("group") or "",
    }
    about = {name: value for name, value in carried_of(names, where).items() if value}
    files: dict[str, Path] = {}
    held: dict[Path, bytes] = {}
    for name in images_in(columns, said.kind):
        files[name], data = picture_of(columns[name], name, folder)
        held |= data
    return Row(where, CONVERTERS[said.kind](said, prompt, files, about, where), held)


def images_in(columns: Mapping[str, Any], kind: str) -> list[str]:
    """The columns with the images that an answer is about, in order."""
    found = sorted((name for name in columns if name.startswith("image_")), key=place_of)
    if kind == "ranking" or (kind == "pair" and "answer_0" not in columns):
        return found
    if "image" in columns:
        return ["image"] if columns["image"] is not None else []
    return found if len(found) == 1 else []


def place_of(name: str) -> tuple[int, str]:
    """image_10 after image_9."""
    digits = name.rpartition("_")[2]
    return (int(digits), "") if digits.isdecimal() else (0, name)


def picture_of(value: Any, name: str, folder: Path) -> Picture:
    """An image by its path, by Label Studio's address of a local or uploaded file, or as a data URI."""
    if not isinstance(value, str) or not value:
        raise BadRow(f"{name} got {value!r:.80}, allowed is a path, or an image as a data URI")
    if value.startswith("data:"):
        try:
            data = base64.b64decode(value.partition("base64,")[2], validate=True)
        except (binascii.Error, ValueError) as error:
            raise BadRow(f"{name} is no data URI in base64 ({error})") from error
        key = Path(content_hash(data))
        return key, {key: data}
    if "://" in value:
        raise BadRow(f"{name} is on the web ({value:.60}): download the images, and name their files")
    path = unquote(value.partition(LOCAL)[2]) if LOCAL in value else value
    file = Path(os.path.normpath(folder / path.removeprefix("/data/")))
    if not file.is_file():
        raise BadRow(f"{name}: no file {file}; say with --images where they are")
    return file, {}


def pair_of(
    said: Said, prompt: str, files: Mapping[str, Path], about: Mapping[str, Any], where: str
) -> Pair | AnswerPair:
    """The comparison of image_0 and image_1, or of answer_0 and answer_1."""
    columns = said.columns
    thing = "answer" if "answer_0" in columns else "image"
    sides = [f"{thing}_0", f"{thing}_1"]
    if missing := [side for side in sides if side not in columns]:
        raise BadRow(f"compares two, and lacks {', '.join(missing)}")
    if said.value not in (*sides, TIE):
        raise BadRow(f"the preferred one got {said.value!r:.80}, allowed are {', '.join(sides)}, {TIE}")
    label = 0.5 if said.value == TIE else float(said.value == sides[0])
    margin = margin_of({"margin": columns.get("margin", 0.0)}, where)
    if thing == "image":
        return Pair(prompt, files["image_0"], files["image_1"], label, margin=margin, **about)
    first, second = (answer_of(columns, side, where) for side in sides)
    if first == second:
        raise BadRow("compares an answer with itself")
    safe: dict[str, Any] = {name: bool(columns[name]) for name in ("safe_0", "safe_1") if columns.get(name) in (0, 1)}
    return AnswerPair(prompt, first, second, label, files.get("image"), margin=margin, **safe, **about)


def rating_of(said: Said, prompt: str, files: Mapping[str, Path], about: Mapping[str, Any], where: str) -> Rating:
    """A level, or a veto, of the task's one image."""
    if len(files) != 1:
        raise BadRow(f"rates an image, and the task has {len(files)}: name the one that is rated image")
    (image,) = files.values()
    if said.kind == "safety":
        return Rating(prompt, image, 2 if said.value == "safe" else 1, 2, **{"criterion": SAFETY, **about})
    levels, rating = said.columns.get("levels") or LEVELS, said.value
    if not all(is_number(value) and value == int(value) for value in (levels, rating)) or not 1 <= rating <= levels:
        raise BadRow(
            f"the rating got {rating!r:.40} of {levels!r:.40} levels, allowed is a whole number from 1 to levels "
            f"({LEVELS} where the task has no column levels)"
        )
    return Rating(prompt, image, int(rating), int(levels), **about)


def ranking_of(said: Said, prompt: str, files: Mapping[str, Path], about: Mapping[str, Any], where: str) -> Ranking:
    """An order of the task's images."""
    if len(files) < 2 or set(said.value) != set(files):
        raise BadRow(
            f"ranks {', '.join(said.value) or 'nothing'!s:.80}, allowed is each of the task's {len(files)} images once"
        )
    ranks = tuple(float(said.value[name]) for name in files)
    if len(set(ranks)) == 1:
        raise BadRow("gives all images one rank, which puts nothing before anything")
    if len(set(files.values())) < len(files):
        raise BadRow("names an image twice")
    return Ranking(prompt, tuple(files.values()), ranks, **about)


def spans_of(said: Said, prompt: str, files: Mapping[str, Path], about: Mapping[str, Any], where: str) -> SegmentedItem:
    """Labels on spans of the column answer."""
    columns = said.columns
    if "answer" not in columns:
        raise BadRow("labels spans, and the task has no column answer")
    image = files.get("image")
    named = columns.get("item") or content_hash(repr((prompt, image and image.name, columns["answer"])).encode())
    about = {name: value for name, value in about.items() if name != "criterion"}
    row = {"item": named, "prompt": prompt, "answer": columns["answer"], "segments": said.value, **about}
    return replace(segmented_item_of(row, Path(), where), image=image)


def points_of(said: Said, prompt: str, files: Mapping[str, Path], about: Mapping[str, Any], where: str) -> PointedImage:
    """Tagged places in the task's one image."""
    if len(files) != 1:
        raise BadRow(f"points at an image, and the task has {len(files)}: name the one that is pointed at image")
    (image,) = files.values()
    about = {name: value for name, value in about.items() if name != "criterion"}
    return pointed_image_of({"prompt": prompt, "image": str(image), "points": said.value, **about}, Path(), where)


Converter = Callable[[Said, str, Mapping[str, Path], Mapping[str, Any], str], Annotation]
CONVERTERS: dict[str, Converter] = {
    "pair": pair_of, "rating": rating_of, "safety": rating_of, "ranking": ranking_of, "spans": spans_of,
    "points": points_of,
}  # fmt: skip


def question_name(said: Said) -> str:
    """What the question is called: the criterion, or the kind's own name."""
    own = {"pair": PAIR, "rating": RATING, "ranking": RANKING, "spans": SPANS, "points": POINTS}
    return said.criterion or own[said.kind]


def criterion_of(name: Any) -> str:
    """The criterion that a question's name stands for: none for the names of questions without."""
    if not isinstance(name, str) or not name:
        raise BadRow(f"the question's name got {name!r:.80}, allowed is a text")
    return "" if name in OVERALL else name


Sheet = list[Said]  # one annotator's answers to one task, none to a question twice


def grouped(said: Iterable[Said], who: Callable[[Said], str]) -> list[tuple[dict[str, Any], list[list[Sheet]]]]:
    """Tasks in the order in which they came, each with the sheets of every annotator (those of one name by `who`)."""
    tasks: dict[str, tuple[dict[str, Any], dict[str, list[Sheet]]]] = {}
    for each in said:
        of_task = tasks.setdefault(repr((sorted(each.columns.items()), each.kind == "ranking")), (each.columns, {}))[1]
        sheets = of_task.setdefault(who(each), [])
        name = question_name(each)
        free = next((sheet for sheet in sheets if name not in map(question_name, sheet)), None)
        if free is None:
            sheets.append([each])
        else:
            free.append(each)
    return [(columns, list(sheets.values())) for columns, sheets in tasks.values()]


def of_model(name: Any) -> str:
    """The name of a model as that of an annotator."""
    return f"{AI}{name or 'model'}"
