"""`mmrlhf rate`: people judge pictures in the browser, and every judgement is in the store before the next one shows."""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from apps.owner_token import owner_of_environment
from apps.rate_checks import Checks
from apps.rate_clock import Clock
from apps.rate_examples import read_examples
from apps.rate_gold import read_gold
from apps.rate_items import KINDS, Items, Mode, read_questions
from apps.rate_server import judgements, serve, serve_until
from mmrlhf.errors import UserError
from mmrlhf.sockets import bind
from mmrlhf.store import Store, accounts, store_exists
from mmrlhf.store.accounts import Access
from mmrlhf.store.checks import add_checks

__all__ = ["RateConfig", "rate", "serve", "serve_until"]


NO_ACCOUNTS = (
    "--access accounts got a store without accounts: make some with `mmrlhf accounts add` or `mmrlhf accounts invite`"
)
LIVE_MODES = ("pair", "rank", "likert")  # whose answers a scorer of pictures learns from


@dataclass(frozen=True)
class RateConfig:
    """Collect judgements in a web app; stop it with Ctrl-C, start it again, and it goes on where it was."""

    items: Path
    """A folder of pictures, an ITEMS.jsonl ({"prompt", "image"}; for segments with "answer", too) or a PAIRS.jsonl ({"prompt",
    "image_0", "image_1"})."""
    store: str
    """Where the judgements go: sqlite:///FILE, a path or postgresql://USER@HOST/NAME; a file outside the folder of pictures."""
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
    """0.0.0.0 lets others on the network in. On the internet use --access accounts behind a proxy that speaks https."""
    port: int = 7860
    """0 takes any free one."""
    overlap: int = 1
    """How many raters answer each question; from 2 on, their agreement can be measured."""
    access: Access = "names"
    """names: taken on trust. accounts: only with the password or the link that `mmrlhf accounts` made in the store."""
    annotator_names: tuple[str, ...] = ()
    """Only these names may rate; any name without."""
    instructions: str = ""
    """What raters should judge by, shown at the start and above the pictures."""
    examples: Path | None = None
    """Pictures that show it, beside the instructions: a folder, whose files' names are shown with them, or a JSONL file
    ({"image", "caption", "better": true or false})."""
    pairs_per_item: int = 4
    """Without a PAIRS.jsonl: how many others of the same prompt each picture meets (2 or more)."""
    wanted: int | None = None
    """Stop by itself when the store holds this many judgements, or every question has all its votes."""
    live: Literal["none", "v-optimal", "bald", "margin", "disagreement"] = "none"
    """Of pair, rank and likert: ask those questions first whose answer would teach a scorer most, which learns from the ratings
    as they come in. v-optimal: whose answers tell most of all the others. bald: where it is unsure of itself. disagreement: as
    bald, by how far its opinions spread. margin: the nearest to a tie, not of likert."""
    refresh_every: int = 20
    """Of --live: after how many new answers it learns anew."""
    embeddings: Path | None = None
    """Of --live: a .npy file with a row for each different picture, in the order of the items; tiny-clip's without."""
    gold: Path | None = None
    """Check questions, whose answer is known, mixed in for each rater: a PAIRS.jsonl with labels, or with "expected": left,
    right or tie; an ITEMS.jsonl with "score" or "scores", and "tolerance"; of rank "images" with "ranks"."""
    gold_every: int = 10
    """Of --gold: one in so many questions is a check, at a random place (2 or more)."""
    gold_minimum: float = 0.7
    """Of --gold: who surely passes less than this share of the checks, after 5 or more, gets no more questions. 0: nobody."""
    repeat_every: int = 0
    """Of pair: one in so many questions is a pair that the rater answered 10 or more before, its sides swapped. 0: none."""
    time_limit: float = 0.0
    """Seconds for a question, then it is skipped. 0: any time."""
    min_seconds: float = 0.0
    """Answers that came faster are kept, and flagged as too fast."""
    session_minutes: float = 0.0
    """After so many minutes the page proposes a break. 0: never."""
    seed: int = 0
    """Which random pairs are asked, and where the checks are."""


