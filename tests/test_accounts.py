"""`mmrlhf accounts`: the commands, from the words typed to the store."""

import csv
import getpass
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from mmrlhf import cli
from mmrlhf.accounts import InviteConfig, invite
from mmrlhf.errors import UserError
from mmrlhf.store import Store, accounts

PASSWORD = "correct horse"


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["mmrlhf", "accounts", *map(str, words)])
    cli.main()


def test_add_list_and_remove(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    store = f"sqlite:///{tmp_path / 'r.db'}"
    monkeypatch.setenv("MMRLHF_PASSWORD", PASSWORD)
    run(monkeypatch, "add", "--store", store, "--name", "ada")
    run(monkeypatch, "invite", "--store", store, "--names", "bo", "cy")
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("ada may log in with the password") and PASSWORD not in "".join(out)
    assert out[1].startswith("http://localhost:7860/?token=") and out[1].endswith("\tbo")
    opened = Store(store)
    assert accounts.with_password(opened, "ada", PASSWORD) is not None
    token = parse_qs(urlsplit(out[2].split("\t")[0]).query)["token"][0]
    found = accounts.with_token(opened, token)
    assert found is not None and found.name == "cy"
    opened.close()
    run(monkeypatch, "list", "--store", store)
    rows = [line.split("\t")[:2] for line in capsys.readouterr().out.splitlines()]
    assert rows[:3] == [["ada", "password"], ["bo", "link"], ["cy", "link"]] and rows[3][0].startswith("3 accounts")
    run(monkeypatch, "remove", "--store", store, "--name", "ada")
    opened = Store(store)
    assert [account.name for account in accounts.accounts(opened)] == ["bo", "cy"]
    opened.close()


def test_a_crowd_s_links_as_csv(tmp_path: Path) -> None:
    config = InviteConfig(
        str(tmp_path / "r.db"), count=3, url="https://study.example/rate/", out=tmp_path / "links.csv"
    )
    links = invite(config)
    with (tmp_path / "links.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["rater-1", "rater-2", "rater-3"]
    assert {row["name"]: row["link"] for row in rows} == links
    assert all(link.startswith("https://study.example/rate/?token=") for link in links.values())


def test_a_typed_password_is_typed_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.delenv("MMRLHF_PASSWORD", raising=False)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    typed = iter([PASSWORD, PASSWORD, PASSWORD, "another one"])
    monkeypatch.setattr(getpass, "getpass", lambda prompt: next(typed))
    run(monkeypatch, "add", "--store", tmp_path / "r.db", "--name", "ada")
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, "add", "--store", tmp_path / "r.db", "--name", "bo")
    assert "the two passwords differ" in capsys.readouterr().err
    opened = Store(str(tmp_path / "r.db"))
    assert accounts.with_password(opened, "ada", PASSWORD) is not None and len(accounts.accounts(opened)) == 1
    opened.close()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("add", "--name", "ada"), "no password: give it in the environment variable MMRLHF_PASSWORD"),
        (("add", "--name", "ada", "--password", "x"), "unknown option --password"),
        (("add", "--name", " "), "1 to 60 letters"),
        (("invite",), "got neither of --names and --count"),
        (("invite", "--names", "ada", "--count", "2"), "got both of --names and --count"),
        (("invite", "--count", "0"), "--count got 0, allowed is 1 to 10000"),
        (("invite", "--names", "ada", "ada"), "two of the --names are the same"),
        (("invite", "--names", "ada", "--url", "localhost"), "--url got 'localhost', allowed is http://"),
        (("invite", "--names", "ada", "--out", "."), "--out . is a folder"),
        (("list",), "no store at .*r.db: give the one"),
        (("remove", "--name", "ada"), "no store at .*r.db: give the one"),
    ],
)
def test_mistakes_are_one_line_and_make_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, words: tuple[str, ...], message: str
) -> None:
    monkeypatch.delenv("MMRLHF_PASSWORD", raising=False)
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, words[0], "--store", tmp_path / "r.db", *words[1:])
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    with pytest.raises(UserError, match=message):
        raise UserError(err)
    assert list(tmp_path.iterdir()) == []
