"""The owner's page: who sees it, that what is on it are texts, and how it looks and lives in a real browser."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch

from apps import owner as owner_module
from apps.owner_token import Owner, owner_of_environment
from apps.rate import RateConfig, rate
from apps.rate_items import read_questions
from mmrlhf.data import read_pairs
from mmrlhf.errors import UserError
from mmrlhf.images import save_image
from mmrlhf.store import Point, PointJudgement, SegmentJudgement, Store, Task
from mmrlhf.store.checks import Check, add_checks
from mmrlhf.types import Preference
from tests.apps.raters import App, served

EVIL = "<img src=x onerror=document.title='hacked'>"
OWNER = Owner("t" * 32)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Pairs of pictures whose prompt and raters try to be HTML."""
    for i in range(4):
        save_image(torch.full((3, 8, 8), i / 4), tmp_path / "pictures" / f"{i}.png")
    rows = [{"prompt": EVIL, "image": f"{i}.png"} for i in range(4)]
    (tmp_path / "pictures" / "items.jsonl").write_text("\n".join(map(json.dumps, rows)))
    opened = Store(str(tmp_path / "r.db"))
    items, tasks = read_questions(tmp_path / "pictures")
    opened.add_items(items)
    opened.add_tasks([Task(task.prompt, task.items, why=EVIL) for task in tasks])
    for name in (EVIL, "bo"):
        for task in tasks[:3]:
            opened.add(
                Preference(task.prompt, (task.item_0, task.item_1), 1.0, name, "human", (task.item_0, task.item_1))
            )
    yield opened
    opened.close()


def enter(client: httpx.Client, token: str = OWNER.token) -> httpx.Response:
    return client.get("/owner", params={"token": token})


def test_nothing_is_shown_without_the_token(store: Store) -> None:
    routes = ("/owner", "/owner/part", "/owner/export/pairs", "/owner/export/nothing")
    with served(store, owner=OWNER) as client:
        client.post("/api/login", json={"name": "bo"})  # a rater is no owner
        for route in routes:
            answer = client.get(route)
            assert answer.status_code == 401 and "<td" not in answer.text and EVIL[:10] not in answer.text
        client.cookies.set(owner_module.COOKIE, OWNER.token)  # the token is not the cookie
        assert client.get("/owner").status_code == 401
        client.cookies.clear()
        answer = enter(client)
        assert answer.status_code == 303 and answer.headers["location"] == "owner"
        assert OWNER.token not in str(answer.headers) + answer.text
        assert [client.get(route).status_code for route in routes] == [200, 200, 200, 404]
    with served(store, owner=Owner("u" * 32)) as other:
        other.cookies.set(owner_module.COOKIE, OWNER.cookie())
        assert other.get("/owner").status_code == 401  # another token ends what the first gave
    with served(store) as without:
        assert all(without.get(route).status_code == 404 for route in (*routes, "/owner?token=x"))


def test_guessing_the_token_is_slowed(store: Store) -> None:
    with served(store, owner=OWNER) as client:
        codes = [enter(client, f"guess {number}").status_code for number in range(7)]
        assert codes == [401] * 5 + [429] * 2
        refused = enter(client)  # not even the right one is looked at now
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
        client.cookies.set(owner_module.COOKIE, OWNER.cookie())
        assert client.get("/owner").status_code == 200  # who is in stays in


def test_the_cookie_and_the_page_s_rules(store: Store) -> None:
    with served(store, owner=OWNER) as client:
        cookie = enter(client).headers["set-cookie"].lower()
        assert "httponly" in cookie and "samesite=lax" in cookie and "secure" not in cookie
        secure = client.get("/owner", params={"token": OWNER.token}, headers={"X-Forwarded-Proto": "https"})
        assert "secure" in secure.headers["set-cookie"].lower()
        client.cookies.set(owner_module.COOKIE, OWNER.cookie())
        page = client.get("/owner")
        assert page.headers["cache-control"] == "no-store" and page.headers["referrer-policy"] == "no-referrer"
        policy = page.headers["content-security-policy"]
        nonce = re.search(r"script-src 'nonce-([\w-]+)'", policy)
        assert nonce and f'<script nonce="{nonce.group(1)}">' in page.text and "default-src 'none'" in policy
        assert client.get("/owner").headers["content-security-policy"] != policy  # a nonce is used once


