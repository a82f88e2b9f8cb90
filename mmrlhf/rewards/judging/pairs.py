"""What an AI rater is given to judge: the pairs queued in a store, or those of a PAIRS.jsonl, less what it has answered."""

from pathlib import Path

from mmrlhf.data import read_pairs
from mmrlhf.errors import UserError
from mmrlhf.images import content_hash
from mmrlhf.store import Store, Task
from mmrlhf.types import Preference

EVERY = 2**31  # as many votes or tasks as there may be


def queued(store: Store, name: str, overlap: int | None) -> tuple[dict[str, Path], list[Task]]:
    """(pictures, the queued pairs that this judge has not answered). UserError where no pair is queued, or a picture is gone."""
    if store.progress(name).tasks == 0:
        raise UserError(f"no pairs are queued in {store.name}: give some with --data PAIRS.jsonl, or by `mmrlhf rate`")
    # a lease that ends at once: nobody waits for the judge
    tasks = store.next_tasks(name, EVERY if overlap is None else overlap, EVERY, lease=0.0)
    items = store.items()
    paths = {}
    for key in dict.fromkeys(key for task in tasks for key in task.items):
        path = Path(items[key].path) if key in items else None
        if path is None or not path.is_file() or content_hash(path.read_bytes()) != key:
            what = f"does not know the picture {key}" if path is None else f"knows {path}, which is gone or has changed"
            raise UserError(
                f"the store {store.name} {what}: put it back, or register the pictures again by `mmrlhf rate`"
            )
        paths[key] = path
    return paths, tasks


def read_listed(file: Path) -> tuple[dict[str, Path], list[Task], list[Preference]]:
    """(pictures by content hash, the pairs as tasks, their labels as preferences) of a PAIRS.jsonl.

    Pairs of two files with the same content are left out. UserError where nothing is left.
    """
    pairs = read_pairs(file)
    hashes: dict[Path, str] = {}
    tasks: dict[str, Task] = {}
    labels = []
    for pair in pairs:
        for path in (pair.image_0, pair.image_1):
            if path not in hashes:
                hashes[path] = content_hash(path.read_bytes())
        items = (hashes[pair.image_0], hashes[pair.image_1])
        if items[0] == items[1]:
            continue
        task = Task(pair.prompt, items)
        tasks.setdefault(task.key, task)
        if pair.has_label:
            who = f"{pair.annotator or file.name} {pair.criterion}".rstrip()
            labels.append(Preference(pair.prompt, items, pair.label_0, who, "human", items))
    if not tasks:
        raise UserError(f"both pictures of every pair in {file} are the same: give pairs of different pictures")
    return {key: path for path, key in hashes.items()}, list(tasks.values()), labels


def register(store: Store, name: str, paths: dict[str, Path], tasks: list[Task]) -> list[Task]:
    """Let the store know the pictures; returns the tasks that this judge has not answered."""
    store.add_items({key: (paths[key].resolve(), t.prompt) for t in tasks for key in t.items})
    done = {Task(p.prompt, p.items).key for p in store.preferences() if p.annotator == name}
    return [task for task in tasks if task.key not in done]
