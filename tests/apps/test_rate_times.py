"""Times and drafts of the rating app in a real browser: limits, hasty answers, breaks, drags, and what a reload keeps."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from apps.rate_clock import Clock
from apps.rate_items import Mode, read_questions
from mmrlhf.errors import UserError
from mmrlhf.images import save_image
from mmrlhf.store import Store
from mmrlhf.store.checks import flagged
from tests.apps.raters import enter, ready, served

PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 780}, "has_touch": True, "is_mobile": True}
PLACES = ".mm-slot:not([hidden]) .mm-place"


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight small pictures of one prompt, each with an answer."""
    folder = tmp_path_factory.mktemp("pictures")
    rows = []
    for i in range(8):
        save_image(torch.full((3, 16, 16), i / 8), folder / f"{i}.png")
        rows.append({"prompt": "p", "image": f"{i}.png", "answer": "A red dog runs."})
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@contextlib.contextmanager
def asked(
    items: Path, path: Path, mode: Mode = "pair", clock: Clock | None = None, **options: Any
) -> Iterator[tuple[str, Store]]:
    """(url, store) of the app in one mode."""
    store = Store(str(path / "r.db"))
    pictures, tasks = read_questions(items, mode, **options)
    store.add_items(pictures)
    store.add_tasks(tasks)
    with served(store, mode=mode, overlap=9, tags=("artifact", "odd"), clock=clock or Clock()) as client:
        yield str(client.base_url).rstrip("/"), store
    store.close()


def extras(store: Store) -> list[tuple[str, dict[str, Any]]]:
    """(kind, extra) of every answer."""
    with store.engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT kind, extra FROM votes ORDER BY number").all()
    return [(kind, json.loads(extra)) for kind, extra in rows]


# --- times ---


def test_flags_are_the_server_s(items: Path, tmp_path: Path) -> None:
    clock = Clock(time_limit=30.0, min_seconds=1.5)
    with asked(items, tmp_path, clock=clock) as (url, store):
        with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
            state = client.post("/api/login", json={"name": "ada"}).json()
            assert state["time_limit"] == 30 and "session_minutes" not in state
            for number, (choice, seconds, timeout) in enumerate(
                [
                    ("left", 1.4, False),
                    ("left", 1.5, True),
                    ("skip", 0.1, False),
                    ("skip", 30.0, True),
                    ("both_bad", 0.0, False),
                ]
            ):
                vote = {"vote_id": f"{number:032x}", "task": state["tasks"][0]["task"], "choice": choice}
                state = client.post("/api/vote", json={**vote, "seconds": seconds, "timeout": timeout}).json()
        hasty, bad = {"too_fast": True}, {"both_bad": True, "too_fast": True}
        assert extras(store) == [
            ("pair", hasty),
            ("pair", {}),
            ("skip", {}),
            ("skip", {"timeout": True}),
            ("pair", bad),
        ]
        assert flagged(store, "too_fast") == {"ada": 2} and flagged(store, "timeout") == {"ada": 1}


def test_no_times_are_no_flags() -> None:
    assert Clock().flags("left", 0.0, False) == Clock().flags("skip", 0.0, True) == {} == Clock().for_page()
    with pytest.raises(UserError, match="--min-seconds got nan, allowed is a time"):
        Clock(min_seconds=float("nan")).check()


def test_a_question_is_skipped_when_its_time_is_over_and_an_empty_chair_is_noticed(
    browser, items: Path, tmp_path: Path
) -> None:
    with asked(items, tmp_path, clock=Clock(time_limit=1.5)) as (url, store):
        page = enter(browser, url, "ada")
        page.wait_for_selector(".mm-clock:visible")
        first = page.inner_text(".mm-count")
        page.wait_for_function("first => document.querySelector('.mm-count').textContent !== first", arg=first)
        page.wait_for_selector(
            '.mm[data-screen="break"]'
        )  # after the second: nobody is there, and nothing more is skipped
        assert page.inner_text(".mm-break .mm-title") == "Are you still there?"
        assert extras(store) == [("skip", {"timeout": True})] * 2
        page.keyboard.press("Enter")
        ready(page, 2)
        page.keyboard.press("ArrowLeft")
        ready(page, 3)
        assert store.count() == 1
        page.keyboard.press("b")
        page.wait_for_selector(".mm.mm-past")
        ready(page, 3)
        assert page.locator(".mm-clock.mm-still").count() == 1  # what was answered is looked at in peace
        assert page.problems == []


