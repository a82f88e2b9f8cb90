"""Live selection: what is asked next follows what the raters said; nothing in it stops the app."""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from apps import live
from apps.live import LiveSelection, embeddings_of
from apps.rate import RateConfig, rate
from apps.rate_items import read_questions
from mmrlhf.errors import UserError
from mmrlhf.images import save_image
from mmrlhf.simulate import RATERS, simulate_preferences
from mmrlhf.store import Store, Task
from tests.apps.raters import served

COUNT, COLUMNS = 40, 6
KEYS = [f"{number:032x}" for number in range(COUNT)]
TRUTH = np.array([3.0, -2.0, 1.0, 0.0, 0.0, 0.0])


@pytest.fixture
def embeddings() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(COUNT, COLUMNS)).astype(np.float32)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store with every pair of 40 pictures of two prompts, in a drawn order."""
    opened = Store(str(tmp_path / "r.db"))
    tasks = [
        Task(f"prompt {i % 2}", (KEYS[i], KEYS[j]), why="random")
        for i in range(COUNT)
        for j in range(i + 1, COUNT)
        if i % 2 == j % 2
    ]
    order = torch.randperm(len(tasks), generator=torch.Generator().manual_seed(0)).tolist()
    opened.add_tasks([tasks[place] for place in order])
    yield opened
    opened.close()


def gap(task: Task, embeddings: np.ndarray) -> float:
    """How far apart the two pictures are in the raters' taste."""
    gold = embeddings @ TRUTH
    return abs(float(gold[KEYS.index(task.item_0)] - gold[KEYS.index(task.item_1)]))


def answer_next(store: Store, embeddings: np.ndarray, count: int, generator: torch.Generator) -> list[Task]:
    """A simulated rater answers what they are asked; the tasks, in order."""
    scores = dict(zip(KEYS, (embeddings @ TRUTH).astype(float), strict=True))
    asked = []
    for _ in range(count):
        task = store.next_tasks(RATERS[0].name, count=1)[0]
        store.add_many(simulate_preferences([task], scores, RATERS[:1], generator))
        asked.append(task)
    return asked


@pytest.mark.parametrize("measure", ["margin", "bald"])
def test_later_questions_are_those_that_the_head_is_unsure_of(store: Store, embeddings, measure) -> None:
    """Of the pairs asked in the end, the two pictures are about equally good; those of a random order are far apart."""
    chooser = LiveSelection(store, KEYS, embeddings, measure, every=20)
    generator = torch.Generator().manual_seed(1)
    rounds = []
    chooser.attempt()
    for _ in range(6):
        chooser.attempt(20)
        rounds.append(answer_next(store, embeddings, 20, generator))
    gaps = [float(np.mean([gap(task, embeddings) for task in asked])) for asked in rounds]
    everything = float(np.mean([gap(task, embeddings) for task in store.free_tasks(1)]))
    assert max(gaps[-2:]) < 0.6 * min(everything, gaps[0])
    assert rounds[0][0].why.startswith("diverse") and all(task.why.startswith("uncertain") for task in rounds[-1])
    assert len({task.key for asked in rounds for task in asked}) == 120


