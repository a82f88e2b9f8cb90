"""Files of prompts with the category of each: PartiPrompts' TSV, GenEval's JSONL, and plain text without any."""

import csv
import io
from pathlib import Path
from typing import Any, NamedTuple

from mmrlhf.data import lines_of, parse_object, prompt_of, read_prompts, read_text
from mmrlhf.errors import UserError

CATEGORY_NAMES = ("category", "tag")


class CategorisedPrompt(NamedTuple):
    """A prompt and what kind of prompt it is, "" where its file does not say."""

    prompt: str
    category: str = ""


def read_categorised(path: Path) -> list[CategorisedPrompt]:
    """The prompts of a file, in order. UserError for a bad row, or a file without prompts.

    .tsv has a header with Prompt and, where it has any, Category (Yu et al. 2022); .jsonl has "prompt" and, where it has any,
    "category" or "tag" (Ghosh et al. 2023) a line; what else is in either is passed over. Any other file has a prompt a line.
    """
    if path.suffix == ".tsv":
        return read_tsv(path)
    if path.suffix == ".jsonl":
        return [entry_of(parse_object(line, where, ["prompt"]), where) for where, line in lines_of(path, ["prompt"])]
    return [CategorisedPrompt(prompt) for prompt in read_prompts(path)]


def read_tsv(path: Path) -> list[CategorisedPrompt]:
    """See `read_categorised`."""
    text = read_text(path, "a file whose first line is Prompt<TAB>Category")
    rows = list(csv.reader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE))
    header = [name.strip().lower() for name in rows[0]] if rows else []
    if "prompt" not in header:
        raise UserError(f"{path} begins with the columns {header}, allowed is Prompt<TAB>Category as its first line")
    found = []
    for number, row in enumerate(rows[1:], start=2):
        if not any(row):
            continue
        named = dict(zip(header, row, strict=False))
        found.append(entry_of(named, f"{path} row {number}"))
    if not found:
        raise UserError(f"no prompt in {path}: write a prompt a line below the first one")
    return found


def entry_of(row: dict[str, Any], where: str) -> CategorisedPrompt:
    """A row by its names, checked."""
    if "prompt" not in row:
        raise UserError(f'{where} lacks prompt: write {{"prompt": …, "tag": …}}')
    prompt = prompt_of(row, where).strip()
    if not prompt:
        raise UserError(f"{where}: prompt is empty: write a text, or remove the row")
    category = next((row[name] for name in CATEGORY_NAMES if row.get(name)), "")
    if not isinstance(category, str):
        raise UserError(f"{where}: the category got {category!r:.80}, allowed is a text: put it in quotes")
    return CategorisedPrompt(prompt, category.strip())
