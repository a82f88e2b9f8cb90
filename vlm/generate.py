"""`mmrlhf vlm generate`: a model's answers to a file of questions about images."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mmrlhf.config import check, check_seed
from mmrlhf.data import SURROGATES, image_of, relative
from mmrlhf.errors import UserError
from mmrlhf.rewards.language.inputs import Row
from vlm.benchmarks.answers import read_records
from vlm.policy import Answers, VisionLanguagePolicy
from vlm.preference_data import check_pictures
from vlm.value_heads import VALUES, ValueHeads, generate_with_values

ASKED = ("prompt", "query", "question", "text")
ADDRESSES = ("image_src", "image_url")
"""Columns of benchmarks that say where a picture can be had (MMHal-Bench has the first)."""


@dataclass(frozen=True)
class GenerateConfig:
    """Answer questions about images."""

    model: str
    """tiny-llava, the folder of a vision-language model, or a hub id."""
    prompts: Path
    """JSON list, or an object a line: {"image", "prompt"} (or query, question, text, as benchmarks have it) and maybe "id"."""
    out: Path
    """File for the answers, an object a line: the question's own columns, with "response" and, where there is none, "id": the
    "question_id", or the question's number from 1."""
    adapter: Path | None = None
    """Folder of LoRA weights to answer with; values that mmrlhf vlm ilql left there, or with --model, are followed."""
    adapter_scale: float = 1.0
    """How much of these: 1 is all, less lies between the model without them and with them, and often forgets less for the same
    gain (to other programs, lora_alpha in adapter_config.json times this is the same)."""
    images: Path | None = None
    """Folder that images are relative to; None is that of --prompts."""
    batch_size: int = 16
    """Questions answered at a time."""
    max_new_tokens: int = 256
    """Where an answer is cut."""
    temperature: float = 0.0
    """0 takes the likeliest token each time, 1 draws from the model's own distribution."""
    samples: int = 1
    """Answers a question."""
    value_weight: float | None = None
    """How strongly such values are followed; None is what their run says, 0 leaves them out."""
    dtype: str = "float32"
    """float32 or bfloat16."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 …"""
    seed: int = 0
    """Same seed, same answers."""
    resume: bool = False
    """Go on with a command that was stopped."""


def generate(config: GenerateConfig) -> None:
    """Write a line a question and sample, in order; what a stopped command had is kept in OUT.part until it is whole."""
    for name in ("batch_size", "max_new_tokens", "samples"):
        check(config, name, lambda value: value >= 1, "1 or more")
    check(config, "temperature", lambda value: value >= 0, "0 or more")
    check(config, "adapter_scale", lambda value: value > 0, "above 0; leave --adapter out for none of it")
    if config.adapter is None and config.adapter_scale != 1:
        raise UserError(
            f"--adapter-scale got {config.adapter_scale:g}, but there is no --adapter: give one, or leave it out"
        )
    if config.value_weight is not None:
        check(config, "value_weight", lambda value: value >= 0, "0 or more, or leave it out")
    check_seed(config.seed)
    questions = [
        (located(columns, row, config.out), row) for columns, row in read_questions(config.prompts, config.images)
    ]
    if config.out.is_dir():
        raise UserError(f"--out {config.out} is a folder: give the name of a file to write")
    if config.out.exists() and not config.resume:
        raise UserError(f"--out {config.out} is there already: give another name, or remove it")
    part = config.out.with_name(f"{config.out.name}.part")
    done = kept_lines(part, config) if config.resume else []
    policy = VisionLanguagePolicy.load(
        config.model,
        adapter=config.adapter,
        adapter_scale=config.adapter_scale,
        device=config.device,
        dtype=config.dtype,
    )
    answer = answering(policy, config)
    check_questions(policy, [row for _, row in questions])
    wanted = [
        (columns if config.samples == 1 else columns | {"sample": sample}, row)
        for columns, row in questions
        for sample in range(config.samples)
    ]
    part.parent.mkdir(parents=True, exist_ok=True)
    with part.open("w", encoding="utf-8") as file, tqdm(total=len(wanted), initial=len(done), desc="answer") as bar:
        file.write("".join(done))
        for first in range(len(done), len(wanted), config.batch_size):
            batch = wanted[first : first + config.batch_size]
            answers = answer(
                [row for _, row in batch], seed=config.seed * 1_000_003 + first, max_new_tokens=config.max_new_tokens,
                temperature=config.temperature,
            )  # fmt: skip
            for (columns, _), text in zip(batch, answers.texts, strict=True):
                file.write(json.dumps(columns | {"response": text}, ensure_ascii=False) + "\n")
            file.flush()
            bar.update(len(batch))
    part.replace(config.out)
    print(f"{len(wanted)} answers are in {config.out}")


