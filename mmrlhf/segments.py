"""Labels on spans: of an answer's characters, of denoising steps, of a trajectory's skills; a JSON object an item.

`{"item", "prompt", "image", "answer" or "steps", "group", "annotator", "segments": [SEGMENT, …]}`, a SEGMENT being
`{"start", "end", "tag" or "score", "correction"}`; item or prompt, an answer or steps, and segments must be there.
A span is [start, end): of code points of `answer` (Python's characters), or of `steps` steps.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from mmrlhf.answers import answer_of
from mmrlhf.data import SURROGATES, image_of, prompt_of, read_rows, relative, write_jsonl
from mmrlhf.errors import UserError
from mmrlhf.images import content_hash
from mmrlhf.types import SegmentLabel

TAGS: tuple[str, ...] = get_args(get_type_hints(SegmentLabel)["tag"])
COLUMNS = ("segments",)
OPTIONAL_COLUMNS = ("item", "prompt", "image", "answer", "steps", "group", "annotator")
SEGMENT_COLUMNS = ("start", "end", "tag", "score", "correction")


@dataclass(frozen=True)
class SegmentScore:
    """A score of the span [start, end) of an item, on the annotator's own scale; more is better."""

    item: str
    start: int
    end: int
    score: float


Segment = SegmentLabel | SegmentScore


@dataclass(frozen=True)
class SegmentedItem:
    """What was judged in parts: an `answer`, or something of `steps` denoising steps or skills (exactly one of the two is given).

    `item` names it; without a name of its own it is the content hash of prompt, image name and answer. Segments may overlap
    where they say the same, see `refuse_contradictions`. What no segment covers was not judged, see `with_rest`.
    """

    item: str
    segments: tuple[Segment, ...]
    prompt: str = ""
    answer: str | None = None
    steps: int | None = None
    image: Path | None = None
    group: str = ""
    annotator: str = ""

    @property
    def length(self) -> int:
        """How far spans may reach."""
        return len(self.answer) if self.answer is not None else self.steps or 0

    @property
    def unit(self) -> str:
        """What is independent of everything else: the group, else the prompt about its image, else the item."""
        # "Describe this." asks something else of each image
        asked = self.prompt if self.image is None else f"{self.prompt}\n{self.image}"
        return self.group or asked or self.item


def read_segments(path: Path) -> list[SegmentedItem]:
    """The items of a SEGMENTS.jsonl, in order; paths in it are relative to the file. UserError names the bad row."""
    return list(read_rows(path, COLUMNS, OPTIONAL_COLUMNS, segmented_item_of))


def write_segments(items: Sequence[SegmentedItem], path: Path) -> None:
    """Write a file that `read_segments` reads back equal (up to how paths are spelled); whole or not at all.

    What a segment belongs to is not written with it: when read, it is the item around it. UserError for an item that
    `read_segments` would refuse.
    """
    rows = [segments_row(item, path) for item in items]
    for item, row in zip(items, rows, strict=True):
        segmented_item_of(row, path.parent, f"item {item.item!r:.60}")
    write_jsonl(rows, path)


def tag_values(irrelevant: float = 0.0) -> dict[str, float]:
    """What a tag is worth as a number: correct 1, misleading -1, irrelevant 0, for it neither helps nor deceives.

    A task that pays for brevity may make `irrelevant` a little worse than nothing; it stays between the other two.
    """
    if not -1 < irrelevant < 1:
        raise UserError(
            f"the value of irrelevant got {irrelevant}, allowed is above -1 (misleading) and below 1 (correct)"
        )
    return {"correct": 1.0, "irrelevant": float(irrelevant), "misleading": -1.0}


def tags_to_values(segments: Sequence[Segment], irrelevant: float = 0.0) -> list[float]:
    """A number for each segment: its score, or what its tag is worth (see `tag_values`)."""
    worth = tag_values(irrelevant)
    return [segment.score if isinstance(segment, SegmentScore) else worth[segment.tag] for segment in segments]


