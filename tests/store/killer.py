"""`python -m tests.store.killer URL KILLS`: forks writers on a store, kills each (SIGKILL), and prints what they acknowledged.

A process of its own, so that what a writer needs is imported once, and no thread is there when it forks.
"""

import os
import random
import signal
import sys
import threading
import time

from mmrlhf.store import Preference, Store

OVERLAP = 2
THREADS = 4  # of a writer, as the rating app has


def write(url: str, name: str, acknowledge: int) -> None:
    """Vote on the queue until nothing is open; say the id of each vote after its commit."""
    store = Store(url)

    def vote(annotator: str) -> None:
        while (task := store.next_task(annotator, OVERLAP)) is not None:
            items = (task.item_0, task.item_1)
            preference = Preference(
                task.prompt, items, 1.0, annotator, "human", items, vote_id=f"{annotator}-{task.key}"
            )
            for _ in range(2):  # the second is a page that sends its vote again
                store.add(preference)
            os.write(acknowledge, f"{preference.vote_id}\n".encode())  # so few bytes are written whole

    threads = [threading.Thread(target=vote, args=(f"{name} {number}",)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def fork(url: str, name: str) -> tuple[int, int]:
    """(process id, file of what it acknowledges) of a new writer."""
    read_end, write_end = os.pipe()
    if (process := os.fork()) == 0:
        os.close(read_end)
        try:
            write(url, name, write_end)
        finally:
            os._exit(0)
    os.close(write_end)
    return process, read_end


def kill(process: int, acknowledged: int, votes: int, pause: float) -> str:
    """What a writer acknowledged until it was killed, so many votes and a moment after it began."""
    with os.fdopen(acknowledged) as file:
        said = [file.readline() for _ in range(votes)]
        time.sleep(pause)
        os.kill(process, signal.SIGKILL)
        said += file.readlines()
    os.waitpid(process, 0)
    return "".join(line for line in said if line.endswith("\n"))


def main(url: str, kills: int) -> None:
    """Another writer goes on beside all the time. The names come again, as raters do: what was open for one is asked again."""
    dice = random.Random(0)
    beside = fork(url, "beside")
    for number in range(kills):
        sys.stdout.write(kill(*fork(url, f"process {number % 3}"), dice.randrange(1, 12), dice.random() * 0.05))
    sys.stdout.write(kill(*beside, 0, 0.0))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
