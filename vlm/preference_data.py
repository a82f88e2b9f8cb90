"""Answers to learn from: better and worse ones, from comparisons or from corrections that somebody made to an answer."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from mmrlhf.answers import AnswerPair, holds_answers, read_answer_pairs
from mmrlhf.data import image_of, parse_object, prompt_of, read_text
from mmrlhf.errors import UserError
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
    if holds_answers(path):
        pairs = read_answer_pairs(path)
        found = [choice_of_pair(pair) for pair in pairs if pair.label_0 != 0.5]
        total = len(pairs)
    else:
        items = read_segments(path)
        found = [choice for item in items if (choice := choice_of_item(item)) is not None]
        total = len(items)
    if not found:
        raise UserError(
            f"{path} tells no better answer from a worse one: give comparisons that are not ties, or segments with corrections"
        )
    return found, total - len(found)


def choice_of_pair(pair: AnswerPair) -> Choice:
    """A comparison with the preferred answer first."""
    rows = (Row(pair.prompt, pair.answer_0, pair.image), Row(pair.prompt, pair.answer_1, pair.image))
    return Choice(*(rows if pair.label_0 > 0.5 else rows[::-1]))


def choice_of_item(item: SegmentedItem) -> Choice | None:
    """The corrected answer and the one that was marked; None where nothing was corrected, or nothing would be left."""
    if item.answer is None:
        raise UserError(f"item {item.item!r:.60} is of steps, allowed are answers: give segments of answers")
    better = corrected(item.answer, item.segments)
    if better in ("", item.answer.strip()):
        return None
    return Choice(Row(item.prompt, better, item.image), Row(item.prompt, item.answer, item.image))


def read_answers(path: Path) -> list[Row]:
    """Answers to imitate: the better ones of a file as `read_choices` takes it, or lines {"prompt", "answer", "image"}.

    Of a SEGMENTS.jsonl the answers in which nothing was wrong too. UserError for a bad row.
    """
    first = next((line for line in read_text(path, "a file of answers").splitlines() if line.strip()), "")
    columns = parse_object(first, f"{path} row 1", ("prompt", "answer")).keys() if first else set()
    if "answer_0" in columns:
        return [choice.chosen for choice in read_choices(path)[0]]
    if "segments" in columns:
        rows = [(item, corrected(item.answer or "", item.segments)) for item in read_segments(path)]
        return [Row(item.prompt, answer, item.image) for item, answer in rows if answer]
    return read_prompts(path, ("prompt", "answer"))


def read_prompts(path: Path, required: Sequence[str] = ("prompt",)) -> list[Row]:
    """Questions about images, a JSON object a line: {"prompt", "image"}, with "answer" where it is required.

    Paths are relative to the file; other columns are not read. UserError for a bad row, or an empty file.
    """
    rows = []
    for number, line in enumerate(read_text(path, f"a file with {', '.join(required)} a line").splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path} row {number}"
        row = parse_object(line, where, required)
        if missing := [name for name in required if not isinstance(row.get(name), str) or not row[name].strip()]:
            raise UserError(
                f"{where}: {missing[0]} got {row.get(missing[0])!r:.60}, allowed is a text that is not empty"
            )
        image = image_of(row, "image", path.parent, where) if row.get("image") is not None else None
        rows.append(Row(prompt_of(row, where), row["answer"] if "answer" in required else None, image))
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


def rows_that_fit(policy: VisionLanguagePolicy, rows: Sequence[Row], too_long: str) -> list[bool]:
    """Which rows have no more tokens than the model reads. UserError where one has and `too_long` is "refuse"."""
    lengths = policy.reader.lengths(rows)
    limit = policy.reader.max_length
    long = sum(length >= limit for length in lengths)  # the mark that ends an answer needs a place
    if long and too_long == "refuse":
        raise UserError(
            f"{long} of {len(rows)} answers are longer than the {limit} tokens that are read (the longest has {max(lengths)}, "
            "its prompt and picture included): shorten them, or leave them out with --too-long drop"
        )
    return [length < limit for length in lengths]


def told(rows: Sequence[Row]) -> list[str]:
    """Rows as lines, to tell one data set from another."""
    return [json.dumps([row.prompt, row.answer, None if row.image is None else str(row.image)]) for row in rows]
