"""Questions about the rater among those of the queue: checks whose answer is known, and pairs asked twice.

Each stands at a random place of every block of so many questions, drawn for each rater, so that nothing but the store knows it.
"""

import functools
import hashlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from mmrlhf.errors import UserError
from mmrlhf.rater_quality import fails_checks
from mmrlhf.store import Kind, Store, Task
from mmrlhf.store.checks import Seen, check_results, release, seen
from mmrlhf.store.records import repeat_key

APART = 10  # a pair comes again so many questions later, or more
AHEAD = 2  # questions that a page gets: the one to answer, and the one to load


@dataclass(frozen=True)
class Checks:
    """What is mixed in: the check questions of these keys, and pairs asked twice; 0 is without."""

    keys: tuple[str, ...] = ()
    every: int = 10
    minimum: float = 0.7
    repeat_every: int = 0
    seed: int = 0

    def check(self) -> None:
        """UserError for numbers that cannot be."""
        if self.every < 2:
            raise UserError(f"--gold-every got {self.every}, allowed is 2 or more")
        if not 0 <= self.minimum <= 1:
            raise UserError(f"--gold-minimum got {self.minimum}, allowed is 0 (nobody is sent away) to 1")
        if self.repeat_every < 0 or self.repeat_every == 1:
            raise UserError(f"--repeat-every got {self.repeat_every}, allowed is 2 or more, or 0 for none")

    def slot(self, annotator: str, place: int) -> str:
        """What a rater's question number `place`, from 0, is meant to be: check, repeat, or one of the queue."""
        if self.keys and place % self.every == drawn(self.seed, annotator, "check", place // self.every, self.every):
            return "check"
        every = self.repeat_every
        if every and place % every == drawn(self.seed, annotator, "repeat", place // every, every):
            return "repeat"
        return "queue"

    def in_order(self, annotator: str, keys: Sequence[str]) -> list[str]:
        """The keys shuffled for one rater."""
        return sorted(keys, key=lambda key: digest(self.seed, annotator, key))


NO_CHECKS = Checks()


class Turn(NamedTuple):
    """What a rater's page gets: the question to answer and the next one, and how far they are; `stopped` for good."""

    tasks: list[Task]
    answered: int
    total: int
    stopped: bool = False


def turn_of(store: Store, checks: Checks, annotator: str, overlap: int, kind: Kind) -> Turn:
    """The next questions of a rater, the same when asked again; none after too many wrong answers to checks."""
    if not checks.keys and not checks.repeat_every:
        tasks = store.next_tasks(annotator, overlap, AHEAD, kind=kind)
        progress = store.progress(annotator, overlap, kind=kind)
        answered = progress.voted + progress.skipped
        return Turn(tasks, answered, answered + progress.open)
    history = seen(store, annotator, kind)
    if fails_checks(*check_results(store, annotator).get(annotator, (0, 0)), checks.minimum):
        release(store, annotator)
        return Turn([], len(history), len(history), stopped=True)
    queue = store.next_tasks(annotator, overlap, AHEAD, kind=kind)
    still_open = store.progress(annotator, overlap, kind=kind).open
    tasks = mixed(store, checks, annotator, history, queue)
    return Turn(tasks, len(history), len(history) + to_come(checks, annotator, history, still_open))


def mixed(store: Store, checks: Checks, annotator: str, history: list[Seen], queue: list[Task]) -> list[Task]:
    """The next two questions; a check or a repeat comes only while the queue has some to hide it among."""
    waiting = deque(queue)
    known = {each.task for each in history}
    unasked = deque(checks.in_order(annotator, [key for key in checks.keys if key not in known]))
    found: list[Task] = []
    for ahead in range(AHEAD):
        if not waiting:
            break
        slot = checks.slot(annotator, len(history) + ahead)
        task = None
        if slot == "check" and unasked:
            task = store.task(unasked.popleft())
        elif slot == "repeat":
            task = repeat(store, checks, annotator, history, ahead, known)
        found.append(task or waiting.popleft())
        known.add(found[-1].key)
    return found


def repeat(
    store: Store, checks: Checks, annotator: str, history: list[Seen], ahead: int, known: set[str]
) -> Task | None:
    """A pair that the rater chose from long enough ago, as a question of its own; None where there is none."""
    ago = history[max(0, APART - 1 - ahead) :]
    keys = [each.task for each in ago if may_repeat(each) and repeat_key(each.task) not in known]
    first = store.task(min(keys, key=lambda key: digest(checks.seed, annotator, key))) if keys else None
    if first is None:
        return None
    again = replace(first, kind="repeat", priority=0.0, why="asked again")
    if store.task(again.key) is None:
        store.add_tasks([again])
    return again


def may_repeat(each: Seen) -> bool:
    """Whether it was a pair of the queue, and was answered."""
    return each.asked == each.answer == "pair" and not each.is_check


def to_come(checks: Checks, annotator: str, history: list[Seen], still_open: int) -> int:
    """How many questions a rater has before them: those of the queue, and what will be mixed in among them."""
    known = {each.task for each in history}
    unasked = sum(key not in known for key in checks.keys)
    count = len(history)
    again = deque(
        count - 1 - ago
        for ago, each in reversed(list(enumerate(history)))
        if may_repeat(each) and repeat_key(each.task) not in known
    )
    place, left = count, still_open
    while left:
        slot = checks.slot(annotator, place)
        if slot == "check" and unasked:
            unasked -= 1
        elif slot == "repeat" and again and again[0] <= place - APART:
            again.popleft()
        else:
            left -= 1
            again.append(place)
        place += 1
    return place - count


@functools.lru_cache(maxsize=100_000)
def drawn(seed: int, annotator: str, what: str, block: int, size: int) -> int:
    """A place within a block, evenly drawn, the same at every call."""
    return int.from_bytes(digest(seed, annotator, what, block)[:8], "big") % size


def digest(*parts: object) -> bytes:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