def with_rest(item: SegmentedItem, tag: str = "correct") -> SegmentedItem:
    """The item with `tag` on each stretch that no segment covers: where annotators mark only what is wrong.

    Of an answer without the white space at the ends of a stretch, and none that is white space alone.
    """
    if tag not in TAGS:
        raise UserError(f"the tag of the rest got '{tag}', allowed are {', '.join(TAGS)}")
    rest, reached = [], 0
    for start, end in [*sorted((s.start, s.end) for s in item.segments), (item.length, item.length)]:
        first, last = reached, start
        if item.answer is not None and first < last:
            gap = item.answer[first:last]
            first, last = first + len(gap) - len(gap.lstrip()), last - len(gap) + len(gap.rstrip())
        if first < last:
            rest.append(SegmentLabel(item.item, first, last, tag))  # type: ignore[arg-type]  # one of TAGS
        reached = max(reached, end)
    return replace(item, segments=tuple(sorted([*item.segments, *rest], key=lambda s: (s.start, s.end))))


def corrected(answer: str, segments: Sequence[Segment]) -> str:
    """The answer with each correction in its place; what was deleted leaves no white space at its ends, nor doubled."""
    parts, reached = [], 0
    for segment in sorted(segments, key=lambda each: each.start):
        if isinstance(segment, SegmentLabel) and segment.correction is not None and segment.start >= reached:
            before = answer[reached : segment.start]
            if not segment.correction and (not before or before[-1].isspace()):
                before = before.rstrip()
            parts += [before, segment.correction]
            reached = segment.end
    return "".join([*parts, answer[reached:]]).strip()


def segmented_item_of(row: dict[str, Any], folder: Path, where: str) -> SegmentedItem:
    """A checked row as a `SegmentedItem`; an optional field that is null is one that is not there."""
    row = {name: value for name, value in row.items() if value is not None or name in COLUMNS}
    if ("answer" in row) == ("steps" in row):
        both = "both" if "answer" in row else "neither"
        raise UserError(f"{where} has {both} answer and steps: give the one that was judged")
    texts = {name: row.get(name, "") for name in ("item", "group", "annotator")}
    for name, text in texts.items():
        if not isinstance(text, str) or SURROGATES.search(text):
            raise UserError(f"{where}: {name} got {text!r:.80}, allowed is a text of whole characters")
    if not texts["item"] and not row.get("prompt"):
        raise UserError(f"{where} has neither item nor prompt: give a name, or the prompt")
    prompt = prompt_of(row, where) if "prompt" in row else ""
    answer = answer_of(row, "answer", where) if "answer" in row else None
    steps = None if "steps" not in row else steps_of(row["steps"], where)
    image = image_of(row, "image", folder, where) if "image" in row else None
    texts["item"] = texts["item"] or content_hash(json.dumps([prompt, row.get("image"), answer, steps]).encode())
    item = SegmentedItem(segments=(), prompt=prompt, answer=answer, steps=steps, image=image, **texts)
    if not isinstance(row["segments"], list):
        raise UserError(f"{where}: segments got {row['segments']!r:.80}, allowed is a list of objects")
    segments = tuple(
        segment_of(value, item, f"{where} segment {i}") for i, value in enumerate(row["segments"], start=1)
    )
    refuse_contradictions(segments, where)
    return replace(item, segments=segments)


def segment_of(value: Any, item: SegmentedItem, where: str) -> Segment:
    """One object of `segments`, in which null is as good as absent.

    UserError for a span outside the item, and for a tag, score or correction not allowed.
    """
    if not isinstance(value, dict) or not {"start", "end"} <= value.keys() <= set(SEGMENT_COLUMNS):
        got = list(value) if isinstance(value, dict) else value
        raise UserError(f"{where} got {got!r:.80}, allowed are start, end, tag or score, and correction")
    value = {name: said for name, said in value.items() if said is not None or name in ("start", "end")}
    if ("tag" in value) == ("score" in value):
        raise UserError(f"{where} has {'both' if 'tag' in value else 'neither'} tag and score: give one of them")
    start, end = value["start"], value["end"]
    if not is_whole(start) or not is_whole(end) or not 0 <= start < end <= item.length:
        unit = "steps" if item.answer is None else "characters (code points, not bytes)"
        raise UserError(
            f"{where}: start got {start!r:.40}, end {end!r:.40}, allowed is 0 <= start < end <= {item.length} {unit}"
        )
    if "tag" in value and value["tag"] not in TAGS:
        raise UserError(f"{where}: tag got {value['tag']!r:.80}, allowed are {', '.join(TAGS)}")
    correction = correction_of(value, item, where)
    if "tag" in value:
        return SegmentLabel(item.item, start, end, value["tag"], correction)
    score = value["score"]
    largest = sys.float_info.max  # JSON's whole numbers know no bound
    if isinstance(score, bool) or not isinstance(score, int | float) or not -largest <= score <= largest:
        raise UserError(f"{where}: score got {score!r:.80}, allowed is a finite number")
    return SegmentScore(item.item, start, end, float(score))


