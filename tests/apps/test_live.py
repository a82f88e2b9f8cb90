"""Live selection: what is asked next follows what the raters said; nothing in it stops the app."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from apps import live
from apps.live import LiveSelection, embeddings_of, places_of
from apps.live_answers import comparisons, levels
from apps.rate import RateConfig, rate
from apps.rate_items import KINDS, Mode, read_questions
from mmrlhf.errors import UserError
from mmrlhf.images import save_image
from mmrlhf.simulate import RATERS, simulate_preferences
from mmrlhf.store import Judgement, LikertJudgement, Preference, RankJudgement, Store, Task
from selection.bradley_terry import fit_head
from selection.v_optimal import v_optimal
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
    said = comparisons(store)
    head = fit_head(
        np.concatenate([chooser.about(each.items) for each in said]), np.array([each.label for each in said])
    )
    scores = chooser.scores(np.concatenate([chooser.about(task.items) for task in free]), head)
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


@pytest.mark.parametrize(
    ("mode", "criteria", "live"),
    [("pair", (), "margin"), ("rank", (), "bald"), ("rank", (), "v-optimal"), ("likert", (), "disagreement"),
     ("likert", ("fit",), "v-optimal")],
)  # fmt: skip
def test_the_command_chooses_before_the_first_question(tmp_path: Path, mode, criteria, live) -> None:
    """What is in the store from an earlier day counts; the queue is chosen when the app has ended, too."""
    for i in range(8):
        save_image(torch.full((3, 8, 8), i / 8), tmp_path / "pictures" / f"{i}.png")
    asked: Mode = "criteria" if criteria else mode
    items, tasks = read_questions(tmp_path / "pictures", asked, criteria=criteria)
    np.save(tmp_path / "e.npy", np.random.default_rng(0).normal(size=(8, 3)))
    store = Store(str(tmp_path / "r.db"))
    about: dict[str, Any] = {"prompt": "", "annotator": "ada", "source": "human"}
    if mode == "pair":
        store.add_many(simulate_preferences(tasks[:1], dict.fromkeys(items, 0.0), RATERS[:1], torch.Generator()))
    elif mode == "rank":
        store.add_ranking(RankJudgement(items=tasks[0].items, ranks=(1, 2, 3, 4), shown=tasks[0].items, **about))
    elif criteria:
        store.add_likert(LikertJudgement(item=tasks[0].item_0, scores={"fit": 2}, levels=5, **about))
    else:
        store.add_judgement(Judgement(item=tasks[0].item_0, score=2.0, **about))
    config = RateConfig(
        tmp_path / "pictures",
        str(store.path),
        mode,
        criteria,
        live=live,
        embeddings=tmp_path / "e.npy",
        port=0,
        wanted=1,
    )
    rate(config)
    reasons = [task.why for task in store.free_tasks(1, kind=KINDS[asked])]
    assert reasons and all(why.startswith("lowers" if live == "v-optimal" else "uncertain: ") for why in reasons)
    assert not any("pair" in why for why in reasons if mode == "likert")
    store.close()


def test_v_optimal_asks_as_the_selector_does_and_counts_what_was_answered(store: Store, embeddings) -> None:
    chooser = LiveSelection(store, KEYS, embeddings, "v-optimal", every=10)
    free = store.free_tasks(1)
    rows = np.concatenate([chooser.about(task.items) for task in free])
    expected = v_optimal(rows, 20, generator=torch.Generator()).indices.tolist()
    chooser.attempt()
    first = [task.key for task in store.free_tasks(1)[:20]]
    assert first == [free[place].key for place in expected]
    asked = answer_next(store, embeddings, 10, torch.Generator().manual_seed(1))
    assert [task.key for task in asked] == first[:10]
    chooser.attempt(10)
    said = comparisons(store)
    answered = np.concatenate([chooser.about(each.items) for each in said])
    head = fit_head(answered, np.array([each.label for each in said]))
    left = store.free_tasks(1)
    pool = np.concatenate([np.concatenate([chooser.about(task.items) for task in left]), answered])
    chance = 1 / (1 + np.exp(-pool @ head.weights))
    added = (chance * (1 - chance))[:, None, None] * pool[:, :, None] * pool[:, None, :]
    present = added[len(left) :].sum(axis=0) + head.precision * np.eye(pool.shape[1])
    doubts = [np.einsum("ij,nji->n", np.linalg.inv(present + each), added).mean() for each in added[: len(left)]]
    assert int(np.argmin(doubts)) == 0  # what is next leaves the least doubt, by inverting for each
    assert left[0].why.startswith("lowers the mean doubt by ")


def ranking_store(path: Path) -> tuple[Store, list[Task]]:
    store = Store(str(path / "k.db"))
    tasks = [Task("p", tuple(KEYS[start : start + 4]), "rank", why="random") for start in range(0, COUNT, 4)]
    store.add_tasks(tasks)
    return store, tasks


@pytest.mark.parametrize("measure", ["bald", "margin", "v-optimal"])
def test_a_set_to_rank_is_chosen_by_all_of_its_pairs(tmp_path: Path, measure) -> None:
    """Of sets whose pictures are alike and one whose pictures differ, the latter; a ranking counts as its pairs."""
    store, tasks = ranking_store(tmp_path)
    random = np.random.default_rng(0)
    embeddings = np.repeat(random.normal(size=(COUNT // 4, COLUMNS)), 4, axis=0) + 0.01 * random.normal(
        size=(COUNT, COLUMNS)
    )
    embeddings[20:24] += random.normal(size=(4, COLUMNS))
    chooser = LiveSelection(store, KEYS, embeddings, measure, kind="rank", every=2)
    chooser.attempt()
    first = store.free_tasks(1, kind="rank")
    assert first[0].items == tasks[5].items and len([task for task in first if task.priority > 0]) == 4
    about: dict[str, Any] = {"prompt": "p", "annotator": "ada", "source": "human"}
    store.add_ranking(RankJudgement(items=tasks[5].items, ranks=(1, 2, 2, 4), shown=tasks[5].items, **about))
    assert [each.label for each in comparisons(store)] == [1.0, 1.0, 1.0, 0.5, 1.0, 1.0]
    chooser.attempt(1)
    after = store.free_tasks(1, kind="rank")
    assert after[0].why.startswith("lowers" if measure == "v-optimal" else "uncertain: ")
    assert len(after) == 9 and chooser.told is False
    store.close()


@pytest.mark.parametrize("measure", ["disagreement", "bald", "v-optimal"])
@pytest.mark.parametrize("kind", ["score", "likert"])
def test_a_picture_to_rate_is_one_of_which_the_levels_so_far_say_little(tmp_path: Path, kind, measure) -> None:
    """Thirty pictures alike, ten of which were rated, and ten of another sort: one of these is next, and then not all of them."""
    store = Store(str(tmp_path / "l.db"))
    random = np.random.default_rng(0)
    embeddings = 0.1 * random.normal(size=(COUNT, 2)) + np.where(
        np.arange(COUNT)[:, None] < 30, [[1.0, 0.0]], [[-1.0, 3.0]]
    )
    criteria = ("fit", "look") if kind == "likert" else ()
    tasks = [Task("p", (key,), kind, criteria=criteria, why="listed") for key in KEYS]
    store.add_tasks(tasks)
    for number in range(10):
        about: dict[str, Any] = {"prompt": "p", "item": KEYS[number], "annotator": "ada", "source": "human"}
        if kind == "score":
            store.add_judgement(Judgement(score=1.0 + number % 5, **about))
        else:
            store.add_likert(LikertJudgement(scores={"fit": 1 + number % 5, "look": 3}, levels=5, **about))
    expected = [number % 5 / 4 if kind == "score" else (number % 5 / 4 + 0.5) / 2 for number in range(10)]
    assert [said.label for said in levels(store)] == pytest.approx(expected)
    chooser = LiveSelection(store, KEYS, embeddings.astype(np.float32), measure, kind=kind, every=3)
    chooser.attempt()
    first = store.free_tasks(1, kind=kind)
    assert KEYS.index(first[0].item_0) >= 30 and chooser.told is False
    assert len([task for task in first if task.priority > 0]) == 6
    store.close()


def test_texts_that_were_rated_are_no_pictures(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "l.db"))
    about: dict[str, Any] = {"prompt": "p", "item": KEYS[0], "annotator": "ada", "source": "human", "levels": 5}
    store.add_likert(LikertJudgement(scores={"fit": 5}, text="a fox", **about))
    assert levels(store) == []
    store.add(Preference("p", (KEYS[0], KEYS[1]), 0.0, "ada", "human", (KEYS[1], KEYS[0])))
    assert [tuple(each) for each in comparisons(store)] == [((KEYS[0], KEYS[1]), 0.0)]
    store.close()


def test_the_rows_of_questions_of_different_lengths_are_numbered_through() -> None:
    parts = [np.zeros((3, 2)), np.zeros((1, 2)), np.zeros((2, 2))]
    assert places_of(parts).tolist() == [[0, 1, 2], [3, -1, -1], [4, 5, -1]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"live": "bald", "mode": "points"},
            "--live goes with --mode pair, rank, likert, got points: leave one of the two out",
        ),
        ({"live": "v-optimal", "mode": "segments"}, "--live goes with --mode pair, rank, likert, got segments"),
        (
            {"live": "margin", "mode": "likert"},
            "--live margin asks about what is nearest to a tie, got --mode likert: give",
        ),
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