def test_a_reload_gives_no_time_back(browser, items: Path, tmp_path: Path) -> None:
    with asked(items, tmp_path, clock=Clock(time_limit=600.0)) as (url, _):
        page = enter(browser, url, "ada")
        page.wait_for_function("sessionStorage.getItem('mmrlhf-clock ada') !== null")
        began = page.evaluate("JSON.parse(sessionStorage.getItem('mmrlhf-clock ada')).began")
        page.reload()
        ready(page, 0)
        assert page.evaluate("JSON.parse(sessionStorage.getItem('mmrlhf-clock ada')).began") == began
        page.evaluate(  # as if ten minutes had gone by
            """() => { const clock = JSON.parse(sessionStorage.getItem("mmrlhf-clock ada"));
                sessionStorage.setItem("mmrlhf-clock ada", JSON.stringify({ ...clock, began: clock.began - 600000 })); }"""
        )
        page.reload()
        ready(page, 1)  # skipped at once


def test_a_break_comes_between_two_questions(browser, items: Path, tmp_path: Path) -> None:
    with asked(items, tmp_path, clock=Clock(session_minutes=30.0)) as (url, store):
        page = enter(browser, url, "ada")
        page.keyboard.press("ArrowLeft")
        ready(page, 1)
        late = """minutes => { const key = "mmrlhf-session ada", session = JSON.parse(sessionStorage.getItem(key));
            sessionStorage.setItem(key, JSON.stringify({ ...session, since: session.since - 60000 * minutes })); }"""
        page.evaluate(late, 29)
        page.keyboard.press("ArrowLeft")
        ready(page, 2)
        page.evaluate(late, 1)
        page.keyboard.press("ArrowLeft")  # the question on the screen is answered first
        page.wait_for_selector('.mm[data-screen="break"]')
        assert store.count() == 3 and "3 answers are saved" in page.inner_text(".mm-break .mm-lead")
        page.keyboard.press("ArrowLeft")  # answers nothing
        page.click(".mm-break button")
        ready(page, 3)
        page.keyboard.press("ArrowLeft")
        ready(page, 4)
        assert store.count() == 4 and page.problems == []


# --- drafts ---


def reload(page: Any, answered: int = 0) -> None:
    page.reload()
    ready(page, answered)


def test_a_begun_ranking_is_there_after_a_reload(browser, items: Path, tmp_path: Path) -> None:
    with asked(items, tmp_path, "rank", per_question=4) as (url, store):
        page = enter(browser, url, "ada")
        for key in ("3", "1", "=", "2", "u", "4"):
            page.keyboard.press(key)
        before = page.locator(PLACES).all_text_contents()
        assert before == ["=2", "=2", "1", ""]
        reload(page)
        assert page.locator(PLACES).all_text_contents() == before
        assert page.get_attribute(".mm-flag >> nth=3", "aria-pressed") == "true"
        page.keyboard.press("Backspace")  # its steps are there, too
        page.wait_for_function("document.querySelectorAll('.mm-place')[1].textContent === ''")
        for key in ("2", "4", "Enter"):
            page.keyboard.press(key)
        ready(page, 1)
        (ranking,) = store.rankings()
        assert [ranking.ranks[ranking.items.index(item)] for item in ranking.shown][2] == 1
        assert page.locator(PLACES).all_text_contents() == [""] * 4  # the next question begins anew
        assert page.evaluate("Object.keys(sessionStorage).filter(key => key.startsWith('mmrlhf-draft'))") == []
        page.keyboard.press("2")
        page.keyboard.press("b")
        page.wait_for_selector(".mm.mm-past")
        ready(page, 1)
        page.keyboard.press("Escape")  # looked back, and what was begun is still there
        page.wait_for_selector(".mm:not(.mm-past)")
        ready(page, 1)
        assert page.locator(PLACES).all_text_contents() == ["", "1", "", ""]
        assert page.problems == []