def rate(config: RateConfig) -> None:
    """Register the items, queue the questions, and serve the app until Ctrl-C or until `wanted` judgements are in."""
    check(config)
    clock = Clock(config.time_limit, config.min_seconds, config.session_minutes)
    clock.check()
    owner = owner_of_environment()
    mode: Mode = "criteria" if config.criteria else config.mode
    items, tasks = read_questions(
        config.items,
        mode,
        pairs_per_item=config.pairs_per_item,
        per_question=config.per_question,
        criteria=config.criteria,
        seed=config.seed,
    )
    gold_items, gold = read_gold(config.gold, mode, config.criteria) if config.gold is not None else ({}, [])
    examples = read_examples(config.examples) if config.examples is not None else ()
    bind(config.host, config.port).close()  # before a store is made
    chooser = chooser_of(config, items)
    store = Store(config.store)
    try:
        check_accounts(store, config.access)
        store.add_items(gold_items | items)  # a picture's own prompt is that of --items
        store.add_tasks(tasks)
        add_checks(store, gold)
        checks = f", {len(gold)} check questions from {config.gold}" if gold else ""
        print(f"{len(items)} pictures, {len(tasks)} questions from {config.items}{checks}", flush=True)
        with chooser(store):
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
                access=config.access,
                owner=owner,
                checks=checks_of(config, tuple(each.task.key for each in gold)),
                clock=clock,
                examples=examples,
            )
        print(f"{judgements(store, mode)} judgements in {store.name}")
    finally:
        store.close()


def checks_of(config: RateConfig, keys: tuple[str, ...] = ()) -> Checks:
    """What is mixed in among the questions; UserError for numbers that cannot be."""
    checks = Checks(keys, config.gold_every, config.gold_minimum, config.repeat_every, config.seed)
    checks.check()
    return checks


def chooser_of(config: RateConfig, items: Items) -> Callable[[Store], AbstractContextManager[object]]:
    """What chooses the next questions while the app runs, on a store that is open; nothing without `--live`."""
    if config.live == "none":
        return lambda store: nullcontext()
    from apps.live import LiveSelection, embeddings_of  # imports models

    return partial(
        LiveSelection,
        keys=list(items),
        embeddings=embeddings_of(items, config.embeddings),
        measure=config.live,
        kind=KINDS["criteria" if config.criteria else config.mode],
        every=config.refresh_every,
        overlap=config.overlap,
        seed=config.seed,
    )


def check(config: RateConfig) -> None:
    """UserError for options that cannot be, or do not go together."""
    for name, value in (
        ("overlap", config.overlap),
        ("wanted", config.wanted),
        ("refresh-every", config.refresh_every),
    ):
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
    checks_of(config)
    if config.repeat_every and config.mode != "pair":
        raise UserError(f"--repeat-every goes with --mode pair, got {config.mode}: leave one of the two out")
    if config.live != "none" and config.mode not in LIVE_MODES:
        raise UserError(f"--live goes with --mode {', '.join(LIVE_MODES)}, got {config.mode}: leave one of the two out")
    if config.live == "margin" and config.mode == "likert":
        raise UserError(
            "--live margin asks about what is nearest to a tie, got --mode likert: give v-optimal, bald or disagreement"
        )
    if config.embeddings is not None and config.live == "none":
        raise UserError("--embeddings goes with --live, got none: give --live v-optimal, or leave it out")
    if config.access == "accounts" and not store_exists(config.store):
        raise UserError(NO_ACCOUNTS)
    if config.mode == "points" and not config.tags:
        raise UserError("--tags got none, allowed are 1 or more: give what there is to point at")


def check_accounts(store: Store, access: Access) -> None:
    """UserError where nobody could come in; a word to the owner where accounts are there, and not asked for."""
    there = len(accounts.accounts(store))
    if access == "accounts" and not there:
        raise UserError(NO_ACCOUNTS)
    if access == "names" and there:
        print(
            f"the store has {there} accounts, and names are taken on trust all the same: --access accounts asks for passwords",
            file=sys.stderr,
            flush=True,
        )
