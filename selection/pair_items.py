"""Images with prompts as candidate pairs: each image once a prompt, the pairs within the prompts, and those asked earlier."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from mmrlhf.data import (
    OPTIONAL_PAIR_COLUMNS,
    PAIR_COLUMNS,
    Item,
    check_columns,
    image_of,
    pair_of,
    prompt_of,
    read_items,
    read_rows,
)
from mmrlhf.errors import UserError
from mmrlhf.images import content_hash, list_images
from selection.embed import EmbeddedFiles

MOST_CANDIDATES = 100_000


class Asked(NamedTuple):
    """A pair asked earlier, and the weight of its first image: None where nobody answered, 0.5 a tie."""

    prompt: str
    first: Path
    second: Path
    label: float | None


class Candidates(NamedTuple):
    """Pairs of rows (i, j), i < j; the numbers of those asked earlier, each once; and a row an answer: its number and label."""

    pairs: Int[np.ndarray, "p 2"]
    asked: list[int]
    answered: Int[np.ndarray, " k"]
    labels: Float[np.ndarray, " k"]


class Table(NamedTuple):
    """An image of a prompt a row: its item, numbers of its prompt and of its content, and its embedding."""

    items: list[Item]
    prompts: Int[np.ndarray, " n"]
    images: Int[np.ndarray, " n"]
    embeddings: Float[np.ndarray, "n d"]
    names: dict[str, int]
    hashes: dict[str, int]


def read_list(source: Path) -> list[Item]:
    """The items of an ITEMS.jsonl, of the one in a folder, or the images of a folder as items of the prompt ''."""
    if not source.is_dir():
        return read_items(source)
    listed = [path for path in sorted(source.iterdir()) if path.name.lower() == "items.jsonl"]
    return read_items(listed[0]) if listed else [Item("", image) for image in list_images(source)]


def read_asked(path: Path) -> list[Asked]:
    """Pairs asked earlier, from a PAIRS.jsonl with or without labels."""
    optional = ("label_0", "label_1", "why", *OPTIONAL_PAIR_COLUMNS)
    return list(read_rows(path, ("prompt", "image_0", "image_1"), optional, asked_of))


def asked_of(row: dict[str, Any], folder: Path, where: str) -> Asked:
    """A checked row as a pair."""
    label = None
    if "label_0" in row or "label_1" in row:
        check_columns(row, where, PAIR_COLUMNS, tuple(row))
        pair = pair_of(row, folder, where)
        label = pair.label_0 if pair.has_label else None
    return Asked(
        prompt_of(row, where), image_of(row, "image_0", folder, where), image_of(row, "image_1", folder, where), label
    )


def table_of(items: Sequence[Item], files: EmbeddedFiles) -> Table:
    """The readable items, each different image of a prompt once. UserError unless a prompt has two."""
    row_of = {path: row for row, path in enumerate(files.paths)}
    found: dict[tuple[str, str], tuple[Item, int]] = {}
    for item in items:
        if item.image in row_of:
            row = row_of[item.image]
            found.setdefault((item.prompt, files.hashes[row]), (item, row))
    names = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompt for prompt, _ in found))}
    hashes = {name: number for number, name in enumerate(dict.fromkeys(name for _, name in found))}
    if len(names) == len(found):
        raise UserError(
            f"none of {len(names)} prompts has two different images: give items that share a prompt, to compare them"
        )
    return Table(
        [item for item, _ in found.values()],
        np.array([names[prompt] for prompt, _ in found]),
        np.array([hashes[name] for _, name in found]),
        files.embeddings[[row for _, row in found.values()]],
        names,
        hashes,
    )


def candidates(
    table: Table, earlier: Sequence[Asked], generator: torch.Generator, most: int = MOST_CANDIDATES
) -> Candidates:
    """The pairs within each prompt, and which of them `earlier` asked about.

    All pairs; where these are more than `most`, about as many, drawn alike from every prompt. Earlier pairs are always
    among them; those of images that are not in the table are passed over.
    """
    groups = np.split(np.argsort(table.prompts, kind="stable"), np.cumsum(np.bincount(table.prompts))[:-1])
    sizes = np.array([len(group) * (len(group) - 1) // 2 for group in groups])
    share = int(sizes.max())
    while np.minimum(sizes, share).sum() > most and share > 1:
        share = max(1, share * 3 // 4)
    before = known_pairs(table, earlier)
    pairs = {pair: None for pair, _ in before}
    for group in groups:
        pairs |= dict.fromkeys(drawn_pairs(group, share, generator))
    ordered = sorted(pairs)
    place = {pair: number for number, pair in enumerate(ordered)}
    answers = [(place[pair], label) for pair, label in before if label is not None]
    return Candidates(
        np.array(ordered, dtype=np.int64).reshape(-1, 2),
        list(dict.fromkeys(place[pair] for pair, _ in before)),
        np.array([number for number, _ in answers], dtype=np.int64),
        np.array([label for _, label in answers], dtype=np.float64),
    )


def drawn_pairs(group: Int[np.ndarray, " g"], amount: int, generator: torch.Generator) -> list[tuple[int, int]]:
    """All pairs of some rows, or about `amount` where there are more: each row with others on random circles."""
    count = len(group)
    if count * (count - 1) // 2 <= amount:
        first, second = np.triu_indices(count, 1)
    else:
        order, step = torch.randperm(count, generator=generator).numpy(), np.arange(count)
        circles = -(-amount // count)
        first = np.tile(order, circles)
        second = np.concatenate([order[(step + 1 + jump) % count] for jump in range(circles)])
    low, high = np.minimum(group[first], group[second]), np.maximum(group[first], group[second])
    return list(zip(low.tolist(), high.tolist(), strict=True))


def known_pairs(table: Table, earlier: Sequence[Asked]) -> list[tuple[tuple[int, int], float | None]]:
    """Those earlier pairs of which both images are in the table: (rows, the lower first; the weight of that one)."""
    row_of = {
        (prompt, image): row
        for row, (prompt, image) in enumerate(zip(table.prompts.tolist(), table.images.tolist(), strict=True))
    }
    paths = dict.fromkeys(path for pair in earlier for path in (pair.first, pair.second))
    names = {path: content_hash(path.read_bytes()) for path in paths}
    found: list[tuple[tuple[int, int], float | None]] = []
    for pair in earlier:
        keys = [(table.names.get(pair.prompt), table.hashes.get(names[path])) for path in (pair.first, pair.second)]
        rows = [row_of[key] for key in keys if key in row_of]
        if len(rows) == 2 and rows[0] != rows[1]:
            label = pair.label if pair.label is None or rows[0] < rows[1] else 1 - pair.label
            found.append(((min(rows), max(rows)), label))
    return found