def check_questions(policy: VisionLanguagePolicy, rows: Sequence[Row]) -> None:
    """UserError for a picture that cannot be read, and a question that leaves no room for an answer."""
    check_pictures(rows)
    lengths, limit = policy.reader.lengths(rows), policy.reader.max_length
    if long := sum(length >= limit for length in lengths):
        raise UserError(
            f"{long} of {len(rows)} questions leave no room for an answer in the {limit} tokens that the model reads (the "
            f"longest has {max(lengths)}, its picture included): shorten them"
        )


def answering(policy: VisionLanguagePolicy, config: GenerateConfig) -> Callable[..., Answers]:
    """The policy's `generate`, or, where values lie beside its weights, that which follows them.

    UserError where they do not fit the model, or there are none but --value-weight is given.
    """
    folder = config.adapter or Path(config.model)
    if (folder / VALUES).is_file():
        heads, weight = ValueHeads.load(folder, policy)
        given = weight if config.value_weight is None else config.value_weight
        return partial(generate_with_values, policy, heads, weight=given)
    if config.value_weight is not None:
        raise UserError(
            f"--value-weight got {config.value_weight:g}, but {folder} holds no {VALUES}: give the folder of a vlm ilql run, or "
            "leave it out"
        )
    return policy.generate


def located(columns: dict[str, Any], row: Row, out: Path) -> dict[str, Any]:
    """The columns with the picture's path relative to the file that is written."""
    return columns | {"image": relative(row.image, out)} if isinstance(row.image, Path) else columns


def kept_lines(part: Path, config: GenerateConfig) -> list[str]:
    """The whole batches of answers that a stopped command left."""
    if not part.exists():
        return []
    lines = [line + "\n" for line in part.read_text(encoding="utf-8").split("\n")[:-1]]
    return lines[: len(lines) // config.batch_size * config.batch_size]


def read_questions(path: Path, images: Path | None) -> list[tuple[dict[str, Any], Row]]:
    """(the columns to write with the answer, the question) of each row. UserError names the bad row."""
    rows = []
    for number, (where, columns) in enumerate(read_records(path, "a JSON list of questions, or an object a line"), 1):
        name = next((name for name in ASKED if isinstance(columns.get(name), str)), None)
        if name is None:
            raise UserError(f"{where} has no question: give a text as {', '.join(ASKED)}")
        if SURROGATES.search(columns[name]):
            raise UserError(
                f"{where}: {name} got {columns[name]!r:.60}, half of a surrogate pair: write whole characters"
            )
        if not columns.get("image") and (named := [name for name in ADDRESSES if columns.get(name)]):
            raise UserError(
                f"{where} has no image, but {named[0]} {columns[named[0]]!r:.60}: download that, and name the file as image"
            )
        image = image_of(columns, "image", images or path.parent, where) if columns.get("image") else None
        kept = {key: value for key, value in columns.items() if key not in ("answer", "response")}
        rows.append(({"id": columns.get("question_id", number)} | kept, Row(columns[name], None, image)))
    return rows
