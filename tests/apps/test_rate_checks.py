"""Check questions and repeats in the rating app: what is read, where it comes, and that nothing tells it apart."""

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from apps.rate import RateConfig, rate
from apps.rate_answers import shown
from apps.rate_checks import APART, Checks, turn_of
from apps.rate_gold import read_gold
from apps.rate_items import Mode
from mmrlhf.errors import UserError
from mmrlhf.images import content_hash, save_image
from mmrlhf.store import Preference, Store, Task
from mmrlhf.store.checks import Check, add_checks, check_results, repeat_results
from tests.apps.raters import App, enter, ready, served


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight small pictures of different grey."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(8):
        save_image(torch.full((3, 16, 16), i / 8), folder / f"{i}.png")
    return folder


def gold_file(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "gold.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def pair(pictures: Path, prompt: str, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "image_0": str(pictures / "0.png"), "image_1": str(pictures / "1.png"), **more}


# --- the file ---


def test_the_rows_of_pairs(pictures: Path, tmp_path: Path) -> None:
    a, b = (content_hash((pictures / name).read_bytes()) for name in ("0.png", "1.png"))
    path = gold_file(
        tmp_path,
        pair(pictures, "first", label_0=1, label_1=0),
        pair(pictures, "second", label_0=0.2, label_1=0.8),
        pair(pictures, "tie", label_0=0.5, label_1=0.5),
        pair(pictures, "Please choose the LEFT picture", expected="left"),
        pair(pictures, "same", expected="tie"),
    )
    items, checks = read_gold(path, "pair")
    assert set(items) == {a, b}
    assert [check.expected for check in checks] == [
        {"item": a},
        {"item": b},
        {"tie": True},
        {"side": "left"},
        {"tie": True},
    ]
    assert all(check.task.items == (a, b) and check.task.kind == "pair" for check in checks)


def test_the_rows_of_the_other_modes(pictures: Path, tmp_path: Path) -> None:
    image = str(pictures / "2.png")
    (check,) = read_gold(gold_file(tmp_path, {"image": image, "score": 4, "tolerance": 1}), "likert")[1]
    assert check.task.kind == "score" and check.expected == {"score": 4, "tolerance": 1}
    row = {"prompt": "p", "image": image, "scores": {"fit": 1, "quality": 5}}
    (check,) = read_gold(gold_file(tmp_path, row), "criteria", ("quality", "fit"))[1]
    assert check.task.criteria == ("quality", "fit") and check.expected == {"scores": {"quality": 5, "fit": 1}}
    names = [str(pictures / f"{i}.png") for i in (3, 1, 2)]
    (check,) = read_gold(gold_file(tmp_path, {"prompt": "p", "images": names, "ranks": [1, 2, 2]}), "rank")[1]
    assert check.task.kind == "rank" and list(check.expected["ranks"].values()) == [1, 2, 2]
    assert list(check.expected["ranks"]) == list(check.task.items)


@pytest.mark.parametrize(
    ("mode", "row", "message"),
    [
        ("pair", {}, 'gold.jsonl:1 has no answer: write label_0 and label_1, or "expected": left, right or tie'),
        ("pair", {"expected": "up"}, "has the answer 'up': write label_0"),
        ("pair", {"label_0": 1, "label_1": 1}, "label_0 1 and label_1 1 sum to 2, allowed is 1"),
        ("pair", {"expected": "left", "image_1": "0.png"}, "shows one picture twice"),
        ("pair", {"expected": "left", "tolerance": -1}, "tolerance got -1, allowed is a number of 0 or more"),
        ("pair", {"expected": "left", "prompt": 3}, "the prompt is 3: give a text"),
        ("likert", {}, "score got None, allowed is a number from 1 to 5"),
        ("likert", {"score": 6}, "score got 6, allowed is a number from 1 to 5"),
        ("criteria", {"scores": {"other": 1}}, "scores got .* allowed is a level for each of quality"),
        ("rank", {"images": ["0.png"]}, "images got .* allowed is a list of two files or more"),
        (
            "rank",
            {"images": ["0.png", "1.png"], "ranks": [1]},
            "ranks got .1., allowed is a number for each of the 2 images",
        ),
        ("points", {}, "--gold goes with --mode pair, rank or likert, got points"),
    ],
)
def test_a_row_without_a_known_answer_is_one_line(pictures: Path, mode: Mode, row: dict, message: str) -> None:
    base = {"image": "0.png"} if mode in ("likert", "criteria") else {"image_0": "0.png", "image_1": "1.png"}
    path = gold_file(pictures, base | row)
    with pytest.raises(UserError, match=message):
        read_gold(path, mode, ("quality",) if mode == "criteria" else ())
    path.unlink()


def test_a_question_twice_and_an_empty_file_are_one_line(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gold.jsonl:2 asks what a line before it asks"):
        read_gold(
            gold_file(tmp_path, pair(pictures, "p", expected="left"), pair(pictures, "p", expected="tie")), "pair"
        )
    with pytest.raises(UserError, match="no check questions in .*gold.jsonl: write one a line"):
        read_gold(gold_file(tmp_path), "pair")
    with pytest.raises(UserError, match="no check questions at .*gone.jsonl: give a JSONL file"):
        read_gold(tmp_path / "gone.jsonl", "pair")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gold_every": 1}, "--gold-every got 1, allowed is 2 or more"),
        ({"gold_minimum": 70.0}, "--gold-minimum got 70.0, allowed is 0"),
        ({"repeat_every": 1}, "--repeat-every got 1, allowed is 2 or more, or 0 for none"),
        ({"repeat_every": 5, "mode": "likert"}, "--repeat-every goes with --mode pair, got likert"),
        ({"time_limit": -1.0}, "--time-limit got -1.0, allowed is a time of 0"),
        ({"session_minutes": float("inf")}, "--session-minutes got inf, allowed is a time"),
        ({"time_limit": 2.0, "min_seconds": 2.0}, "--min-seconds got 2, allowed is less than --time-limit 2"),
        ({"gold": Path("gone.jsonl")}, "no check questions at gone.jsonl"),
    ],
)
def test_bad_options_are_one_line(tmp_path: Path, pictures: Path, change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        rate(RateConfig(**{"items": pictures, "store": str(tmp_path / "r.db"), **change}))
    assert list(tmp_path.iterdir()) == []  # nothing half-made


# --- where they come ---

QUEUE = [Task(f"question {i}", ("a", "b")) for i in range(60)]
GOLD = [Check(Task(f"gold {i}", ("a", "b")), {"side": "left"}) for i in range(12)]


@contextlib.contextmanager
def filled(path: Path, queue: list[Task] = QUEUE) -> Iterator[Store]:
    store = Store(str(path / "r.db"))
    store.add_tasks(queue)
    add_checks(store, GOLD)
    yield store
    store.close()


def answer(store: Store, task: Task, annotator: str, side: int) -> None:
    """The left (0) or the right (1) one."""
    order = shown(task, annotator)
    label = float(order[side] == task.item_0)
    record = Preference(task.prompt, (task.item_0, task.item_1), label, annotator, "human", (order[0], order[1]))
    (store.add_repeat if task.kind == "repeat" else store.add)(record)


def walk(store: Store, checks: Checks, annotator: str = "ada", overlap: int = 9) -> Iterator[Task]:
    """Every question of a rater, each answered "left" after it was given; the page's figures are held to it on the way."""
    total = turn_of(store, checks, annotator, overlap, "pair").total
    expected = None
    for count in range(10_000):
        turn = turn_of(store, checks, annotator, overlap, "pair")
        assert turn == turn_of(store, checks, annotator, overlap, "pair")  # as after a reload
        assert (turn.answered, turn.total) == (count, total)  # nothing of the figures shows what comes
        if not turn.tasks:
            return
        assert expected in (None, turn.tasks[0])  # the one that was loaded ahead
        expected = turn.tasks[1] if len(turn.tasks) > 1 else None
        yield turn.tasks[0]
        answer(store, turn.tasks[0], annotator, 0)


KEYS = tuple(check.task.key for check in GOLD)


def test_checks_come_once_each_at_random_places_of_every_ten(tmp_path: Path) -> None:
    with filled(tmp_path) as store:
        walks = {name: list(walk(store, Checks(KEYS), name)) for name in ("ada", "bo")}
        again = [Checks(KEYS).slot("ada", place) for place in range(80)]
    places = {}
    for name, asked in walks.items():
        places[name] = [place for place, task in enumerate(asked) if task.key in KEYS]
        whole = len(asked) // 10
        assert [place // 10 for place in places[name]][:whole] == list(range(whole))  # one in each ten
        assert len(places[name]) <= whole + 1
        assert len({task.key for task in asked}) == len(asked)  # none twice
        assert [task for task in asked if task.key not in KEYS] == QUEUE  # and nothing else is in another order
    assert places["ada"] != places["bo"] and [walks[n][places[n][0]] for n in walks] != [GOLD[0].task] * 2
    assert [place for place, slot in enumerate(again) if slot == "check"][: len(places["ada"])] == places["ada"]
    other = Checks(KEYS, seed=1)
    assert [other.slot("ada", place) for place in range(80)] != again


def test_all_places_of_a_block_are_as_likely() -> None:
    checks = Checks(KEYS)
    counts = Counter(place for n in range(2000) for place in range(10) if checks.slot(f"rater {n}", place) == "check")
    assert sum(counts.values()) == 2000
    assert sum((counts[place] - 200) ** 2 / 200 for place in range(10)) < 27.9  # chi square, 9 degrees: P = 0.001


def test_no_check_stands_alone_at_the_end(tmp_path: Path) -> None:
    with filled(tmp_path, QUEUE[:3]) as store:
        asked = list(walk(store, Checks(KEYS, every=2)))
    assert asked[-1] in QUEUE and sum(task in QUEUE for task in asked) == 3


def test_checks_do_not_count_for_overlap(tmp_path: Path) -> None:
    with filled(tmp_path) as store:
        checks = Checks(KEYS, every=4)
        for name in ("ada", "bo", "cy"):
            turn = turn_of(store, checks, name, 1, "pair")
            while turn.answered < 10:
                answer(store, turn.tasks[0], name, 0)
                turn = turn_of(store, checks, name, 1, "pair")
        assert all(asked >= 2 for _, asked in check_results(store).values()) and len(check_results(store)) == 3
        assert len({p.prompt for p in store.preferences()}) == len(store.preferences())  # of the queue each once


def test_who_fails_gets_no_more_questions(tmp_path: Path) -> None:
    with filled(tmp_path) as store:
        checks = Checks(KEYS, every=2)
        asked = 0
        turn = turn_of(store, checks, "eve", 1, "pair")
        while turn.tasks:
            asked += turn.tasks[0].key in KEYS
            answer(store, turn.tasks[0], "eve", 1)  # always the right one: the checks expect the left
            turn = turn_of(store, checks, "eve", 1, "pair")
        assert asked == 5 and turn.stopped and turn.answered == turn.total
        assert check_results(store) == {"eve": (0, 5)}
        assert store.count() == turn.answered - 5 > 0  # what she said is kept
        assert store.free_tasks(limit=1) == [QUEUE[store.count()]]  # and she holds nothing
        assert not turn_of(store, Checks(KEYS, every=2, minimum=0.0), "eve", 1, "pair").stopped
        assert not turn_of(store, checks, "ada", 1, "pair").stopped


def test_repeats_come_ten_or_more_later_with_sides_swapped(tmp_path: Path) -> None:
    with filled(tmp_path) as store:
        asked = list(walk(store, Checks(KEYS, repeat_every=5)))
        repeats = [place for place, task in enumerate(asked) if task.kind == "repeat"]
        assert len(repeats) >= 8
        for place in repeats:
            first = next(
                i
                for i, task in enumerate(asked)
                if task.items == asked[place].items and task.prompt == asked[place].prompt
            )
            assert place - first >= APART and asked[first].kind == "pair" and asked[first].key not in KEYS
            assert shown(asked[place], "ada") == shown(asked[first], "ada")[::-1]
        assert len({asked[place].key for place in repeats}) == len(repeats)
        assert store.count() == len(QUEUE)
        assert repeat_results(store) == {"ada": (0, len(repeats))}  # always left: never the same
        back = store.answers("ada", limit=len(asked), kind="pair")
        assert [each.task.key for each in reversed(back)] == [task.key for task in asked]


def test_nothing_that_a_page_gets_tells_a_check(tmp_path: Path, pictures: Path) -> None:
    """The routes: the same keys and forms of values for both, and the back way shows them."""
    path = gold_file(tmp_path, *(pair(pictures, f"g {i}", expected="left") for i in range(4)))
    items, checks = read_gold(path, "pair")
    store = Store(str(tmp_path / "r.db"))
    store.add_items(items)
    store.add_tasks([Task(f"q {i}", tuple(items)) for i in range(8)])
    add_checks(store, checks)
    keys = tuple(check.task.key for check in checks)
    with served(store, checks=Checks(keys, every=2, repeat_every=2), more_to_come=True) as client:
        state = client.post("/api/login", json={"name": "ada"}).json()
        forms, order = set(), []
        while state["tasks"]:
            task = state["tasks"][0]
            forms.add(
                json.dumps(
                    {name: "…" if name in ("task", "prompt", "images") else value for name, value in task.items()}
                )
            )
            order.append(task["task"])
            vote = {"vote_id": f"{len(order):032x}", "task": task["task"], "choice": "left", "seconds": 1.0}
            state = client.post("/api/vote", json=vote).json()
        assert len(forms) == 1 and len(set(order) & set(keys)) == 4
        assert state["more_to_come"] and not (
            set(state) - {"name", "mode", "instructions", "tasks", "answered", "total", "finished", "more_to_come"}
        )
        before, back = None, []
        while question := client.get("/api/back", params={"before": before} if before else {}).json()["question"]:
            before = question["number"]
            back.append(question["task"])
        assert back == order[::-1]
    assert check_results(store) == {"ada": (4, 4)}
    store.close()


# --- the command line and the browser ---


def test_a_rater_who_fails_is_thanked(browser, pictures: Path, tmp_path: Path) -> None:
    rows = [pair(pictures, f"Please choose the LEFT picture ({i})", expected="left") for i in range(6)]
    path = tmp_path / "r.db"
    options = ("--gold", str(gold_file(tmp_path, *rows)), "--gold-every", "2", "--port", "0")
    running = App("--items", str(pictures), "--store", str(path), *options)
    try:
        assert "6 check questions" in running.lines[0]
        page = enter(browser, running.url, "eve")
        total = page.inner_text(".mm-count").split(" of ")[1]
        count, seen = 0, 0
        while page.get_attribute(".mm", "data-screen") == "rate":
            assert page.inner_text(".mm-count") == f"{count} of {total}"
            seen += "LEFT" in page.inner_text(".mm-prompt")
            page.keyboard.press("ArrowRight")
            count += 1
            page.wait_for_function(
                """(count) => { const card = document.querySelector(".mm"); return !card.classList.contains("mm-busy")
                    && (card.dataset.screen === "done" || card.querySelector(".mm-count").textContent.startsWith(count + " of")
                        && card.querySelector(".mm-pictures").ariaBusy === "false"); }""",
                arg=count,
            )
        assert seen == 5
        assert page.inner_text(".mm-done .mm-title") == "Thank you, that is all."
        assert f"{count} answers are saved" in page.inner_text(".mm-done .mm-lead")
        page.keyboard.press("b")  # the way back stays
        page.wait_for_selector(".mm.mm-past")
        assert page.problems == []
        good = enter(browser, running.url, "ada")
        assert good.get_attribute(".mm", "data-screen") == "rate"
    finally:
        ending = running.stop()
    assert ending.splitlines()[-1].startswith(f"{count - 5} judgements in ")
    store = Store(str(path))
    assert check_results(store) == {"eve": (0, 5)} and store.count() == count - 5
    store.close()


def test_a_pair_comes_again_the_other_way_round(browser, pictures: Path, tmp_path: Path) -> None:
    """The rater sees it on the screen: the same two pictures, swapped, and the first answer stays."""
    path = tmp_path / "r.db"
    running = App("--items", str(pictures), "--store", str(path), "--repeat-every", "4", "--port", "0")
    sides = []
    try:
        page = enter(browser, running.url, "ada")
        for count in range(16):
            sides.append(
                tuple(page.eval_on_selector_all(".mm-picture img", "all => all.map(i => i.getAttribute('src'))"))
            )
            page.keyboard.press("ArrowLeft")
            if page.get_attribute(".mm", "data-screen") == "done":
                break
            ready(page, count + 1)
        assert page.problems == []
    finally:
        running.stop()
    again = [(place, sides.index(pair[::-1])) for place, pair in enumerate(sides) if pair[::-1] in sides[:place]]
    assert again and all(place - first >= APART for place, first in again)
    assert len(set(sides)) == len(sides)
    store = Store(str(path))
    assert repeat_results(store) == {"ada": (0, len(again))} and store.count() == len(sides) - len(again)
    store.close()
