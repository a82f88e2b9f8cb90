"""Live selection: while ratings come in, the open questions that would teach a scorer most are asked next."""

import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int

from apps.live_answers import ANSWERS, PICTURES
from apps.rate_items import Items
from mmrlhf.errors import UserError
from mmrlhf.store import Kind, Store, Task
from selection.bradley_terry import Head, draw_margins, fit_head, principal, ridge_of
from selection.choice import Choice
from selection.embed import Embedder, embed_files
from selection.files import read_embeddings
from selection.pair_features import pair_differences
from selection.pairs import choose_pairs
from selection.sets import choose_sets, v_optimal_sets
from selection.uncertainty import MEASURES, MeasureName
from selection.v_optimal import v_optimal

POLL_SECONDS = 0.5
MEMBERS = 16
LiveName = MeasureName | Literal["v-optimal"]


def embeddings_of(items: Items, file: Path | None) -> Float[np.ndarray, "n d"]:
    """A row a picture, in the order of the items: from a file, or by tiny-clip, with a progress bar."""
    if file is None:
        paths = [Path(path) for path, _ in items.values()]
        files = embed_files(paths, Embedder("tiny-clip"))
        if files.unreadable:
            raise UserError(f"cannot embed {next(iter(files.unreadable.values()))}: remove that picture")
        return files.embeddings
    embeddings = np.asarray(read_embeddings(file))
    if len(embeddings) != len(items):
        raise UserError(
            f"{file} has {len(embeddings)} rows, allowed is {len(items)}: one for each different picture, in their order"
        )
    if not np.isfinite(embeddings).all():
        raise UserError(f"{file} holds NaN or infinity: embed those pictures again")
    return embeddings


