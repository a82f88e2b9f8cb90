"""The user's files as items and questions: a folder of pictures, ITEMS.jsonl or PAIRS.jsonl."""

import io
import json
import random
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import Literal

from PIL import Image, UnidentifiedImageError

from mmrlhf.errors import UserError
from mmrlhf.images import SUFFIXES, content_hash, list_images
from mmrlhf.store import Kind, Task

Mode = Literal["pair", "likert", "criteria", "rank", "segments", "points"]
KINDS: dict[Mode, Kind] = {
    "pair": "pair",
    "likert": "score",
    "criteria": "likert",
    "rank": "rank",
    "segments": "segments",
    "points": "point",
}
Items = dict[str, tuple[str, str]]  # content hash -> (path, prompt)
# the first bytes of the pictures that every browser shows: the only ones that the app serves
MEDIA_TYPES = {
    b"\x89PNG": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
    b"RIFF": "image/webp",
    b"BM": "image/bmp",
}
MOST_RANKED = 6  # pictures in a question: as many as fit on a screen
LISTS = ("pairs.jsonl", "items.jsonl")  # a folder that holds one of them is read through it


def read_questions(
    source: Path,
    mode: Mode = "pair",
    *,
    pairs_per_item: int = 4,
    per_question: int = 4,
    criteria: tuple[str, ...] = (),
    seed: int = 0,
) -> tuple[Items, list[Task]]:
    """(items, tasks) of a folder or a .jsonl file; UserError where there is nothing to ask.

    pair: PAIRS.jsonl gives its own pairs; otherwise each picture meets `pairs_per_item` others of its prompt, drawn by `seed`; a
    folder without a list has one prompt, ''. rank: each picture is in a question of `per_question` pictures of its prompt.
    The other modes ask about each picture alone, segments about each answer to it.
    """
    reader = Reader()
    rows = list(read_rows(source))
    pairs: list[Task] = []
    answers: list[Task] = []
    groups: dict[str, dict[str, None]] = {}
    for where, folder, row in rows:
        prompt = row.get("prompt", "")
        if not isinstance(prompt, str):
            raise UserError(f"{where}: the prompt is {prompt!r}: give a text")
        names = ["image"] if "image" in row else ["image_0", "image_1"]
        hashes = [reader.add(where, folder, row.get(name), prompt) for name in names]
        if len(hashes) == 2 and hashes[0] != hashes[1]:
            pairs.append(Task(prompt, (hashes[0], hashes[1]), why=str(row.get("why", "listed"))[:200]))
        groups.setdefault(prompt, {}).update(dict.fromkeys(hashes))
        if mode == "segments":
            answers.append(Task(prompt, (hashes[0],), "segments", text=answer_text(row, where), why="listed"))
    by_prompt = {prompt: list(keys) for prompt, keys in groups.items()}
    if mode == "pair":
        listed = any("image_0" in row for _, _, row in rows)
        tasks = pairs if listed else draw_pairs(by_prompt, pairs_per_item, seed)
        if not tasks:
            raise UserError(f"nothing to compare in {source}: give two different pictures for at least one prompt")
        return reader.items, tasks
    if mode == "rank":
        tasks = draw_groups(by_prompt, per_question, seed)
    elif mode == "segments":
        tasks = answers
    else:
        tasks = [
            Task(prompt, (key,), KINDS[mode], criteria=criteria, why="listed")
            for prompt, keys in by_prompt.items()
            for key in keys
        ]
    if not tasks:
        raise UserError(f"nothing to ask in {source}: give pictures, or lines that name some")
    return reader.items, tasks


def answer_text(row: dict[str, object], where: str) -> str:
    """The answer that a row's marks will be about."""
    answer = row.get("answer", row.get("response"))  # the latter is what mmrlhf vlm generate writes
    if not isinstance(answer, str) or not answer.strip() or "image" not in row:
        got = "a pair" if "image" not in row else "no answer" if answer is None else f"the answer {answer!r:.40}"
        raise UserError(
            f'{where} has {got}, --mode segments takes {{"prompt", "image", "answer"}}: give a text to mark'
        )
    return answer


