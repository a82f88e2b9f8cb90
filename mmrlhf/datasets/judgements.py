"""What the tools for data sets share about judgements of any kind: their images, their line in a file, what was asked."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmrlhf.answers import AnswerPair, answer_row, oriented, read_answer_pairs, sides_of
from mmrlhf.data import Pair, lines_of, parse_object
from mmrlhf.outcomes import Outcome, Ranking, Rating, items_of, read_outcomes, row_of
from mmrlhf.points import PointedImage, points_row, read_points
from mmrlhf.segments import SegmentedItem, read_segments, segments_row

Judgement = Outcome | AnswerPair
Annotation = Judgement | SegmentedItem | PointedImage
KINDS = {
    Pair: "pairs", Ranking: "rankings", Rating: "ratings", AnswerPair: "answers", SegmentedItem: "segments",
    PointedImage: "points",
}  # fmt: skip


def read_judgements(path: Path) -> Sequence[Judgement]:
    """The rows of an ANSWERS.jsonl, a PAIRS.jsonl or an OUTCOMES.jsonl: the first row says which."""
    columns = ("prompt", "…")
    where, line = next(lines_of(path, columns))
    answers = "answer_0" in parse_object(line, where, columns)
    return read_answer_pairs(path) if answers else read_outcomes(path)


def read_annotations(path: Path) -> Sequence[Annotation]:
    """The same, or the marked items of a SEGMENTS.jsonl, or the images of a POINTS.jsonl."""
    columns = ("prompt", "…")
    where, line = next(lines_of(path, columns))
    row = parse_object(line, where, columns)
    return read_segments(path) if "segments" in row else read_points(path) if "points" in row else read_judgements(path)


def line_of(judgement: Annotation, file: Path) -> dict[str, Any]:
    """A judgement as a line of `file`."""
    if isinstance(judgement, SegmentedItem):
        return segments_row(judgement, file)
    if isinstance(judgement, PointedImage):
        return points_row(judgement, file)
    return answer_row(judgement, file) if isinstance(judgement, AnswerPair) else row_of(judgement, file)


def images_of(judgement: Annotation) -> list[Path]:
    """The images that a judgement is about."""
    if isinstance(judgement, AnswerPair | SegmentedItem | PointedImage):
        return [] if judgement.image is None else [judgement.image]
    return [item.image for item in items_of(judgement)]


def with_images(judgement: Annotation, files: Mapping[Path, Path]) -> Annotation:
    """The same judgement, each image that `files` knows replaced by its file."""
    if isinstance(judgement, Ranking):
        return replace(judgement, images=tuple(files.get(image, image) for image in judgement.images))
    names = [name for name in ("image", "image_0", "image_1") if getattr(judgement, name, None) in files]
    changes: dict[str, Any] = {name: files[getattr(judgement, name)] for name in names}
    return replace(judgement, **changes)


def question_of(judgement: Judgement) -> tuple[Any, ...]:
    """What was asked, whoever answered: the same for both orders of a pair."""
    things: list[Any] = sorted(images_of(judgement))
    if isinstance(judgement, AnswerPair):
        things += sorted(sides_of(judgement))
    return (KINDS[type(judgement)], judgement.prompt, judgement.criterion, *things)


def verdict_of(judgement: Judgement) -> float | None:
    """What was answered, comparable among answers to one `question_of`: None where nothing was, and for rankings.

    Of a pair 1 where the first in alphabetical order won, 0 where the second did, and what lies between; of a rating its place
    on the scale from 0 to 1.
    """
    if not judgement.has_label or isinstance(judgement, Ranking):
        return None
    if isinstance(judgement, Rating):
        return (judgement.rating - 1) / (judgement.levels - 1)
    return oriented(judgement, judgement.label_0)