class LiveSelection:
    """Within the `with` block a thread looks for new answers: after every `every` of them it fits a head to all ratings of the
    `kind`, and puts those open questions first on which an answer says most, spread over what they are about.

    A pair is what its two pictures differ in (Bradley and Terry), a ranking the pairs of its pictures, a picture that gets levels
    itself and a constant. Before there is a rating, questions are spread only. Those that somebody has before them stay as they
    are. What goes wrong in it is told on the console once, and the questions go on in the order that they have.
    """

    def __init__(
        self,
        store: Store,
        keys: Sequence[str],
        embeddings: Float[np.ndarray, "n d"],
        measure: LiveName,
        *,
        kind: Kind = "pair",
        every: int = 20,
        overlap: int = 1,
        seed: int = 0,
    ) -> None:
        self.kind: Kind = kind
        self.store, self.measure, self.every, self.overlap = store, measure, every, overlap
        self.features = principal(embeddings)
        if kind in PICTURES:
            self.features = np.column_stack([self.features, np.ones(len(embeddings))])
        self.row_of = {key: row for row, key in enumerate(keys)}
        self.generator = torch.Generator().manual_seed(seed)
        self.raised: dict[str, Task] = {}  # those put first, as they were before
        self.seen, self.told = 0, False
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def __enter__(self) -> "LiveSelection":
        self.attempt()  # the first rater meets chosen questions, too
        self.thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.stopped.set()
        self.thread.join()

    def run(self) -> None:
        """Until the end: look whether enough answers are new."""
        while not self.stopped.wait(POLL_SECONDS):
            self.attempt(self.every)

    def attempt(self, least: int = 0) -> None:
        """Choose anew, if there are as many new answers; whatever goes wrong, the app goes on."""
        try:
            newest = self.store.newest()
            if newest - self.seen >= least:
                self.seen = newest
                self.refresh()
        except Exception as error:
            if not self.told:
                reason = " ".join(str(error).split()) or type(error).__name__
                print(
                    f"mmrlhf rate: --live could not choose ({reason}): the questions go on in the order they have",
                    file=sys.stderr,
                    flush=True,
                )
            self.told = True

    def refresh(self) -> None:
        """Fit, and put those open questions first whose answer is worth most; those put first before get their place back."""
        free = [
            task
            for task in self.store.free_tasks(self.overlap, kind=self.kind)
            if set(task.items) <= self.row_of.keys()
        ]
        if not free:
            return
        before = [self.raised.get(task.key, task) for task in free]
        chosen = self.choose(free)
        top = max(task.priority for task in before) + 1
        lifted = {
            free[place].key: replace(free[place], priority=top + 1 - number / len(chosen), why=why)
            for number, (place, why) in enumerate(chosen)
        }
        lowered = [task for task in before if task.key in self.raised and task.key not in lifted]
        self.store.add_tasks([*lifted.values(), *lowered])
        away = {task.key for task in free}  # those that somebody has now keep their place, and what is known of it
        self.raised = {key: task for key, task in self.raised.items() if key not in away}
        self.raised |= {task.key: task for task in before if task.key in lifted}

    def choose(self, free: Sequence[Task]) -> list[tuple[int, str]]:
        """(place in `free`, why) of what to ask next, the first first: enough until the next time."""
        about = [self.about(task.items) for task in free]
        rows, sets = np.concatenate(about), places_of(about)
        said = [answer for answer in ANSWERS[self.kind](self.store) if set(answer.items) <= self.row_of.keys()]
        answered = np.concatenate([self.about(answer.items) for answer in said]) if said else rows[:0]
        head = fit_head(answered, np.array([answer.label for answer in said])) if said else None
        budget = min(2 * self.every, len(free))
        if self.measure == "v-optimal":
            choice = by_design(rows, sets, answered, head, budget, self.generator)
        elif self.kind == "rank":
            choice = choose_sets(rows, sets, self.scores(rows, head), budget, generator=self.generator)
        else:
            return self.by_measure(free, rows, self.scores(rows, head))
        return list(zip(choice.indices.tolist(), choice.why, strict=True))

    def by_measure(
        self, free: Sequence[Task], rows: Float[np.ndarray, "p d"], scores: Float[torch.Tensor, " p"] | None
    ) -> list[tuple[int, str]]:
        """The same of questions that are a row each: the measure × the distance, spread over prompts, too."""
        names = {prompt: number for number, prompt in enumerate(dict.fromkeys(task.prompt for task in free))}
        prompts = torch.tensor([names[task.prompt] for task in free])
        cap = max(2, 4 * self.every // len(names) + 1)
        available = int(prompts.unique(return_counts=True)[1].clamp(max=cap).sum())
        choice = choose_pairs(
            torch.from_numpy(rows),
            scores,
            min(2 * self.every, available),
            per_prompt_cap=cap,
            prompt_ids=prompts,
            generator=self.generator,
        )
        why = [each.replace("pair", "picture") if self.kind in PICTURES else each for each in choice.why]
        return list(zip(choice.indices, why, strict=True))

    def scores(self, rows: Float[np.ndarray, "p d"], head: Head | None) -> Float[torch.Tensor, " p"] | None:
        """How unsure the head that is fitted to the ratings so far is of each row; None before there is one."""
        if head is None or self.measure == "v-optimal":
            return None
        return MEASURES[self.measure](torch.from_numpy(draw_margins(head, rows, MEMBERS, self.generator)))

    def about(self, items: Sequence[str]) -> Float[np.ndarray, "r d"]:
        """What an answer is about: a picture, or what every two of several differ in, in the order of `combinations`."""
        places = np.array([self.row_of[key] for key in items])
        if len(places) == 1:
            return self.features[places]
        first, second = np.triu_indices(len(places), 1)
        return pair_differences(self.features, np.column_stack([places[first], places[second]]))


def places_of(about: Sequence[Float[np.ndarray, "_ d"]]) -> Int[np.ndarray, "s k"]:
    """The numbers of each question's rows, when all are put below each other; -1 where it has fewer than others."""
    sets = np.full((len(about), max(map(len, about))), -1)
    start = 0
    for number, own in enumerate(about):
        sets[number, : len(own)] = range(start, start + len(own))
        start += len(own)
    return sets


def by_design(
    rows: Float[np.ndarray, "r d"],
    sets: Int[np.ndarray, "s k"],
    answered: Float[np.ndarray, "a d"],
    head: Head | None,
    budget: int,
    generator: torch.Generator,
) -> Choice:
    """The questions whose answers leave the head least unsure about all of them, and about what was answered."""
    pool = np.concatenate([rows, answered])
    prior: dict[str, Any] = {"already": range(len(rows), len(pool))}
    if head is not None:
        prior |= {"margins": pool @ head.weights, "ridge": ridge_of(head, pool)}
    if sets.shape[1] > 1:
        return v_optimal_sets(pool, sets, budget, **prior)
    return v_optimal(pool, budget, generator=generator, **prior)
