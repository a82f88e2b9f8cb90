"""Writers that are killed over and over under load: what they acknowledged is in the store, and nothing is there twice."""

import os
import subprocess
import sys
from collections import Counter

import pytest

from mmrlhf.store import Store, Task
from tests.store.killer import OVERLAP, THREADS
from tests.tree import ROOT


def kill_many(url: str, kills: int) -> None:
    """There are more questions than all writers together get to."""
    store = Store(url)
    store.add_tasks([Task("p", (f"a{number}", f"b{number}")) for number in range(60 * kills)])
    command = [sys.executable, "-m", "tests.store.killer", url, str(kills)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True, cwd=ROOT)
    acknowledged = done.stdout.split("\n")[:-1]
    kept = [preference.vote_id for preference in store.preferences(include_superseded=True)]
    votes = Counter(preference.items for preference in store.preferences())
    store.close()
    assert len(acknowledged) == len(set(acknowledged)) > kills
    assert set(acknowledged) <= set(kept) and len(kept) == len(set(kept))
    assert max(votes.values()) <= OVERLAP
    assert len(kept) - len(acknowledged) <= THREADS * (kills + 1)  # committed, and killed before it was said


def test_writers_that_are_killed_lose_nothing_acknowledged(url: str) -> None:
    kill_many(url, 5)


@pytest.mark.slow
def test_writers_that_are_killed_100_times_lose_nothing_acknowledged(url: str) -> None:
    kill_many(url, 100)
