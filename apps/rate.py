"""`mmrlhf rate`: people judge pictures in the browser, and every judgement is in the store before the next one shows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from apps.rate_items import read_questions
from apps.rate_server import bind, judgements, serve, serve_until
from mmrlhf.errors import UserError
from mmrlhf.store import Store

__all__ = ["RateConfig", "rate", "serve", "serve_until"]


@dataclass(frozen=True)
class RateConfig:
    """Collect judgements in a web app; stop it with Ctrl-C, start it again, and it goes on where it was."""

    items: Path
    """A folder of pictures, an ITEMS.jsonl ({"prompt", "image"}) or a PAIRS.jsonl ({"prompt", "image_0", "image_1"})."""
    store: str
    """Where the judgements go: sqlite:///FILE or a path. Keep it outside the folder of pictures."""
    mode: Literal["pair", "rank", "likert", "segments"] = "pair"
    """pair: which of two is better. likert: 1 to 5 for each picture. rank and segments are not built yet."""
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
    mode = config.mode
    if mode == "rank" or mode == "segments":
        raise UserError(f"--mode {mode} is not built yet, allowed are pair, likert")
    for name, value in (("overlap", config.overlap), ("wanted", config.wanted)):
        if value is not None and value < 1:
            raise UserError(f"--{name} got {value}, allowed is 1 or more")
    single = mode == "likert"
    items, tasks = read_questions(config.items, single=single, pairs_per_item=config.pairs_per_item, seed=config.seed)
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
        )
        print(f"{judgements(store, mode)} judgements in {store.name}")
    finally:
        store.close()
