"""`mmrlhf rate`: people judge pictures in the browser, and every judgement is in the store before the next one shows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from apps.rate_items import Mode, read_questions
from apps.rate_server import bind, judgements, serve, serve_until
from mmrlhf.errors import UserError
from mmrlhf.store import Store

__all__ = ["RateConfig", "rate", "serve", "serve_until"]


@dataclass(frozen=True)
class RateConfig:
    """Collect judgements in a web app; stop it with Ctrl-C, start it again, and it goes on where it was."""

    items: Path
    """A folder of pictures, an ITEMS.jsonl ({"prompt", "image"}; for segments with "answer", too) or a PAIRS.jsonl ({"prompt",
    "image_0", "image_1"})."""
    store: str
    """Where the judgements go: sqlite:///FILE or a path. Keep it outside the folder of pictures."""
    mode: Literal["pair", "rank", "likert", "segments", "points"] = "pair"
    """pair: which of two is better. rank: several in order. likert: 1 to 5 for each picture. segments: which words of an answer
    about a picture are correct, misleading or irrelevant. points: where in a picture something is."""
    criteria: tuple[str, ...] = ()
    """Of likert: 1 to 5 by each of these, e.g. quality "prompt fit" safety; without, one level overall."""
    per_question: int = 4
    """Of rank: how many pictures of a prompt are put in order at once (2 to 6)."""
    tags: tuple[str, ...] = ("artifact", "misaligned")
    """Of points: what there may be to point at (1 to 9)."""
    host: str = "127.0.0.1"
    """0.0.0.0 lets others on the network in. Names are taken on trust: put a proxy with a login before it on the internet."""
    port: int = 7860
    """0 takes any free one."""
    overlap: int = 1
    """How many raters answer each question; from 2 on, their agreement can be measured."""
    annotator_names: tuple[str, ...] = ()
    """Only these names may rate; any name without."""
    instructions: str = ""
    """What raters should judge by, shown at the start and above the pictures."""
    pairs_per_item: int = 4
    """Without a PAIRS.jsonl: how many others of the same prompt each picture meets (2 or more)."""
    wanted: int | None = None
    """Stop by itself when the store holds this many judgements, or every question has all its votes."""
    seed: int = 0
    """Which random pairs are asked."""


def rate(config: RateConfig) -> None:
    """Register the items, queue the questions, and serve the app until Ctrl-C or until `wanted` judgements are in."""
    check(config)
    mode: Mode = "criteria" if config.criteria else config.mode
    items, tasks = read_questions(
        config.items,
        mode,
        pairs_per_item=config.pairs_per_item,
        per_question=config.per_question,
        criteria=config.criteria,
        seed=config.seed,
    )
    bind(config.host, config.port).close()  # before a store is made
    store = Store(config.store)
    try:
        store.add_items(items)
        store.add_tasks(tasks)
        print(f"{len(items)} pictures, {len(tasks)} questions from {config.items}", flush=True)
        serve(
            store,
            host=config.host,
            port=config.port,
            wanted=config.wanted,
            mode=mode,
            overlap=config.overlap,
            annotator_names=config.annotator_names,
            instructions=config.instructions,
            tags=config.tags,
        )
        print(f"{judgements(store, mode)} judgements in {store.name}")
    finally:
        store.close()


def check(config: RateConfig) -> None:
    """UserError for options that cannot be, or do not go together."""
    for name, value in (("overlap", config.overlap), ("wanted", config.wanted)):
        if value is not None and value < 1:
            raise UserError(f"--{name} got {value}, allowed is 1 or more")
    if config.criteria and config.mode != "likert":
        raise UserError(f"--criteria goes with --mode likert, got {config.mode}: leave one of the two out")
    most = 9  # one key each
    for name, words in (("criteria", config.criteria), ("tags", config.tags)):
        if len(words) > most or len(set(words)) < len(words) or not all(0 < len(word.strip()) <= 60 for word in words):
            raise UserError(
                f"--{name} got {list(words)!r:.80}, allowed are up to {most} different names of 1 to 60 letters"
            )
    if config.mode == "points" and not config.tags:
        raise UserError("--tags got none, allowed are 1 or more: give what there is to point at")