def test_names_prompts_and_reasons_are_texts(store: Store) -> None:
    with served(store, owner=OWNER) as client:
        enter(client)
        for route in ("/owner", "/owner/part"):
            text = client.get(route).text
            assert "<img" not in text and text.count("&lt;img src=x onerror=") >= 3  # a rater, a prompt, a reason


def test_checks_are_about_the_rater_and_not_about_the_pictures(store: Store) -> None:
    """Passed of asked, beside the rater; in no agreement, and in no count of the study's own answers."""
    first, second = (Task("check", (f"{name}1", f"{name}2")) for name in "ab")
    add_checks(store, [Check(first, {"item": "a1"}), Check(second, {"item": "b1"})])
    for task, label in ((first, 1.0), (second, 0.0)):
        store.add(Preference("check", (task.item_0, task.item_1), label, "bo", "human", (task.item_0, task.item_1)))
    with served(store, owner=OWNER) as client:
        enter(client)
        text = client.get("/owner/part").text
    assert "<th>checks</th>" in text and "<td>1 of 2</td>" in text and "<th>repeats</th>" not in text
    assert '<b>6</b><span class="soft small">answers that stand' in text


def test_answers_come_as_data_export_writes_them(store: Store, tmp_path: Path, capsys) -> None:
    with served(store, owner=OWNER) as client:
        enter(client)
        capsys.readouterr()
        answer = client.get("/owner/export/pairs")
        assert capsys.readouterr().out == ""
        assert answer.headers["content-disposition"] == 'attachment; filename="pairs.jsonl"'
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "pairs.jsonl").write_text(answer.text)
        pairs = read_pairs(tmp_path / "elsewhere" / "pairs.jsonl")  # checks that the pictures are there
        assert len(pairs) == 6 and {pair.annotator for pair in pairs} == {EVIL, "bo"}
        assert len(client.get("/owner/export/outcomes").text.splitlines()) == 6
        none = client.get("/owner/export/segments")
        assert none.status_code == 409 and "no marked answers" in none.text
        item = next(iter(store.items()))
        store.add_segments(
            SegmentJudgement(prompt=EVIL, item=item, text="words", segments=(), annotator="bo", source="human")
        )
        (row,) = map(json.loads, client.get("/owner/export/segments").text.splitlines())
        store.add_points(
            PointJudgement(prompt=EVIL, item=item, points=(Point(0.5, 0.25, "hand"),), annotator="bo", source="human")
        )
        (pointed,) = map(json.loads, client.get("/owner/export/points").text.splitlines())
        assert pointed["points"] == [{"x": 0.5, "y": 0.25, "tag": "hand"}] and pointed["image"] == row["image"]
        assert row["answer"] == "words" and Path(row["image"]).is_file() and Path(row["image"]).is_absolute()


def test_a_picture_that_is_gone_is_told(store: Store) -> None:
    for item in store.items().values():
        Path(item.path).unlink()
    with served(store, owner=OWNER) as client:
        enter(client)
        answer = client.get("/owner/export/pairs")
        assert answer.status_code == 409 and "is gone: put it back" in answer.text