def test_marks_and_points_are_there_after_a_reload(browser, items: Path, tmp_path: Path) -> None:
    with asked(items, tmp_path, "segments") as (url, store):
        page = enter(browser, url, "ada")
        for key in ("Shift+ArrowRight", "c", "End", "ArrowLeft", "i"):
            page.keyboard.press(key)
        titles = "all => all.map(m => m.title + ' ' + m.innerText.split('\\n').pop())"
        before = page.eval_on_selector_all(".mm-mark", titles)
        assert len(before) == 2
        reload(page)
        assert page.eval_on_selector_all(".mm-mark", titles) == before
        page.keyboard.press("Enter")
        ready(page, 1)
        assert [label.tag for label in store.segments()[0].segments] == ["correct", "irrelevant"]
        assert page.problems == []
    with asked(items, tmp_path, "points") as (url, store):
        page = enter(browser, url, "bo")
        for key in (" ", "ArrowRight", "2", " "):
            page.keyboard.press(key)
        reload(page)
        assert page.locator(".mm-layer .mm-dot").all_inner_texts() == ["1", "2"]
        page.keyboard.press("Enter")
        ready(page, 1)
        assert [point.tag for point in store.points()[0].points] == ["artifact", "odd"]
        assert page.problems == []


def test_a_draft_is_its_rater_s_alone(browser, items: Path, tmp_path: Path) -> None:
    with asked(items, tmp_path, "rank", per_question=4) as (url, _):
        page = enter(browser, url, "ada")
        page.keyboard.press("2")
        page.click("[data-do=logout]")
        page.wait_for_selector('.mm[data-screen="welcome"]')
        page.fill("#mm-name", "bo")
        page.keyboard.press("Enter")
        ready(page, 0)
        assert page.locator(PLACES).all_text_contents() == [""] * 4


# --- ranking by drag ---


def middle(page: Any, selector: str) -> tuple[float, float]:
    box = page.locator(selector).bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def drag(page: Any, selector: str, to: tuple[float, float]) -> None:
    page.mouse.move(*middle(page, selector))
    page.mouse.down()
    page.mouse.move(*to, steps=5)
    page.mouse.up()


def test_pictures_are_dragged_into_an_order(browser, items: Path, tmp_path: Path) -> None:
    with asked(items, tmp_path, "rank", per_question=4) as (url, store):
        page = enter(browser, url, "ada", viewport={"width": 1280, "height": 800})
        _, y = middle(page, ".mm-order")
        box = page.locator(".mm-order").bounding_box()
        x = box["x"] + box["width"] - 12  # its end
        picture = ".mm-picture >> nth={}".format

        def places() -> list[str]:
            return page.locator(PLACES).all_text_contents()

        drag(page, picture(0), (x, y))
        assert places() == ["1", "", "", ""]
        drag(page, picture(1), (x, y))  # behind the others
        assert places() == ["1", "2", "", ""]
        edge = page.locator(".mm-group >> nth=0").bounding_box()
        drag(page, picture(2), (edge["x"] + 2, y))  # before the first
        assert places() == ["2", "3", "1", ""]
        drag(page, picture(3), middle(page, ".mm-group >> nth=1"))  # on the second: the same place
        assert places() == ["=2", "3", "1", "=2"]
        drag(page, '.mm-thumb[data-place="0"]', (x, y))  # within the strip, to the end
        assert places() == ["4", "3", "1", "2"]
        drag(page, '.mm-thumb[data-place="1"]', (x, y - 200))  # off the strip
        assert places() == ["3", "", "1", "2"]
        drag(page, picture(1), (x, 5))  # nowhere: no click either
        assert places() == ["3", "", "1", "2"]
        page.keyboard.press("Backspace")
        assert places() == ["4", "3", "1", "2"]
        assert page.locator(".mm-ghost").count() == 0
        page.keyboard.press("Enter")
        ready(page, 1)
        (ranking,) = store.rankings()
        assert [ranking.ranks[ranking.items.index(item)] for item in ranking.shown] == [4, 3, 1, 2]
        page.click(".mm-picture >> nth=2")  # a click is still one
        assert places() == ["", "", "1", ""]
        assert page.problems == []


def test_a_finger_drags_on_a_phone(browser, items: Path, tmp_path: Path) -> None:
    with asked(items, tmp_path, "rank", per_question=4) as (url, _):
        page = enter(browser, url, "ada", **PHONE)
        touch = page.context.new_cdp_session(page)
        for number in (2, 0):
            (x, y), (to_x, to_y) = middle(page, f".mm-picture >> nth={number}"), middle(page, ".mm-order")
            touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
            for part in (0.3, 0.6, 1.0):
                point = {"x": x + part * (to_x - x), "y": y + part * (to_y - y)}
                touch.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [point]})
            touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        page.wait_for_function("document.querySelectorAll('.mm-thumb').length === 2")
        assert page.locator(PLACES).all_text_contents() == ["2", "", "1", ""]
        assert page.evaluate("window.scrollY") == 0 and page.problems == []