def test_the_first_of_the_queue_is_what_the_head_is_most_unsure_of(store: Store, embeddings) -> None:
    chooser = LiveSelection(store, KEYS, embeddings, "margin", every=20)
    answer_next(store, embeddings, 60, torch.Generator().manual_seed(1))
    before = {task.key: task for task in store.free_tasks(1)}
    chooser.attempt()
    after = store.free_tasks(1)
    free = list(before.values())
    differences = chooser.differences([task.items for task in free])
    scores = chooser.scores(differences)
    assert scores is not None
    unsure = dict(zip([task.key for task in free], scores.tolist(), strict=True))
    half = sorted(unsure.values())[-len(unsure) // 2 :][0]
    assert all(unsure[task.key] >= half - 0.1 for task in after[:40])
    assert {task.key for task in after} == before.keys()
    assert [task.priority for task in after[40:]] == [0.0] * (len(after) - 40)  # the others are as they were


def test_a_raised_question_goes_back_when_it_is_chosen_no_more(store: Store, embeddings) -> None:
    chooser = LiveSelection(store, KEYS, embeddings, "bald", every=5)
    chooser.attempt()
    first = {task.key for task in store.free_tasks(1) if task.priority > 0}
    answer_next(store, embeddings, 5, torch.Generator().manual_seed(0))
    chooser.attempt(5)
    now = {task.key: task for task in store.free_tasks(1)}
    raised = {key for key, task in now.items() if task.priority > 0}
    assert len(first) == len(raised) == 10 and raised != first
    assert all(now[key].why == "random" for key in first - raised if key in now)


def test_questions_that_somebody_has_are_not_disturbed(store: Store, embeddings) -> None:
    held = store.next_tasks("ada", count=2)
    chooser = LiveSelection(store, KEYS, embeddings, "bald", every=5)
    for number in range(3):
        chooser.attempt()
        answer_next(store, embeddings, 5, torch.Generator().manual_seed(number))
    assert store.next_tasks("ada", count=2) == held  # with their priority and reason, too
    assert not {task.key for task in held} & {task.key for task in store.free_tasks(1)}


def test_a_few_new_answers_are_waited_for(store: Store, embeddings, monkeypatch: pytest.MonkeyPatch) -> None:
    chooser = LiveSelection(store, KEYS, embeddings, "bald", every=5)
    chooser.attempt()
    calls: list[int] = []
    monkeypatch.setattr(chooser, "refresh", lambda: calls.append(chooser.seen))
    for _ in range(7):
        answer_next(store, embeddings, 1, torch.Generator().manual_seed(0))
        chooser.attempt(5)
    assert calls == [5]


def test_the_app_answers_while_a_head_is_fitted_and_when_that_fails(
    store: Store, embeddings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fitting, go_on = threading.Event(), threading.Event()

    def slow(*_: object) -> None:
        fitting.set()
        assert go_on.wait(60)
        raise RuntimeError("no\nhead")

    monkeypatch.setattr(live, "fit_head", slow)
    monkeypatch.setattr(live, "POLL_SECONDS", 0.01)
    with LiveSelection(store, KEYS, embeddings, "bald", every=1) as chooser, served(store) as client:
        state = client.post("/api/login", json={"name": "ada"}).json()
        for number in range(3):
            vote = {"vote_id": f"{number:032x}", "task": state["tasks"][0]["task"], "choice": "left", "seconds": 1}
            state = client.post("/api/vote", json=vote).json()
            assert state["answered"] == number + 1
            assert fitting.wait(60)  # from the first vote on, a fit is running while the app answers
        go_on.set()
        while chooser.seen < 3:
            pass
    assert capsys.readouterr().err == (
        "mmrlhf rate: --live could not choose (no head): the questions go on in the order they have\n"
    )


def test_embeddings_come_from_a_file_or_from_tiny_clip(tmp_path: Path) -> None:
    for i in range(3):
        save_image(torch.full((3, 16, 16), i / 3), tmp_path / f"{i}.png")
    items = {f"{i:032x}": (str(tmp_path / f"{i}.png"), "") for i in range(3)}
    rows = embeddings_of(items, None)
    assert rows.shape[0] == 3 and np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    np.save(tmp_path / "e.npy", rows[::-1])
    assert np.array_equal(embeddings_of(items, tmp_path / "e.npy"), rows[::-1])
    np.save(tmp_path / "e.npy", rows[:2])
    with pytest.raises(UserError, match="e.npy has 2 rows, allowed is 3: one for each different picture"):
        embeddings_of(items, tmp_path / "e.npy")
    np.save(tmp_path / "e.npy", rows * np.nan)
    with pytest.raises(UserError, match="holds NaN or infinity"):
        embeddings_of(items, tmp_path / "e.npy")


def test_the_command_chooses_before_the_first_question(tmp_path: Path) -> None:
    """What is in the store from an earlier day counts; the queue is chosen when the app has ended, too."""
    for i in range(5):
        save_image(torch.full((3, 8, 8), i / 5), tmp_path / "pictures" / f"{i}.png")
    items, tasks = read_questions(tmp_path / "pictures")
    np.save(tmp_path / "e.npy", np.random.default_rng(0).normal(size=(5, 3)))
    store = Store(str(tmp_path / "r.db"))
    store.add_many(simulate_preferences(tasks[:1], dict.fromkeys(items, 0.0), RATERS[:1], torch.Generator()))
    config = RateConfig(
        tmp_path / "pictures", str(store.path), live="margin", embeddings=tmp_path / "e.npy", port=0, wanted=1
    )
    rate(config)
    assert {task.why.partition(":")[0] for task in store.free_tasks(1)} == {"uncertain"}
    store.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"live": "bald", "mode": "likert"}, "--live goes with --mode pair, got likert"),
        ({"embeddings": Path("x.npy")}, "--embeddings goes with --live, got none"),
        ({"live": "bald", "embeddings": Path("gone.npy")}, "cannot read the embeddings gone.npy"),
        ({"live": "bald", "refresh_every": 0}, "--refresh-every got 0, allowed is 1 or more"),
    ],
)
def test_bad_options_are_one_line(tmp_path: Path, change: dict, message: str) -> None:
    pictures = tmp_path / "pictures"
    for i in range(3):
        save_image(torch.full((3, 8, 8), i / 3), pictures / f"{i}.png")
    with pytest.raises(UserError, match=message):
        rate(RateConfig(**{"items": pictures, "store": str(tmp_path / "r.db"), "port": 0, **change}))
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]