def correction_of(value: dict[str, Any], item: SegmentedItem, where: str) -> str | None:
    """What a span should be instead, "" to delete it. UserError where it is no text, or contradicts the tag."""
    correction = value.get("correction")
    if correction is None:
        return None
    if not isinstance(correction, str) or SURROGATES.search(correction):
        raise UserError(f"{where}: correction got {correction!r:.80}, allowed is a text, empty to delete the span")
    if value.get("tag") not in ("misleading", "irrelevant"):
        said = f"tag '{value['tag']}'" if "tag" in value else "a score"
        raise UserError(f"{where} has {said} and a correction: leave it out, or tag the span misleading or irrelevant")
    if item.answer is not None and correction == item.answer[value["start"] : value["end"]]:
        raise UserError(
            f"{where} is {value['tag']}, but its correction is what stands there: leave it out, or mend the tag"
        )
    return correction


def refuse_contradictions(segments: Sequence[Segment], where: str) -> None:
    """UserError for a span that is judged twice, for overlapping spans of different tags, and for overlapping corrections."""
    reach: dict[str, SegmentLabel] = {}  # of each tag, the segment that ends last so far
    mended: SegmentLabel | None = None  # the correction that ends last so far
    judged: set[tuple[int, int]] = set()
    for segment in sorted(segments, key=lambda s: s.start):
        if (segment.start, segment.end) in judged:
            raise UserError(f"{where} judges the span {segment.start} to {segment.end} twice: keep one of the two")
        judged.add((segment.start, segment.end))
        if isinstance(segment, SegmentScore):
            continue
        for tag, other in reach.items():
            if tag != segment.tag and segment.start < other.end:
                raise UserError(
                    f"{where}: {other.start} to {other.end} is {tag}, {segment.start} to {segment.end} is {segment.tag}, but "
                    "they overlap: end one where the other starts"
                )
        if segment.tag not in reach or segment.end > reach[segment.tag].end:
            reach[segment.tag] = segment
        if segment.correction is not None:
            if mended is not None and segment.start < mended.end:
                raise UserError(
                    f"{where}: {mended.start} to {mended.end} should be {mended.correction!r:.40}, {segment.start} to "
                    f"{segment.end} {segment.correction!r:.40}, but they overlap: make them one span, or correct only one"
                )
            mended = segment


def segments_row(item: SegmentedItem, file: Path) -> dict[str, Any]:
    """An item as a line of `file`."""
    row: dict[str, Any] = {
        name: value for name in ("item", "prompt", "group", "annotator") if (value := getattr(item, name))
    }
    row |= {"image": relative(item.image, file)} if item.image is not None else {}
    row |= {name: value for name in ("answer", "steps") if (value := getattr(item, name)) is not None}
    return row | {"segments": [segment_row(segment) for segment in item.segments]}


def segment_row(segment: Segment) -> dict[str, Any]:
    """A segment as an object of `segments`."""
    said = asdict(segment)
    return {name: said[name] for name in SEGMENT_COLUMNS if said.get(name) is not None}


def steps_of(value: Any, where: str) -> int:
    if not is_whole(value) or value < 1:
        raise UserError(f"{where}: steps got {value!r:.80}, allowed is a whole number, 1 or more")
    return value


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
