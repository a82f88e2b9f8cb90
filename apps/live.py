"""Live selection: while ratings come in, the open questions that would teach a scorer most are asked next."""

import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from apps.rate_items import Items
from mmrlhf.errors import UserError
from mmrlhf.store import Store, Task
from selection.bradley_terry import draw_margins, fit_head, principal
from selection.embed import Embedder, embed_files
from selection.files import read_embeddings
from selection.pair_features import pair_differences
from selection.pairs import choose_pairs
from selection.uncertainty import MEASURES, MeasureName

POLL_SECONDS = 0.5
MEMBERS = 16


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
    """Within the `with` block a thread looks for new answers: after every `every` of them it fits a Bradley–Terry head to all
    ratings, and puts those open questions first on which an answer says most, spread over what pairs differ in.

    Before there is a rating, they are spread only. Questions that somebody has before them stay as they are. What goes
    wrong in it is told on the console once, and the questions go on in the order that they have.
    """

    def __init__(
        self,
        store: Store,
        keys: Sequence[str],
        embeddings: Float[np.ndarray, "n d"],
        measure: MeasureName,
        *,
        every: int = 20,
        overlap: int = 1,
        seed: int = 0,
    ) -> None:
        self.store, self.measure, self.every, self.overlap = store, measure, every, overlap
        self.features = principal(embeddings)
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
        free = [task for task in self.store.free_tasks(self.overlap) if set(task.items) <= self.row_of.keys()]
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
        differences = self.differences([(task.item_0, task.item_1) for task in free])
        names = {prompt: number for number, prompt in enumerate(dict.fromkeys(task.prompt for task in free))}
        prompts = torch.tensor([names[task.prompt] for task in free])
        cap = max(2, 4 * self.every // len(names) + 1)
        available = int(prompts.unique(return_counts=True)[1].clamp(max=cap).sum())
        choice = choose_pairs(
            torch.from_numpy(differences),
            self.scores(differences),
            min(2 * self.every, available),
            per_prompt_cap=cap,
            prompt_ids=prompts,
            generator=self.generator,
        )
        return list(zip(choice.indices, choice.why, strict=True))

    def scores(self, differences: Float[np.ndarray, "p d"]) -> Float[torch.Tensor, " p"] | None:
        """How unsure the head that is fitted to the ratings so far is of each pair; None before there are any."""
        rated = [rating for rating in self.store.preferences() if set(rating.items) <= self.row_of.keys()]
        if not rated:
            return None
        labels = np.array([rating.label for rating in rated])
        head = fit_head(self.differences([rating.items for rating in rated]), labels)
        return MEASURES[self.measure](torch.from_numpy(draw_margins(head, differences, MEMBERS, self.generator)))

    def differences(self, pairs: Sequence[tuple[str, ...]]) -> Float[np.ndarray, "p d"]:
        """What the items of each pair differ in."""
        rows = np.array([[self.row_of[key] for key in pair] for pair in pairs])
        return pair_differences(self.features, rows)
