"""The rating app as raters meet it: the command line, the routes, and the card in a real browser."""

import json
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
from PIL import Image

from apps import rate_server
from apps.rate import RateConfig, rate, serve, serve_until
from apps.rate_answers import Vote, choice_of, preference, shown
from apps.rate_items import Mode, draw_pairs, read_questions
from apps.rate_login import sign, verify
from mmrlhf.errors import UserError
from mmrlhf.images import SUFFIXES, content_hash, save_image
from mmrlhf.store import Answer, Store, Task
from tests.apps.raters import App, enter, ready, served

PROMPTS = ("a red <b>bus</b>", "a cat")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of six small pictures with an items.jsonl: three for each prompt."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = torch.Generator().manual_seed(0)
    lines = []
    for i in range(6):
        colour = torch.rand(3, 1, 1, generator=generator)
        save_image(colour.expand(3, 32, 32), folder / f"{i}.png")
        lines.append(json.dumps({"prompt": PROMPTS[i // 3], "image": f"{i}.png"}))
    (folder / "items.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def new_store(path: Path, pictures: Path, mode: Mode = "pair") -> Store:
    """A store with the questions about the pictures: two rings of three pairs, or six single ones."""
    store = Store(str(path))
    items, tasks = read_questions(pictures, mode, pairs_per_item=2, seed=0)
    store.add_items(items)
    store.add_tasks(tasks)
    return store


@pytest.fixture
def store(tmp_path: Path, pictures: Path) -> Iterator[Store]:
    opened = new_store(tmp_path / "ratings.db", pictures)
    yield opened
    opened.close()


# --- the user's files ---


def test_a_folder_of_pictures_without_a_list(tmp_path: Path) -> None:
    for i in range(5):
        save_image(torch.full((3, 8, 8), i / 5), tmp_path / "inner" / f"{i}.png")
    items, tasks = read_questions(tmp_path, "pair", pairs_per_item=4, seed=0)
    assert len(items) == 5 and len(tasks) == 10  # all there are
    assert {prompt for _, prompt in items.values()} == {""}
    path = tmp_path / "inner" / "0.png"
    assert items[content_hash(path.read_bytes())] == (str(path.resolve()), "")


def test_items_are_paired_within_their_prompt_only(pictures: Path) -> None:
    items, tasks = read_questions(pictures, "pair", pairs_per_item=2, seed=0)
    assert len(items) == 6 and len(tasks) == 6
    for task in tasks:
        assert items[task.item_0][1] == items[task.item_1][1] == task.prompt
    assert len(read_questions(pictures, "likert", pairs_per_item=2, seed=0)[1]) == 6


def test_pairs_of_a_list_are_asked_as_they_are(pictures: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "p", "image_0": str(pictures / "0.png"), "image_1": str(pictures / f"{i}.png")} for i in (1, 2)]
    (tmp_path / "PAIRS.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for source in (tmp_path, tmp_path / "PAIRS.jsonl"):
        items, tasks = read_questions(source, "pair", pairs_per_item=4, seed=0)
        assert len(items) == 3 and [task.prompt for task in tasks] == ["p", "p"]
        assert tasks[0].item_0 == tasks[1].item_0 == content_hash((pictures / "0.png").read_bytes())


def test_drawn_pairs_link_all_items_evenly_and_repeat_by_seed() -> None:
    keys = [f"k{i}" for i in range(200)]
    tasks = draw_pairs({"p": keys}, 4, 0)
    assert tasks == draw_pairs({"p": keys}, 4, 0) != draw_pairs({"p": keys}, 4, 1)
    assert len({task.key for task in tasks}) == len(tasks) == 400
    reached, edge = {"k0"}, {"k0"}
    while edge:
        edge = {b for t in tasks for a, b in ((t.item_0, t.item_1), (t.item_1, t.item_0)) if a in edge} - reached
        reached |= edge
    assert reached == set(keys)
    counts = [sum(key in (t.item_0, t.item_1) for t in tasks) for key in keys]
    assert min(counts) >= 3 and max(counts) <= 5


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("gone", None, "no items at"),
        ("items.csv", "a,b", "give a folder of pictures, ITEMS.jsonl or PAIRS.jsonl"),
        ("a.jsonl", "{not json", r"a.jsonl:1 is not JSON"),
        ("a.jsonl", '\n{"prompt": "p"}', r"a.jsonl:2 names no picture"),
        ("a.jsonl", '{"prompt": "p", "image": "missing.png"}', r"no picture .*missing.png"),
        ("a.jsonl", '{"prompt": "p", "image": "a.jsonl"}', "is not a readable picture"),
        ("a.jsonl", '{"prompt": 3, "image": "x.png"}', "the prompt is 3: give a text"),
        ("a.jsonl", '{"prompt": "p", "image": 3}', "the picture is 3: give the path"),
        ("a.jsonl", "", "nothing to compare"),
    ],
)
def test_bad_items_are_one_line(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_questions(tmp_path / name, "pair", pairs_per_item=4, seed=0)


def test_a_picture_that_the_app_would_not_serve_is_one_line(tmp_path: Path) -> None:
    """Every suffix that a folder is searched for is served; another format in a list is refused before anyone is asked."""
    picture = Image.new("RGB", (8, 8))
    for number, suffix in enumerate(SUFFIXES):
        picture.putpixel((0, 0), (50 * number, 0, 0))
        picture.save(tmp_path / f"{number}{suffix}")
    assert len(read_questions(tmp_path, "likert", pairs_per_item=2, seed=0)[1]) == len(SUFFIXES)
    picture.save(tmp_path / "x.tiff")
    (tmp_path / "a.jsonl").write_text('{"prompt": "p", "image": "x.tiff"}')
    with pytest.raises(UserError, match=r"x.tiff is TIFF, allowed are .png, .* .gif: convert it to PNG"):
        read_questions(tmp_path / "a.jsonl", "likert", pairs_per_item=2, seed=0)


def test_a_picture_too_large_to_be_true_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_image(torch.zeros(3, 16, 16), tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match=r"bomb.png is not a readable picture .*exceeds limit.*: give PNG") as caught:
        read_questions(tmp_path, "likert", pairs_per_item=2, seed=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "rank"}, "has 3 different pictures, --per-question 4 takes as many or more: give more pictures"),
        ({"mode": "rank", "per_question": 7}, "--per-question got 7, allowed is 2 to 6"),
        ({"mode": "segments"}, "items.jsonl:1 has no answer, --mode segments takes"),
        ({"mode": "points", "tags": ()}, "--tags got none, allowed are 1 or more"),
        ({"mode": "points", "tags": ("a", "a")}, "--tags got .* allowed are up to 9 different names"),
        ({"criteria": ("quality",)}, "--criteria goes with --mode likert, got pair"),
        ({"mode": "likert", "criteria": ("a", " ")}, "--criteria got .* allowed are up to 9 different names"),
        ({"overlap": 0}, "--overlap got 0, allowed is 1 or more"),
        ({"pairs_per_item": 1}, "got 1 pairs per item, allowed is 2 or more"),
        ({"port": 70000}, "--port got 70000"),
        ({"host": "192.0.2.1", "port": 0}, "cannot serve at 192.0.2.1:0"),
    ],
)
def test_bad_options_are_one_line(tmp_path: Path, pictures: Path, change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        rate(RateConfig(**{"items": pictures, "store": str(tmp_path / "r.db"), **change}))
    assert list(tmp_path.iterdir()) == []  # nothing half-made


# --- choices and records ---


def test_a_choice_and_its_record_are_each_other_s_reverse() -> None:
    task = Task("p", ("aa", "bb"))
    sides = set()
    for annotator in ("ada", "bo", "cy", "dee", "eve", "flo"):
        left, right = shown(task, annotator)
        sides.add((left, right))
        for choice in ("left", "right", "tie", "both_bad"):
            vote = Vote(vote_id="0" * 32, task=task.key, choice=choice, seconds=1.5)
            record = preference(task, vote, annotator, "now")
            assert record.shown == (left, right) and record.source == "human" and record.seconds == 1.5
            assert choice_of(Answer(1, task, "pair", record.label, record.extra), annotator) == choice
            preferred = {1.0: "aa", 0.0: "bb", 0.5: None}[record.label]
            assert preferred == {"left": left, "right": right}.get(choice)
            assert record.extra == ({"both_bad": True} if choice == "both_bad" else {})
    assert len(sides) == 2  # not the same for all raters
    assert shown(task, "ada") == shown(Task("p", ("bb", "aa")), "ada")


def test_a_name_cannot_be_forged() -> None:
    secret = b"s" * 32
    assert verify(sign("Zoë ☂", secret), secret) == "Zoë ☂"
    assert verify(sign("Zoë", b"t" * 32), secret) is None
    for cookie in ("", ".", "abc", "é.é", sign("ada", secret)[:-1], "Ym8." + sign("ada", secret).partition(".")[2]):
        assert verify(cookie, secret) is None


# --- the routes ---


def choose(client: httpx.Client, state: dict, button: str, number: int = 0, **changes: object) -> httpx.Response:
    body = {"vote_id": f"{number:032x}", "task": state["tasks"][0]["task"], "choice": button, "seconds": 2.0}
    return client.post("/api/vote", json={**body, **changes})


def test_the_routes(store: Store, pictures: Path) -> None:
    with served(store, overlap=2, instructions="Look well.") as client:
        assert client.get("/api/state").json() == {"name": None, "mode": "pair", "instructions": "Look well."}
        key = next(iter(store.items()))
        for path in (f"/images/{key}", "/api/back"):
            assert client.get(path).status_code == 401  # nothing without a name
        state = client.post("/api/login", json={"name": "  Ada   L "}).json()
        assert (state["name"], state["answered"], state["total"], len(state["tasks"])) == ("Ada L", 0, 6, 2)
        image = client.get("/" + state["tasks"][0]["images"][0])
        assert image.headers["content-type"] == "image/png" and content_hash(image.content) in store.items()
        first = choose(client, state, "left", 1).json()
        assert choose(client, state, "left", 1).json()["answered"] == first["answered"] == 1  # a retry
        assert first["tasks"][0] == state["tasks"][1]  # the preloaded one
        assert len(store.preferences(include_superseded=True)) == 1
        assert choose(client, first, "skip", 2).json()["answered"] == 2
        back = client.get("/api/back").json()["question"]
        assert back["choice"] == "skip" and back["task"] == first["tasks"][0]["task"]
        back = client.get("/api/back", params={"before": back["number"]}).json()["question"]
        assert back["choice"] == "left" and back["images"] == state["tasks"][0]["images"]
        assert client.get("/api/back", params={"before": back["number"]}).json()["question"] is None
        assert client.post("/api/logout").json()["name"] is None
        assert client.get("/api/back").status_code == 401


def test_the_routes_refuse_what_is_not_asked(store: Store) -> None:
    with served(store, annotator_names=("ada",)) as client:
        for name, message in (
            ("bo", "not on the list"),
            ("", "1 to 60"),
            ("Simulated-x", "simulated"),
            ("AI-judge", "not people"),
            ("a\x00b", "1 to 60"),
        ):
            answer = client.post("/api/login", json={"name": name})
            assert answer.status_code == 422 and message in answer.json()["detail"]
        client.cookies.set("mmrlhf_rater", sign("bo", store.secret()))
        assert client.get("/api/back").status_code == 401  # signed, but no longer on the list
        client.cookies.clear()
        state = client.post("/api/login", json={"name": "ada"}).json()
        assert choose(client, state, "left", task="0" * 32).status_code == 404
        for change in ({"choice": "5"}, {"choice": "up"}, {"seconds": -1}, {"vote_id": "x"}, {"seconds": "NaN"}):
            assert choose(client, state, "left", **change).status_code == 422
        for path in ("/api/login", "/api/vote"):  # half a character, which no answer could repeat
            answer = client.post(path, content=b'{"name": "a\\ud800b", "vote_id": "\\ud800"}')
            assert answer.status_code == 422 and answer.json()["detail"] == "The server did not understand this."
        for before in ("9" * 30, str(2**63), "-1", "x"):
            assert client.get("/api/back", params={"before": before}).status_code == 422
        assert client.get("/api/back", params={"before": 2**63 - 1}).status_code == 200
        assert store.preferences() == []


def test_no_file_is_served_but_registered_pictures(store: Store, pictures: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed.png"
    changed.write_bytes(b"\x89PNG but not what was registered")
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    text_hash = content_hash(b"secret")
    store.add_items({"f" * 32: (changed, ""), "e" * 32: (tmp_path / "gone.png", ""), text_hash: (secret, "")})
    with served(store) as client:
        client.post("/api/login", json={"name": "ada"})
        for key in ("f" * 32, "e" * 32, text_hash, "d" * 32, "..%2f..%2fetc%2fpasswd", str(secret)):
            assert client.get(f"/images/{key}").status_code == 404, key
        for path in (store.path, pictures / "0.png", secret, "/etc/passwd"):
            for route in ("/gradio_api/file=", "/file=", "/gradio_api//file="):
                assert client.get(f"{route}{path}").status_code == 404, route
        upload = client.post("/gradio_api/upload", files={"files": ("a.txt", b"hello")})
        assert upload.status_code == 404


def test_two_raters_share_the_queue_and_a_likert_scale(tmp_path: Path, pictures: Path) -> None:
    store = new_store(tmp_path / "l.db", pictures, "likert")
    with served(store, mode="likert", overlap=1) as ada, httpx.Client(base_url=ada.base_url, trust_env=False) as bo:
        states = {
            client: client.post("/api/login", json={"name": name}).json() for client, name in ((ada, "ada"), (bo, "bo"))
        }
        number = 0
        while any(state["tasks"] for state in states.values()):
            for client, state in states.items():
                if state["tasks"]:
                    number += 1
                    states[client] = choose(client, state, str(number % 5 + 1), number).json()
                else:
                    states[client] = client.get("/api/state").json()
        assert ada.get("/api/state").json()["finished"]
    judgements = store.judgements()
    assert len(judgements) == len({j.item for j in judgements}) == 6  # overlap 1: nobody's picture twice
    assert {j.annotator for j in judgements} == {"ada", "bo"} and {j.score for j in judgements} == {1, 2, 3, 4, 5}
    store.close()


def answer(store: Store, task: Task, annotator: str, number: int = 0) -> None:
    """A tie of an annotator, past the routes."""
    vote = Vote(vote_id=f"{number:032x}", task=task.key, choice="tie", seconds=1.0)
    store.add(preference(task, vote, annotator, ""))


def test_a_skipped_question_waits_while_another_rater_has_it(store: Store) -> None:
    assert len(store.waiting(1)) == 6
    for number, task in enumerate(store.next_tasks("ada", count=5)):
        answer(store, task, "ada", number)
    (last,) = store.next_tasks("ada")
    assert store.waiting(1) == {last.key}
    store.skip(last, "ada")
    assert store.waiting(1) == set() and len(store.waiting(2)) == 5
    assert store.next_tasks("bo") == [last] and store.waiting(1) == {last.key}
    store.skip(last, "bo")
    assert store.waiting(1) == set()
    answer(store, last, "ada", 9)  # changed her mind
    assert store.waiting(1) == set() and store.waiting(1, kind="score") == set()


def test_serve_until_ends_when_all_its_tasks_are_answered_or_skipped(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_server, "OFFER_SECONDS", 0.2)
    tasks = store.next_tasks("ada", count=4)
    thread = threading.Thread(target=serve_until, args=(store, tasks[:3]), kwargs={"port": 0})
    thread.start()
    answer(store, tasks[3], "ada", 3)  # none of those waited for
    for number, task in enumerate(tasks[:2]):
        answer(store, task, "ada", number)
    thread.join(2)
    assert thread.is_alive()
    store.skip(tasks[2], "ada")
    thread.join(60)
    assert not thread.is_alive() and store.progress().complete == 3


def test_a_skipped_question_is_offered_to_the_others_first(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bo, who had nothing left to do, gets what ada skips; the end waits for her."""
    monkeypatch.setattr(rate_server, "OFFER_SECONDS", 1.0)
    tasks = store.next_tasks("ada", count=6)
    for number, task in enumerate(tasks[:5]):
        answer(store, task, "ada", number)
    store.skip(tasks[5], "ada")
    offered = threading.Event()

    def sleep(seconds: float, sleep=rate_server.time.sleep) -> None:
        if seconds == 1.0 and not offered.is_set():
            assert store.next_tasks("bo") == [tasks[5]]
            offered.set()
        sleep(0.05)

    monkeypatch.setattr(rate_server.time, "sleep", sleep)
    thread = threading.Thread(target=rate_server.wait_until_settled, args=(store, tasks, 1))
    thread.start()
    assert offered.wait(30)
    thread.join(1)
    assert thread.is_alive()
    answer(store, tasks[5], "bo", 5)
    thread.join(60)
    assert not thread.is_alive()


def test_a_taken_port_is_one_line(store: Store) -> None:
    with served(store) as client:
        with pytest.raises(UserError, match="give another --port"):
            serve(store, port=client.base_url.port or 0, block=False)


# --- the command line and the browser ---


@pytest.fixture(scope="module")
def app(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[App, Path]]:
    path = tmp_path_factory.mktemp("store") / "ratings.db"
    running = App("--items", str(pictures), "--store", f"sqlite:///{path}", "--port", "0", "--overlap", "9")
    yield running, path
    assert "judgements in" in running.stop()


def labels(path: Path, name: str) -> list[str]:
    """What a rater's current votes say, oldest first, in the words of the buttons."""
    store = Store(str(path))
    answers = store.answers(name, limit=100)
    store.close()
    return [choice_of(answer, name) for answer in reversed(answers)]


def test_keys_mouse_and_undo(browser, app: tuple[App, Path]) -> None:
    running, path = app
    page = enter(browser, running.url, "keys")
    assert page.inner_text(".mm-prompt") in PROMPTS  # as text: no tag of a prompt becomes an element
    assert page.locator(".mm-prompt b").count() == 0
    for number, key in enumerate(["ArrowLeft", "ArrowDown", "ArrowUp", "s"], start=1):
        page.keyboard.press(key)
        ready(page, number)
    assert page.inner_text(".mm-pace") == ""  # too few answers to tell
    page.click(".mm-picture >> nth=1")
    ready(page, 5)
    assert page.inner_text(".mm-pace") == "under a minute left"
    assert labels(path, "keys") == ["left", "tie", "both_bad", "skip", "right"]
    prompt, sources = (
        page.inner_text(".mm-prompt"),
        page.eval_on_selector_all(".mm-picture img", "all => all.map(i => i.src)"),
    )
    page.keyboard.press("b")
    page.wait_for_selector(".mm.mm-past")
    ready(page, 5)
    assert page.get_attribute(".mm-picture >> nth=1", "class").split() == ["mm-picture", "mm-chosen"]
    page.keyboard.press("b")  # two back: the skipped one
    page.wait_for_selector(".mm-link.mm-chosen")
    ready(page, 5)
    page.click(".mm-button >> text=Left")
    page.wait_for_selector(".mm:not(.mm-past)")
    ready(page, 5)
    assert labels(path, "keys") == ["left", "tie", "both_bad", "right", "left"]
    page.keyboard.press("b")
    page.wait_for_selector(".mm.mm-past")
    ready(page, 5)
    page.keyboard.press("Escape")  # looked, and kept
    page.wait_for_selector(".mm:not(.mm-past)")
    ready(page, 5)
    assert labels(path, "keys") == ["left", "tie", "both_bad", "right", "left"]
    assert page.inner_text(".mm-prompt") == prompt
    assert page.eval_on_selector_all(".mm-picture img", "all => all.map(i => i.src)") == sources
    page.keyboard.press("ArrowRight")
    page.wait_for_selector('.mm[data-screen="done"]')
    assert "6 answers are saved" in page.inner_text(".mm-done .mm-lead")
    page.keyboard.press("b")
    page.wait_for_selector(".mm.mm-past")
    assert page.problems == []


def test_a_held_key_is_one_vote(browser, app: tuple[App, Path]) -> None:
    running, path = app
    page = enter(browser, running.url, "holder")
    for _ in range(4):  # the browser repeats a key that is held down
        page.keyboard.down("ArrowLeft")
        page.wait_for_timeout(120)
    ready(page, 1)
    assert labels(path, "holder") == ["left"]


def test_a_reload_goes_on_where_the_rater_was(browser, app: tuple[App, Path]) -> None:
    running, _ = app
    page = enter(browser, running.url, "reloader")
    page.keyboard.press("ArrowLeft")
    ready(page, 1)
    before = page.eval_on_selector_all(".mm-picture img", "all => all.map(i => i.src)")
    page.reload()
    ready(page, 1)
    assert page.inner_text(".mm-who") == "reloader"
    assert page.eval_on_selector_all(".mm-picture img", "all => all.map(i => i.src)") == before


def test_two_raters_at_once_do_not_mix(browser, app: tuple[App, Path]) -> None:
    running, path = app
    pages = {name: enter(browser, running.url, name) for name in ("rater one", "rater two")}
    for number in range(1, 4):
        pages["rater one"].keyboard.press("ArrowLeft")
        pages["rater two"].keyboard.press("ArrowDown")
        for page in pages.values():
            ready(page, number)
    assert labels(path, "rater one") == ["left"] * 3 and labels(path, "rater two") == ["tie"] * 3
    assert [page.inner_text(".mm-who") for page in pages.values()] == ["rater one", "rater two"]


def test_a_vote_lost_on_the_way_is_sent_again_once(browser, app: tuple[App, Path]) -> None:
    running, path = app
    page = enter(browser, running.url, "shaky")
    arrived: list[int] = []

    def lose_the_answer(route) -> None:
        arrived.append(route.fetch().status)  # the server records it, but the rater's page never hears
        route.abort()

    page.route("**/api/vote", lose_the_answer)
    page.keyboard.press("ArrowRight")
    page.wait_for_selector(".mm-alert >> text=Not saved yet")
    page.unroute("**/api/vote")
    page.reload()  # the vote that was not acknowledged survives it
    ready(page, 1)
    assert set(arrived) == {200} and labels(path, "shaky") == ["right"]
    store = Store(str(path))
    assert sum(p.annotator == "shaky" for p in store.preferences(include_superseded=True)) == 1
    store.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_everything_without_scrolling(browser, app: tuple[App, Path], scheme) -> None:
    running, path = app
    name = f"phone {scheme}"
    page = enter(
        browser,
        running.url,
        name,
        viewport={"width": 390, "height": 780},
        has_touch=True,
        is_mobile=True,
        color_scheme=scheme,
    )
    width, height = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
    assert width <= 390 and height <= 780
    boxes = [page.locator(".mm-picture").nth(i).bounding_box() for i in range(2)]
    assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]  # side by side
    assert min(box["width"] for box in boxes) > 150
    for button in page.locator(".mm-for-pair .mm-button").all():
        box = button.bounding_box()
        assert box["height"] >= 44 and box["x"] >= 0 and box["x"] + box["width"] <= 390
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    light = sum(map(int, re.findall(r"\d+", ground)[:3])) / 3
    assert (light > 200) is (scheme == "light") and (light < 60) is (scheme == "dark")
    page.tap(".mm-picture >> nth=0")
    ready(page, 1)
    assert labels(path, name) == ["left"]


def test_small_pictures_are_enlarged_with_sharp_pixels(browser, app: tuple[App, Path]) -> None:
    running, _ = app
    page = enter(browser, running.url, "sharp", viewport={"width": 1280, "height": 800})
    image = page.locator(".mm-picture img").first
    assert image.bounding_box()["width"] > 350
    assert image.evaluate("image => getComputedStyle(image).imageRendering") == "pixelated"


def test_keys_are_shown_on_the_buttons(browser, app: tuple[App, Path]) -> None:
    running, _ = app
    page = enter(browser, running.url, "reader")
    assert page.locator(".mm-for-pair kbd").all_inner_texts() == ["←", "↑", "↓", "→"]
    assert page.locator(".mm-rate .mm-quiet kbd").all_inner_texts()[:2] == ["b", "s"]


@pytest.mark.parametrize(
    ("more", "title", "lead"),
    [
        (True, "Thank you, that is all for now.", "More questions are being prepared: keep this page open"),
        (False, "Thank you, that is all.", "You can close this page."),
    ],
)
def test_a_rater_who_is_through_is_told_whether_to_stay(browser, store: Store, more: bool, title: str, lead) -> None:
    for number, task in enumerate(store.next_tasks("ada", count=5)):
        answer(store, task, "ada", number)
    store.skip(store.next_tasks("ada")[0], "ada")
    with served(store, more_to_come=more) as client:
        page = enter(browser, str(client.base_url), "ada", answered=6)
        assert page.inner_text(".mm-done .mm-title") == title
        assert page.inner_text(".mm-done .mm-lead").startswith("6 answers are saved under “ada”. " + lead)
        assert page.problems == []


def test_restart_of_the_server_keeps_raters_and_votes(browser, pictures: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    options = ("--items", str(pictures), "--store", str(path), "--mode", "likert")
    first = App(*options, "--port", "0")
    try:
        page = enter(browser, first.url, "patient")
        page.keyboard.press("4")
        ready(page, 1)
    finally:
        first.stop(signal.SIGKILL)
    page.keyboard.press("2")
    page.wait_for_selector(".mm-alert >> text=Not saved yet")
    second = App(*options, "--port", first.url.rpartition(":")[2])
    try:
        ready(page, 2)  # sent as soon as the server is back, by the rater that it still knows
    finally:
        ending = second.stop()
    assert ending.splitlines()[-1].startswith("2 judgements in ")
    store = Store(str(path))
    assert [(j.score, j.annotator) for j in store.judgements()] == [(4.0, "patient"), (2.0, "patient")]
    store.close()


def test_the_command_stops_by_itself_when_enough_is_in(pictures: Path, store: Store, capsys) -> None:
    task = store.next_tasks("ada")[0]
    store.add(preference(task, Vote(vote_id="0" * 32, task=task.key, choice="tie", seconds=1.0), "ada", ""))
    rate(RateConfig(items=pictures, store=str(store.path), port=0, pairs_per_item=2, wanted=1))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"6 pictures, 6 questions from {pictures}" and lines[-1] == f"1 judgements in {store.path}"
