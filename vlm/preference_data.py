"""Answers to learn from: better and worse ones, from comparisons or from corrections that somebody made to an answer."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from mmrlhf.answers import ANSWER_COLUMNS, AnswerPair, answer_of, read_answer_pairs
from mmrlhf.data import example_row, image_of, parse_object, prompt_of, read_text
from mmrlhf.errors import UserError
from mmrlhf.images import readable
from mmrlhf.rewards.language.inputs import Row
from mmrlhf.seeding import seeded
from mmrlhf.segments import SegmentedItem, corrected, read_segments
from vlm.policy import VisionLanguagePolicy


class Choice(NamedTuple):
    """Two answers to one prompt about one image, the better first."""

    chosen: Row
    rejected: Row

    @property
    def unit(self) -> str:
        """What is independent of everything else: the prompt about its image."""
        return f"{self.chosen.prompt}\n{self.chosen.image or ''}"


def read_choices(path: Path) -> tuple[list[Choice], int]:
    """(the comparisons of an ANSWERS.jsonl, or the corrected answers of a SEGMENTS.jsonl beside the originals; how many rows
    tell no better from a worse).

    UserError for a bad row, or where none is left.
    """
    if "answer_0" in first_judged_row(path):
        pairs = read_answer_pairs(path)
        found = [choice_of_pair(pair) for pair in pairs if pair.label_0 != 0.5]
        total = len(pairs)
    else:
        items = answers_of(path)
        found = [choice for item in items if (choice := choice_of_item(item)) is not None]
        total = len(items)
    if not found:
        raise UserError(
            f"{path} tells no better answer from a worse one: give comparisons that are not ties, or segments with corrections"
        )
    return found, total - len(found)


def first_judged_row(path: Path) -> dict[str, Any]:
    """`first_row`; UserError where it is neither a comparison nor marked."""
    row = first_row(path, ANSWER_COLUMNS)
    if row and not {"answer_0", "segments"} & row.keys():
        raise UserError(
            f"{path} row 1 has the columns {', '.join(row)}, allowed are comparisons ({', '.join(ANSWER_COLUMNS)}, image) or "
            "marked answers (prompt, image, answer, segments)"
        )
    return row


def first_row(path: Path, wanted: Sequence[str]) -> dict[str, Any]:
    """The first object of a JSONL file; nothing in an empty one. UserError where it is no object."""
    lines = read_text(path, "a file of answers").split("\n")
    number, first = next(((n, line) for n, line in enumerate(lines, start=1) if line.strip()), (0, ""))
    return parse_object(first, f"{path} row {number}", wanted) if first else {}


def choice_of_pair(pair: AnswerPair) -> Choice:
    """A comparison with the preferred answer first."""
    rows = (Row(pair.prompt, pair.answer_0, pair.image), Row(pair.prompt, pair.answer_1, pair.image))
    return Choice(*(rows if pair.label_0 > 0.5 else rows[::-1]))


def choice_of_item(item: SegmentedItem) -> Choice | None:
    """The corrected answer and the one that was marked; None where nothing was corrected, or nothing would be left."""
    assert item.answer is not None
    better = corrected(item.answer, item.segments)
    if better in ("", item.answer.strip()):
        return None
    return Choice(Row(item.prompt, better, item.image), Row(item.prompt, item.answer, item.image))


def answers_of(path: Path) -> list[SegmentedItem]:
    """The marked answers of a SEGMENTS.jsonl. UserError where one is of steps."""
    items = read_segments(path)
    if wrong := [item for item in items if item.answer is None]:
        raise UserError(f"item {wrong[0].item!r:.60} is of steps, allowed are answers: give segments of answers")
    return items


def read_answers(path: Path) -> list[Row]:
    """Answers to imitate: the better ones of a file as `read_choices` takes it, or lines {"prompt", "answer", "image"}.

    Of a SEGMENTS.jsonl the answers in which nothing was wrong too. UserError for a bad row.
    """
    columns = first_row(path, ("prompt", "answer")).keys()
    if "answer_0" in columns:
        return [choice.chosen for choice in read_choices(path)[0]]
    if "segments" in columns:
        rows = [(item, corrected(item.answer or "", item.segments)) for item in answers_of(path)]
        found = [Row(item.prompt, answer, item.image) for item, answer in rows if answer]
        if not found:
            raise UserError(f"{path} has no answer of which its corrections leave anything: give some that do")
        return found
    return read_prompts(path, ("prompt", "answer"))


def read_prompts(path: Path, required: Sequence[str] = ("prompt",)) -> list[Row]:
    """Questions about images, a JSON object a line: {"prompt", "image"}, with "answer" where it is required.

    Paths are relative to the file; other columns are not read. UserError for a bad row, or an empty file.
    """
    rows = []
    for number, line in enumerate(read_text(path, f"a file with {', '.join(required)} a line").split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path} row {number}"
        row = parse_object(line, where, required)
        if missing := [name for name in required if name not in row]:
            raise UserError(f"{where} lacks {', '.join(missing)}: write {example_row((*required, 'image'))}")
        if wrong := [name for name in required if not isinstance(row[name], str) or not row[name].strip()]:
            raise UserError(f"{where}: {wrong[0]} got {row[wrong[0]]!r:.60}, allowed is a text that is not empty")
        image = image_of(row, "image", path.parent, where) if row.get("image") is not None else None
        answer = answer_of(row, "answer", where) if "answer" in required else None
        rows.append(Row(prompt_of(row, where), answer, image))
    if not rows:
        raise UserError(f"{path} is empty: write an object with {', '.join(required)} a line")
    return rows


def hold_out(units: Sequence[str], share: float, seed: int) -> tuple[list[int], list[int]]:
    """(rows to learn from, rows of about `share` of the units, none of which is on both sides); 0 holds nothing out."""
    names = sorted(set(units))
    count = min(len(names) - 1, max(1, round(share * len(names)))) if share else 0
    order = seeded(seed, len(names))
    held = {names[i] for i in torch.randperm(len(names), generator=order)[:count].tolist()}
    return [i for i, unit in enumerate(units) if unit not in held], [i for i, unit in enumerate(units) if unit in held]


def rows_that_fit(
    policy: VisionLanguagePolicy,
    rows: Sequence[Row],
    too_long: str,
    advice: str = "leave them out with --too-long drop",
) -> list[bool]:
    """Which rows have no more tokens than the model reads.

    UserError where one has and `too_long` is "refuse", for an answer with the mark of a picture in it, and for a picture that
    cannot be read to its end.
    """
    check_no_marks(policy, rows)
    check_pictures(rows)
    lengths = policy.reader.lengths(rows)
    limit = policy.reader.max_length
    long = sum(length >= limit for length in lengths)  # the mark that ends an answer needs a place
    if long and too_long == "refuse":
        raise UserError(
            f"{long} of {len(rows)} answers are longer than the {limit} tokens that are read (the longest has {max(lengths)}, "
            f"its prompt and picture included): shorten them, or {advice}"
        )
    return [length < limit for length in lengths]


def check_pictures(rows: Sequence[Row]) -> None:
    """UserError for a picture that cannot be read to its end, which else would stop a run hours later."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(check_picture, dict.fromkeys(row.image for row in rows if isinstance(row.image, Path))))


def check_picture(path: Path) -> None:
    """UserError where it is broken; a large JPEG is decoded to an eighth of its size, which reads all of its file."""
    with readable(str(path)), Image.open(path) as file:
        file.draft("RGB", (1, 1))
        file.load()


def check_no_marks(policy: VisionLanguagePolicy, rows: Sequence[Row]) -> None:
    """UserError for an answer that holds what stands for a picture: no answer can."""
    mark = str(getattr(policy.reader.processor, "image_token", None) or "")
    for row in rows if mark else ():
        if mark in (row.answer or ""):
            raise UserError(
                f"the answer {row.answer!r:.60} holds {mark}, which stands for a picture: remove it from the answer"
            )


def told(rows: Sequence[Row]) -> list[str]:
    """Rows as lines, to tell one data set from another."""
    return [json.dumps([row.prompt, row.answer, None if row.image is None else str(row.image)]) for row in rows]