def test_the_token_is_the_environment_s_or_random(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, store: Store
) -> None:
    monkeypatch.delenv("MMRLHF_OWNER_TOKEN", raising=False)
    first, second = owner_of_environment(), owner_of_environment()
    assert first.token != second.token and len(first.token) >= 32
    assert first.link("http://x") == f"http://x/owner?token={first.token}" and first.token not in repr(first)
    monkeypatch.setenv("MMRLHF_OWNER_TOKEN", "my-own-token-0123456789")
    given = owner_of_environment()
    assert given.token == "my-own-token-0123456789" and given.token not in given.link("http://x")
    for bad in ("short", "", "with spaces in it, long enough", "x" * 201):
        monkeypatch.setenv("MMRLHF_OWNER_TOKEN", bad)
        with pytest.raises(UserError, match=f"MMRLHF_OWNER_TOKEN has {len(bad)} characters, allowed is 16 to 200"):
            rate(RateConfig(tmp_path / "pictures", str(tmp_path / "new.db"), port=0))
    assert not (tmp_path / "new.db").exists()


def test_tokens_and_passwords_are_in_no_log(store: Store, tmp_path: Path) -> None:
    """Neither an answer nor the console of the process holds them, whatever is asked; but for the link printed at the start."""
    options = ("--items", str(tmp_path / "pictures"), "--store", str(store.path), "--port", "0")
    with App(*options, errors=subprocess.STDOUT) as app:
        assert app.process.stdout is not None
        link = app.process.stdout.readline()
        token = link.rpartition("=")[2].strip()
        with httpx.Client(base_url=app.url, trust_env=False) as client:
            for path in ("/owner", "/owner/export/pairs", "/", "/owner/nothing", "/api/state", "/images/x"):
                client.get(path, params={"token": token})
            client.post("/api/login", json={"token": token, "password": "hush hush hush"})
            client.post("/api/login", content=b'{"token": "' + token.encode())
            client.request("BREW", "/owner", params={"token": token})
        rest = app.stop()
    assert token not in rest and "hush" not in rest


# --- the browser ---


def test_the_owner_s_link_leads_to_a_page_that_keeps_up(browser, store: Store) -> None:
    with served(store, owner=OWNER) as client:
        page = browser.new_page()
        page.set_default_timeout(20_000)
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text))
        page.goto(f"{str(client.base_url)}/owner?token={OWNER.token}")
        page.wait_for_selector("td.name")
        assert "token" not in page.url
        assert EVIL in page.locator("td.name").all_inner_texts() and page.title() == "mmrlhf · owner"
        assert page.locator("main img").count() == 0
        task = store.free_tasks(3)[0]
        store.add(
            Preference(task.prompt, (task.item_0, task.item_1), 1.0, "newcomer", "human", (task.item_0, task.item_1))
        )
        page.wait_for_selector("td.name >> text=newcomer")  # by itself
        assert problems == []
        with page.expect_download() as download:
            page.click("text=pairs.jsonl")
        assert len(Path(download.value.path()).read_text().splitlines()) == 7


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_light_and_dark(browser, store: Store, scheme) -> None:
    with served(store, owner=OWNER) as client:
        context = browser.new_context(viewport={"width": 360, "height": 700}, color_scheme=scheme)
        page = context.new_page()
        page.goto(f"{str(client.base_url)}/owner?token={OWNER.token}")
        page.wait_for_selector("td.name")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        light = sum(map(int, re.findall(r"\d+", ground)[:3])) / 3
        assert light > 200 if scheme == "light" else light < 60


def test_a_bias_for_a_side_and_haste_show_beside_the_rater(tmp_path: Path) -> None:
    """Who always takes the left one, whichever that is, gets a mark; who does not, none; too fast is what was flagged."""
    made = Store(str(tmp_path / "sides.db"))
    for number in range(12):
        items = (f"a{number}", f"b{number}")
        shown = items if number % 2 else items[::-1]
        left = float(shown[0] == items[0])
        made.add(Preference("p", items, left, "lefty", "human", shown, extra={"too_fast": number < 3}))
        made.add(Preference("p", items, 1.0, "even", "human", shown))
    with served(made, owner=OWNER) as client:
        enter(client)
        text = client.get("/owner/part").text
    made.close()
    assert "<th>left</th><th>too fast</th>" in text
    assert "<td>100 % !</td><td>3</td>" in text and "<td>50 %</td><td>–</td>" in text
