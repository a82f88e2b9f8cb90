"""The newer modes of the rating app in a real browser: by mouse, by keyboard, with undo, skip, and the veto."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from apps.rate_answers import said, shown
from apps.rate_items import KINDS, Mode, read_questions
from mmrlhf.images import save_image
from mmrlhf.store import Store, Task
from mmrlhf.types import SegmentLabel
from tests.apps.raters import App, enter, ready, served

EVIL = "<script>window.evil = 1</script><img src=x onerror='window.evil = 1'>"
ANSWER = f"A red 🐶 dog {EVIL} runs."
PROMPT = f"what is it {EVIL}"
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 780}, "has_touch": True, "is_mobile": True}
CRITERIA = ("quality", "prompt <b>fit</b>")


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six small pictures of one prompt, twice as wide as high, each with an answer."""
    folder = tmp_path_factory.mktemp("pictures")
    rows = []
    for i in range(6):
        save_image(torch.full((3, 16, 32), i / 6), folder / f"{i}.png")
        rows.append({"prompt": PROMPT, "image": f"{i}.png", "answer": ANSWER})
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@contextlib.contextmanager
def asked(
    items: Path, path: Path, mode: Mode, *, tags: tuple[str, ...] = (), **options: Any
) -> Iterator[tuple[str, Store]]:
    """(url, store) of the app in one mode."""
    store = Store(str(path / "r.db"))
    pictures, tasks = read_questions(items, mode, **options)
    store.add_items(pictures)
    store.add_tasks(tasks)
    with served(store, mode=mode, tags=tags, overlap=9) as client:
        yield str(client.base_url).rstrip("/"), store
    store.close()