def read_rows(
    source: Path, columns: Sequence[Set[str]] = (frozenset({"image"}), frozenset({"image_0", "image_1"}))
) -> Iterator[tuple[str, Path, dict[str, object]]]:
    """(where, folder that paths start from, row) of each line of a list, or of each picture in a folder.

    A row has one of the sets of `columns`.
    """
    if source.is_dir():
        names = {path.name.lower(): path for path in sorted(source.iterdir())}
        listed = [names[name] for name in LISTS if name in names]
        if not listed:
            for path in list_images(source):
                yield str(path), source, {"image": str(path.resolve())}
            return
        source = listed[0]
    if not source.is_file() or source.suffix.lower() != ".jsonl":
        raise UserError(f"no items at {source}: give a folder of pictures, ITEMS.jsonl or PAIRS.jsonl")
    try:
        lines = source.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{source} is not UTF-8 text ({error.reason}): save it as UTF-8") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{source}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where} is not JSON ({error}): write one JSON object a line") from error
        if not isinstance(row, dict) or not any(names <= set(row) for names in columns):
            raise UserError(
                f'{where} names no picture: write {{"prompt", "image"}} or {{"prompt", "image_0", "image_1"}}'
            )
        yield where, source.parent, row


class Reader:
    """Reads each file once, checks that it is a picture, and gathers the items by content hash."""

    def __init__(self) -> None:
        self.items: Items = {}
        self.hashes: dict[Path, str] = {}

    def add(self, where: str, folder: Path, name: object, prompt: str) -> str:
        """The content hash of the picture `name`, relative to `folder`."""
        if not isinstance(name, str) or not name:
            raise UserError(f"{where}: the picture is {name!r}: give the path of a file")
        path = (folder / name).resolve()
        if path not in self.hashes:
            if not path.is_file():
                raise UserError(f"{where}: no picture {path}: give a path relative to {folder}")
            self.hashes[path] = content_hash(read_picture(path))
        key = self.hashes[path]
        self.items.setdefault(key, (str(path), prompt))
        return key


def read_picture(path: Path) -> bytes:
    """The bytes of a picture file; UserError where it is none, or one that the app would not serve."""
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as picture:
            kind = picture.format
            picture.verify()
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        reason = "no known format" if isinstance(error, UnidentifiedImageError) else error
        raise UserError(f"{path} is not a readable picture ({reason}): give PNG, JPEG or WebP, or remove it") from error
    if media_type(data) is None:
        raise UserError(f"{path} is {kind}, allowed are {', '.join(SUFFIXES)}: convert it to PNG, or remove it")
    return data


def media_type(data: bytes) -> str | None:
    """What a browser is told a picture is, by its first bytes; None where the app does not serve it."""
    return next((name for magic, name in MEDIA_TYPES.items() if data.startswith(magic)), None)


def draw_pairs(groups: dict[str, list[str]], pairs_per_item: int, seed: int) -> list[Task]:
    """Random pairs within each prompt: rings through all its items, so that every item is compared and all are linked."""
    if pairs_per_item < 2:
        raise UserError(f"got {pairs_per_item} pairs per item, allowed is 2 or more: fewer leave the items unlinked")
    shuffle = random.Random(seed)
    rounds = []
    for prompt, keys in groups.items():
        seen: set[frozenset[str]] = set()
        possible = len(keys) * (len(keys) - 1) // 2
        wanted = min(possible, len(keys) * pairs_per_item // 2)
        while len(seen) < wanted:
            for pair in ring(keys, shuffle):
                if frozenset(pair) not in seen and len(seen) < wanted:
                    seen.add(frozenset(pair))
                    rounds.append(Task(prompt, pair, why="random"))
    shuffle.shuffle(rounds)
    return rounds


def ring(keys: Sequence[str], shuffle: random.Random) -> list[tuple[str, str]]:
    """Each item with its neighbours on a random circle."""
    order = list(keys)
    shuffle.shuffle(order)
    return [(order[i], order[i - 1]) for i in range(len(order)) if order[i] != order[i - 1]]


def draw_groups(groups: dict[str, list[str]], per_question: int, seed: int) -> list[Task]:
    """Each prompt's items in random questions of `per_question`; where they do not divide, the last takes some once more."""
    if not 2 <= per_question <= MOST_RANKED:
        raise UserError(f"--per-question got {per_question}, allowed is 2 to {MOST_RANKED}")
    shuffle = random.Random(seed)
    tasks = []
    for prompt, keys in groups.items():
        if len(keys) < per_question:
            raise UserError(
                f"the prompt {prompt!r:.60} has {len(keys)} different pictures, --per-question {per_question} takes as many or "
                "more: give more pictures, or a smaller number"
            )
        order = list(keys)
        shuffle.shuffle(order)
        for start in range(0, len(order), per_question):
            first = min(start, len(order) - per_question)
            tasks.append(Task(prompt, tuple(order[first : first + per_question]), "rank", why="random"))
    shuffle.shuffle(tasks)
    return tasks
