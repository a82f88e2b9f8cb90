"""Logging in: by name, by password, by a link; over the routes, and in a real browser."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch

from apps import rate_login
from apps.rate import RateConfig, check_accounts, rate
from apps.rate_items import read_questions
from apps.rate_login import sign, verify
from mmrlhf.errors import UserError
from mmrlhf.images import save_image
from mmrlhf.store import Store, accounts
from tests.apps.raters import App, ready, served

PASSWORD = "correct horse"
WRONG = "The name or the password is wrong."


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(4):
        save_image(torch.full((3, 16, 16), i / 4), folder / f"{i}.png")
    return folder


@pytest.fixture
def store(tmp_path: Path, pictures: Path) -> Iterator[Store]:
    """Six questions, and the accounts of ada, who has a password, and of bo, who has a link."""
    opened = Store(str(tmp_path / "r.db"))
    items, tasks = read_questions(pictures)
    opened.add_items(items)
    opened.add_tasks(tasks)
    accounts.add_password(opened, "ada", PASSWORD)
    yield opened
    opened.close()


def log_in(client: httpx.Client, **said: object) -> httpx.Response:
    return client.post("/api/login", json=said)


# --- the routes ---


def test_only_who_has_the_password_comes_in(store: Store) -> None:
    with served(store, access="accounts") as client:
        assert client.get("/api/state").json()["password"] is True
        for said in (
            {"name": "ada"},
            {"name": "ada", "password": "wrong one"},
            {"name": "nobody", "password": PASSWORD},
        ):
            answer = log_in(client, **said)
            assert answer.status_code == 401 and answer.json()["detail"] == WRONG and not answer.cookies
        assert client.get("/api/back").status_code == 401
        answer = log_in(client, name=" ada ", password=PASSWORD)
        assert answer.json()["name"] == "ada" and len(answer.json()["tasks"]) == 2
        assert client.get("/api/back").status_code == 200


def test_a_link_comes_in_whatever_the_access(store: Store) -> None:
    token = accounts.invite(store, ["bo"])["bo"]
    for access in ("names", "accounts"):
        with served(store, access=access) as client:
            assert log_in(client, token=token).json()["name"] == "bo"
            assert client.get("/api/state").json()["name"] == "bo"
            client.cookies.clear()
            wrong = log_in(client, token="x" * 32)
            assert wrong.status_code == 401 and "not valid, or no longer" in wrong.json()["detail"]
            for text in ("", "a" * 101, "../..", "é", "a b", None):
                assert log_in(client, token=text).status_code in (401, 422)
            assert client.get("/api/back").status_code == 401


def test_a_list_of_names_holds_for_accounts_too(store: Store) -> None:
    token = accounts.invite(store, ["bo"])["bo"]
    with served(store, access="accounts", annotator_names=("cy",)) as client:
        assert log_in(client, name="ada", password=PASSWORD).json()["detail"] == WRONG
        assert log_in(client, token=token).status_code == 401


def test_a_cookie_ends_with_what_it_was_given_for(store: Store) -> None:
    """A new password or the end of the account, and a name that was taken on trust is worth nothing here."""
    with served(store, access="accounts") as client:
        client.cookies.set(rate_login.COOKIE, sign("ada", store.secret()))
        assert client.get("/api/back").status_code == 401
        for end in (
            lambda: accounts.add_password(store, "ada", PASSWORD, replace=True),
            lambda: accounts.remove(store, "ada"),
        ):
            client.cookies.clear()
            assert log_in(client, name="ada", password=PASSWORD).status_code == 200
            assert client.get("/api/back").status_code == 200
            end()
            assert client.get("/api/back").status_code == 401 and client.get("/api/state").json()["name"] is None


def test_a_signature_is_about_the_name_and_the_proof() -> None:
    secret = b"s" * 32
    assert verify(sign("ada", secret, "scrypt$1"), secret, "scrypt$1") == "ada"
    for cookie in (sign("ada", secret), sign("ada", secret, "scrypt$2"), "AA.x", "YQ"):
        assert verify(cookie, secret, "scrypt$1") is None
    assert verify(sign("a\0scrypt$1", secret), secret) is None  # no name at all


@pytest.mark.parametrize("name", ["ada", "nobody"])
def test_guessing_is_slowed_for_known_and_unknown_names_alike(store: Store, name: str) -> None:
    with served(store, access="accounts") as client:
        for _ in range(5):
            assert log_in(client, name=name, password="wrong one").json()["detail"] == WRONG
        refused = log_in(client, name=name, password=PASSWORD)  # not even the right one is looked at now
        assert refused.status_code == 429 and 1 <= int(refused.headers["retry-after"]) <= 6
        assert refused.json()["detail"].startswith("Too many attempts. Please try again in ")
        accounts.add_password(store, "cy", PASSWORD)
        assert log_in(client, name="cy", password=PASSWORD).status_code == 200  # others are not held up


def test_guessing_many_names_from_one_address_is_slowed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "with_password", lambda *_: None)
    with served(store, access="accounts") as client:
        codes = [log_in(client, name=f"name {number}", password="guess").status_code for number in range(22)]
    assert codes == [401] * 20 + [429] * 2


def test_the_cookie_is_for_the_app_alone_and_for_https_where_that_is(store: Store) -> None:
    with served(store, access="accounts") as client:
        plain = client.post("/api/login", json={"name": "ada", "password": PASSWORD}).headers["set-cookie"].lower()
        assert "httponly" in plain and "samesite=strict" in plain and "secure" not in plain
        answer = client.post(
            "/api/login", json={"name": "ada", "password": PASSWORD}, headers={"X-Forwarded-Proto": "https"}
        )
        assert "secure" in answer.headers["set-cookie"].lower()


def test_names_are_taken_on_trust_unless_accounts_are_asked_for(store: Store) -> None:
    with served(store) as client:
        assert "password" not in client.get("/api/state").json()
        assert log_in(client, name="ada").json()["name"] == "ada"


# --- the command ---


def test_accounts_are_asked_for_only_where_there_are_some(tmp_path: Path, pictures: Path) -> None:
    for made in (False, True):
        if made:
            Store(str(tmp_path / "r.db")).close()
        with pytest.raises(
            UserError, match="--access accounts got a store without accounts: make some with `mmrlhf accounts"
        ):
            rate(RateConfig(pictures, str(tmp_path / "r.db"), access="accounts", port=0))
        assert made or list(tmp_path.iterdir()) == []


def test_who_has_accounts_and_takes_names_on_trust_is_told(store: Store, capsys) -> None:
    check_accounts(store, "names")
    assert "the store has 1 accounts, and names are taken on trust" in capsys.readouterr().err
    check_accounts(store, "accounts")
    assert capsys.readouterr().err == ""


# --- the browser ---


@pytest.fixture(scope="module")
def app(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[App, dict[str, str]]]:
    """`mmrlhf rate --access accounts`, and the tokens of its links."""
    path = tmp_path_factory.mktemp("store") / "r.db"
    store = Store(str(path))
    accounts.add_password(store, "ada", PASSWORD)
    tokens = accounts.invite(store, ["bo", "cy"])
    store.close()
    running = App(
        "--items", str(pictures), "--store", str(path), "--port", "0", "--overlap", "9", "--access", "accounts"
    )
    yield running, tokens
    running.stop()


def opened(browser, url: str, **options):
    page = browser.new_context(**options).new_page()
    page.set_default_timeout(20_000)
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.goto(url)
    return page


def test_a_rater_logs_in_with_a_password(browser, app) -> None:
    page = opened(browser, app[0].url)
    page.fill("#mm-name", "ada")
    assert page.get_attribute("#mm-password", "type") == "password"
    page.fill("#mm-password", PASSWORD)
    page.keyboard.press("Enter")
    ready(page, 0)
    page.keyboard.press("ArrowLeft")
    ready(page, 1)
    assert page.inner_text(".mm-who") == "ada"
    assert page.input_value("#mm-password") == ""
    page.reload()
    ready(page, 1)
    page.click(".mm-rate [data-do=logout]")
    page.wait_for_selector('.mm[data-screen="welcome"] #mm-password')
    assert page.problems == []


def test_a_link_logs_in_at_once_and_leaves_the_address(browser, app) -> None:
    running, tokens = app
    page = opened(browser, f"{running.url}/?token={tokens['bo']}")
    ready(page, 0)
    assert page.inner_text(".mm-who") == "bo"
    assert (
        page.evaluate("location.href") == running.url + "/" and page.evaluate("history.length") == 2
    )  # no way back to it
    page.reload()
    ready(page, 0)
    assert page.inner_text(".mm-who") == "bo" and page.problems == []


def test_a_wrong_link_says_so(browser, app) -> None:
    page = opened(browser, f"{app[0].url}/?token={'x' * 32}")
    page.wait_for_selector('.mm[data-screen="welcome"]')
    assert "This link is not valid" in page.inner_text(".mm-wrong")
    assert page.evaluate("location.search") == "" and page.problems == []


def test_a_guesser_is_told_to_wait(browser, app) -> None:
    page = opened(browser, app[0].url, viewport={"width": 390, "height": 780})
    page.fill("#mm-name", "cy")
    for attempt in range(6):
        page.fill("#mm-password", f"wrong {attempt}")
        page.keyboard.press("Enter")
        page.wait_for_selector(f".mm-wrong >> text={'Too many attempts' if attempt == 5 else WRONG}")
        page.evaluate("document.querySelector('.mm-wrong').textContent = ''")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_rater_whose_account_ends_is_asked_to_log_in(browser, store: Store) -> None:
    token = accounts.invite(store, ["dee"])["dee"]
    with served(store, access="accounts") as client:
        page = opened(browser, f"{str(client.base_url)}/?token={token}")
        ready(page, 0)
        accounts.remove(store, "dee")
        page.keyboard.press("ArrowLeft")
        page.wait_for_selector('.mm[data-screen="welcome"] #mm-password')
    assert store.preferences() == []
