"""Running counts of a store's questions and answers: each is read once, so that progress costs what is new, not what is there."""

import threading
from collections import Counter, defaultdict

import sqlalchemy as sa

from mmrlhf.store.records import Progress
from mmrlhf.store.tables import CHECKS, LEASES, TASKS, VOTES


class Tally:
    """What the tables said up to the newest rows read; right since both only grow, in the order of their numbers.

    A change is committed before the next one begins (see `database.writing`), so that no smaller number appears later.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.read_tasks = self.read_votes = 0
        self.kinds: dict[str, str] = {}  # of each task
        self.answers: dict[str, dict[str, bool]] = defaultdict(
            dict
        )  # annotator -> task -> whether it is a vote, and no skip
        self.votes: Counter[str] = Counter()  # of each task, how many annotators' answers that stand are votes
        self.tasks_with: dict[str, Counter[int]] = defaultdict(Counter)  # kind -> number of votes -> how many tasks

    def progress(self, connection: sa.Connection, annotator: str, overlap: int, kind: str, now: float) -> Progress:
        """How far the queue of a kind is, and how far one annotator is in it; checks are in no queue."""
        with self.lock:
            self.catch_up(connection)
            checks = set(connection.execute(sa.select(CHECKS.c.task)).scalars())
            leases = sa.select(LEASES.c.task).where(LEASES.c.annotator != annotator, LEASES.c.expires > now)
            held = Counter(connection.execute(leases).scalars())
            aside = [task for task in checks if self.kinds.get(task) == kind]
            tasks = self.tasks_with[kind].total() - len(aside)
            complete = sum(count for votes, count in self.tasks_with[kind].items() if votes >= overlap)
            complete -= sum(self.votes[task] >= overlap for task in aside)
            mine = {task: said for task, said in self.answers.get(annotator, {}).items()
                    if self.kinds.get(task) == kind and task not in checks}  # fmt: skip
            voted = sum(mine.values())
            # no room for this annotator: complete, or will be when those who have it now have answered
            soon = [task for task in held if self.kinds.get(task) == kind and task not in checks
                    and self.votes[task] < overlap <= self.votes[task] + held[task]]  # fmt: skip
            closed = complete + len(soon) - sum(self.votes[task] + held[task] >= overlap for task in mine)
            return Progress(tasks, complete, voted, len(mine) - voted, tasks - closed - len(mine))

    def catch_up(self, connection: sa.Connection) -> None:
        """Read what came since."""
        new_tasks = sa.select(TASKS.c.number, TASKS.c.key, TASKS.c.kind).where(TASKS.c.number > self.read_tasks)
        for number, task, kind in connection.execute(new_tasks.order_by(TASKS.c.number)):
            self.read_tasks = number
            self.kinds[task] = kind
            self.tasks_with[kind][self.votes[task]] += 1
        columns = (VOTES.c.number, VOTES.c.task, VOTES.c.annotator, VOTES.c.kind)
        new_votes = sa.select(*columns).where(VOTES.c.number > self.read_votes).order_by(VOTES.c.number)
        for number, task, annotator, kind in connection.execute(new_votes):
            self.read_votes = number
            before, self.answers[annotator][task] = self.answers[annotator].get(task, False), kind != "skip"
            self.count(task, self.answers[annotator][task] - before)

    def count(self, task: str, change: int) -> None:
        """Another vote on a task, or one less."""
        if change and (kind := self.kinds.get(task)) is not None:
            self.tasks_with[kind][self.votes[task]] -= 1
            self.tasks_with[kind][self.votes[task] + change] += 1
        self.votes[task] += change