def press(page: Any, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def answers(store: Store, mode: Mode, name: str) -> list[dict[str, Any]]:
    """What the rater's current answers say, oldest first."""
    found = [said(answer, name) for answer in reversed(store.answers(name, limit=99, kind=KINDS[mode]))]
    return [{key: value for key, value in answer.items() if key != "number"} for answer in found]


def back(page: Any, answered: int) -> None:
    press(page, "b")
    page.wait_for_selector(".mm.mm-past")
    ready(page, answered)


def flagged(page: Any) -> list[bool]:
    states = page.eval_on_selector_all(".mm-slot:not([hidden]) .mm-flag", "all => all.map(f => f.ariaPressed)")
    return [state == "true" for state in states]


def harmless(page: Any) -> None:
    """Nothing that was only text has become more than text."""
    assert page.evaluate("window.evil") is None
    for place in (".mm-prompt", ".mm-text", ".mm-tag", ".mm-said", ".mm-name"):
        assert page.locator(f"{place} :is(script, img, b)").count() == 0
    assert page.problems == []


def test_vetoes_of_pairs_by_key_and_by_mouse(browser, items: Path, tmp_path: Path) -> None:
    with asked(items, tmp_path, "pair") as (url, store):
        page = enter(browser, url, "ada")
        press(page, "u", "2")
        assert flagged(page) == [False, True]
        press(page, "u", "1", "u", "1")  # there and back
        press(page, "ArrowLeft")
        ready(page, 1)
        assert flagged(page) == [False, False]  # the next pair's own
        press(page, "u", "Escape", "ArrowDown")  # changed their mind: no flag, and the arrow is an answer again
        ready(page, 2)
        page.click(".mm-flag >> nth=0")
        page.click(".mm-flag >> nth=1")
        press(page, "s")
        ready(page, 3)
        said = answers(store, "pair", "ada")
        assert [(a["choice"], a["unsafe"]) for a in said] == [("left", [1]), ("tie", []), ("skip", [0, 1])]
        back(page, 3)
        assert flagged(page) == [True, True]
        page.click(".mm-flag >> nth=0")
        press(page, "ArrowUp")
        page.wait_for_selector(".mm:not(.mm-past)")
        assert answers(store, "pair", "ada")[-1] == {"choice": "both_bad", "value": None, "unsafe": [1]}
        first = store.answers("ada", limit=9)[-1]
        assert first.unsafe == (shown(first.task, "ada")[1],)
        harmless(page)


def test_a_veto_of_a_single_picture(browser, items: Path, tmp_path: Path) -> None:
    with asked(items, tmp_path, "likert") as (url, store):
        page = enter(browser, url, "ada")
        press(page, "u", "3")
        ready(page, 1)
        press(page, "u", "u", "2")
        ready(page, 2)
        assert [(j.score, j.unsafe == (j.item,)) for j in store.judgements()] == [(3.0, True), (2.0, False)]
        assert [veto.item for veto in store.vetoes()] == [store.judgements()[0].item]


def test_several_criteria(browser, items: Path, tmp_path: Path) -> None:
    with asked(items, tmp_path, "criteria", criteria=CRITERIA) as (url, store):
        page = enter(browser, url, "ada")
        assert page.locator(".mm-name").all_inner_texts() == list(CRITERIA)
        press(page, "Enter")
        assert "Give a level for quality" in page.inner_text(".mm-alert")
        press(page, "4", "Backspace", "5", "2")  # undone, then each in turn
        page.click(".mm-row >> nth=1 >> .mm-level >> nth=0")
        press(page, "ArrowUp", "3", "u", "Enter")
        ready(page, 1)
        page.click(".mm-row >> nth=1 >> .mm-level >> nth=4")
        page.click(".mm-row >> nth=0 >> .mm-level >> nth=3")
        page.click("[data-do=save]")
        ready(page, 2)
        press(page, "1", "s")  # a draft is no answer
        ready(page, 3)
        first, second = ({CRITERIA[0]: a, CRITERIA[1]: b} for a, b in ((3, 1), (4, 5)))
        assert answers(store, "criteria", "ada") == [
            {"choice": "save", "value": first, "unsafe": [0]},
            {"choice": "save", "value": second, "unsafe": []},
            {"choice": "skip", "value": None, "unsafe": []},
        ]
        back(page, 3)
        back(page, 3)
        assert page.locator(".mm-level.mm-chosen").all_inner_texts() == ["4", "5"]
        press(page, "1", "Enter")
        page.wait_for_selector(".mm:not(.mm-past)")
        assert answers(store, "criteria", "ada")[-1]["value"] == {CRITERIA[0]: 1, CRITERIA[1]: 5}
        harmless(page)


def test_an_answer_is_judged_by_criteria(browser, items: Path, tmp_path: Path) -> None:
    with asked(items, tmp_path, "points") as (_, store):
        store.add_tasks([Task(PROMPT, (next(iter(store.items())),), "likert", text=ANSWER, criteria=CRITERIA)])
        with served(store, mode="criteria") as client:
            page = enter(browser, str(client.base_url).rstrip("/"), "ada")
            assert page.inner_text(".mm-about") == ANSWER and page.locator(".mm-about *").count() == 0
            press(page, "5", "4", "Enter")
            page.wait_for_selector('.mm[data-screen="done"]')
            harmless(page)
        assert [(j.text, list(j.scores.values())) for j in store.likert()] == [(ANSWER, [5, 4])]
        assert store.progress(kind="likert").complete == 1


def test_ranks_by_keys_and_by_mouse(browser, items: Path, tmp_path: Path) -> None:
    with asked(items, tmp_path, "rank", per_question=3) as (url, store):
        page = enter(browser, url, "ada")
        press(page, "2", "=", "3", "Enter")
        assert "Give each picture a place first" in page.inner_text(".mm-alert")
        assert page.locator(".mm-slot:not([hidden]) .mm-place").all_text_contents() == ["", "=1", "=1"]
        press(page, "1", "u", "3", "Enter")
        ready(page, 1)
        for place in (2, 0, 1):
            page.click(f".mm-picture >> nth={place}")
        page.click(".mm-picture >> nth=0")  # taken out again: who came after moves up
        assert page.locator(".mm-slot:not([hidden]) .mm-place").all_text_contents() == ["", "2", "1"]
        press(page, "Backspace")
        assert page.locator(".mm-slot:not([hidden]) .mm-place").all_text_contents() == ["2", "3", "1"]
        page.click(".mm-picture >> nth=1")
        page.click("[data-same]")
        page.click(".mm-picture >> nth=1")
        page.click("[data-do=save]")
        page.wait_for_selector('.mm[data-screen="done"]')
        assert answers(store, "rank", "ada") == [
            {"choice": "save", "value": [2, 1, 1], "unsafe": [2]},
            {"choice": "save", "value": [2, 2, 1], "unsafe": []},
        ]
        for ranking in store.rankings():
            assert len(set(ranking.items)) == 3 and sorted(ranking.shown) == sorted(ranking.items)
        back(page, 2)
        assert page.locator(".mm-slot:not([hidden]) .mm-place").all_text_contents() == ["=2", "=2", "1"]
        press(page, "s")
        page.wait_for_selector('.mm[data-screen="done"]')
        assert len(store.rankings()) == 1
        harmless(page)


def texts(store: Store) -> list[tuple[str, str, str | None]]:
    """(words, tag, correction) of the newest marks."""
    record = store.segments()[-1]
    return [(record.text[s.start : s.end], s.tag, s.correction) for s in record.segments]


def test_words_are_marked_by_keys(browser, items: Path, tmp_path: Path) -> None:
    with asked(items, tmp_path, "segments") as (url, store):
        page = enter(browser, url, "ada")
        assert page.inner_text(".mm-text") == ANSWER
        press(page, "Shift+ArrowRight", "c", "ArrowRight", "m")
        page.keyboard.type(f"u b s {EVIL}")  # typed, not pressed
        press(page, "Enter")
        assert f"should be “u b s {EVIL}”" in page.inner_text(".mm-said")
        press(page, "ArrowRight", "i", "End", "ArrowLeft", "m", "Escape")  # without a correction
        tags = page.eval_on_selector_all(".mm-mark", "all => all.map(m => m.title)")
        assert tags == ["correct", f"misleading → u b s {EVIL}", "irrelevant", "misleading"]
        assert all(page.locator(".mm-tag").all_inner_texts())  # not by colour alone
        harmless(page)
        press(page, "u", "Enter")
        ready(page, 1)
        marks: list[tuple[str, str, str | None]] = [
            ("A red", "correct", None),
            ("🐶", "misleading", f"u b s {EVIL}"),
            ("dog", "irrelevant", None),
            ("runs", "misleading", None),
        ]
        assert texts(store) == marks
        (record,) = store.segments()
        assert record.segments[1] == SegmentLabel(
            record.item, 6, 7, "misleading", marks[1][2]
        )  # characters, not UTF-16
        assert record.unsafe == (record.item,)
        back(page, 1)
        press(page, "Home", "x")  # one of two words: the other keeps its mark
        press(page, "Enter")
        page.wait_for_selector(".mm:not(.mm-past)")
        assert texts(store) == [("red", "correct", None), *marks[1:]]
        press(page, "Enter")
        ready(page, 2)
        assert texts(store) == []  # nothing to mark
        harmless(page)


def test_words_are_marked_by_the_mouse(browser, items: Path, tmp_path: Path) -> None:
    with asked(items, tmp_path, "segments") as (url, store):
        page = enter(browser, url, "ada", viewport={"width": 1280, "height": 800})

        def drag(first: int, last: int) -> None:
            boxes = [page.locator(".mm-w").nth(i).bounding_box() for i in (first, last)]
            (x, y), (to_x, to_y) = ((box["x"] + box["width"] / 2, box["y"] + box["height"] / 2) for box in boxes)
            page.mouse.move(x, y)
            page.mouse.down()
            page.mouse.move(to_x, to_y, steps=6)
            page.mouse.up()

        drag(0, 3)
        page.click("[data-tag=correct]")
        assert page.locator(".mm-sel").count() == 4
        drag(2, 1)  # backwards, within the mark: it is cut in two
        page.click("[data-tag=misleading]")
        page.fill("#mm-correction", "red 🐶")  # what stands there
        press(page, "Enter")
        assert "stands there already" in page.inner_text(".mm-alert")
        drag(1, 2)
        page.click("[data-tag=misleading]")
        page.fill("#mm-correction", "blue")
        page.click("[data-do=save]")  # without Enter: what was typed counts
        ready(page, 1)
        expected: list[tuple[str, str, str | None]] = [
            ("A", "correct", None),
            ("red 🐶", "misleading", "blue"),
            ("dog", "correct", None),
        ]
        assert texts(store) == expected
        drag(0, 0)
        page.click("[data-tag=irrelevant]")
        drag(0, 0)
        page.click("[data-tag='']")
        assert page.locator(".mm-mark").count() == 0
        page.click("[data-do=undo]")
        assert page.locator(".mm-mark").count() == 1
        page.click("[data-do=undo]")
        assert page.locator(".mm-mark").count() == 0 and page.locator("[data-do=undo]").is_disabled()
        page.click(".mm-quiet [data-choice=skip]")
        ready(page, 2)
        assert answers(store, "segments", "ada")[-1]["choice"] == "skip"
        harmless(page)


def test_points_by_mouse_and_keys(browser, items: Path, tmp_path: Path) -> None:
    with asked(items, tmp_path, "points", tags=("artifact", "odd <b>")) as (url, store):
        page = enter(browser, url, "ada", viewport={"width": 1280, "height": 800})
        box = page.locator(".mm-layer").bounding_box()
        assert box["width"] == pytest.approx(2 * box["height"], rel=0.02)  # on the picture, not on the square around it
        page.mouse.click(box["x"] + 0.25 * box["width"], box["y"] + 0.5 * box["height"])
        page.mouse.click(box["x"] + 0.25 * box["width"], box["y"] - 10)  # beside the picture: nothing
        press(page, "2", "ArrowRight", "Shift+ArrowDown", " ", "ArrowRight", " ", "Backspace", "u", "Enter")
        ready(page, 1)
        (record,) = store.points()
        (x, y, tag), second = record.points
        assert (x, y, tag) == (pytest.approx(0.25, abs=0.01), pytest.approx(0.5, abs=0.01), "artifact")
        assert second == (pytest.approx(0.27, abs=0.01), pytest.approx(0.6, abs=0.01), "odd <b>")
        assert record.unsafe == (record.item,)
        back(page, 1)
        assert page.locator(".mm-layer .mm-dot").all_inner_texts() == ["1", "2"]
        page.mouse.click(box["x"] + 0.25 * box["width"], box["y"] + 0.5 * box["height"])  # on a point: it goes
        page.click("[data-do=save]")
        page.wait_for_selector(".mm:not(.mm-past)")
        assert [point.tag for point in store.points()[0].points] == ["odd <b>"]
        press(page, "Enter")
        ready(page, 2)
        assert store.points()[-1].points == ()
        harmless(page)


MODES: list[tuple[Mode, dict[str, Any]]] = [
    ("criteria", {"criteria": CRITERIA}),
    ("rank", {"per_question": 6}),
    ("segments", {}),
    ("points", {"tags": ("artifact", "odd")}),
]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("mode", "options"), MODES)
def test_each_mode_fits_a_phone(browser, items: Path, tmp_path: Path, mode: Mode, options: dict, scheme: Any) -> None:
    with asked(items, tmp_path, mode, **options) as (url, _):
        page = enter(browser, url, "ada", **PHONE, color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        for button in page.locator(".mm-rate button:visible, .mm-rate input:visible").all():
            box = button.bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= 390
            assert box["height"] >= 36 and box["width"] >= 36
        shades = page.eval_on_selector_all(
            ".mm-rate .mm-button:visible",
            "all => all.map(b => [getComputedStyle(b).color, getComputedStyle(b).backgroundColor])",
        )
        assert all(ink != ground for ink, ground in shades)
        harmless(page)


@pytest.mark.parametrize(("mode", "options"), MODES)
def test_an_answer_moves_nothing_on_the_page(browser, items: Path, tmp_path: Path, mode: Mode, options: dict) -> None:
    """Levels, places, marks and points come into room that was kept for them."""
    keys = {
        "criteria": ["2", "3"],
        "rank": ["2", "=", "1"],
        "segments": ["c", "ArrowRight", "m", "Escape"],
        "points": [" "],
    }
    with asked(items, tmp_path, mode, **options) as (url, _):
        page = enter(browser, url, "ada", viewport={"width": 1280, "height": 800})
        places = "all => all.map(b => JSON.stringify(b.getBoundingClientRect()))"
        before = page.eval_on_selector_all(".mm-rate button, .mm-w, .mm-rate img", places)
        press(page, "u", "1", *keys[mode])
        page.wait_for_timeout(200)  # transitions
        assert page.eval_on_selector_all(".mm-rate button, .mm-w, .mm-rate img", places) == before


def test_the_command_line_asks_by_criteria(browser, items: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    running = App(
        "--items", str(items), "--store", str(path), "--mode", "likert", "--criteria", "quality", "fit", "--port", "0"
    )
    try:
        page = enter(browser, running.url, "ada")
        press(page, "5", "1", "Enter")
        ready(page, 1)
    finally:
        ending = running.stop()
    assert ending.splitlines()[-1].startswith("1 judgements in ")
    store = Store(str(path))
    assert [judgement.scores for judgement in store.likert()] == [{"quality": 5, "fit": 1}]
    store.close()


def lose_the_reply(route) -> None:
    """The server gets the request, or this time the connection to it was closed; the page gets nothing."""
    from playwright.sync_api import Error

    with contextlib.suppress(Error):
        route.fetch()
    route.abort()


def test_a_draft_lost_on_the_way_is_sent_again_once(browser, items: Path, tmp_path: Path) -> None:
    with asked(items, tmp_path, "segments") as (url, store):
        page = enter(browser, url, "ada")
        page.route("**/api/vote", lose_the_reply)
        press(page, "c", "u", "Enter")
        page.wait_for_selector(".mm-alert >> text=Not saved yet")
        page.unroute("**/api/vote")
        page.reload()
        ready(page, 1)
        assert len(store.segments(include_superseded=True)) == 1
        assert texts(store) == [("A", "correct", None)]
