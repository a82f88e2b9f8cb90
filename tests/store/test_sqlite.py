"""A store in a file: durable, and what is none of ours, damaged or of a newer layout is refused and left alone."""

import os
import sqlite3
from pathlib import Path

import pytest

from mmrlhf.errors import UserError
from mmrlhf.store import Store, store_exists
from mmrlhf.types import Preference


def test_a_file_that_is_no_store_is_refused_and_left_alone(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("these are my notes, not a database")
    with pytest.raises(UserError, match="notes.txt is not an annotation store"):
        Store(str(text))
    assert text.read_text() == "these are my notes, not a database"
    foreign = tmp_path / "other.db"
    connection = sqlite3.connect(foreign)
    connection.execute("CREATE TABLE mine (a)")
    connection.commit()
    connection.close()
    before = foreign.read_bytes()
    with pytest.raises(UserError, match="another program's database"):
        Store(str(foreign))
    assert foreign.read_bytes() == before


def test_a_damaged_store_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    store = Store(str(path))
    items = [(f"a{i}", f"b{i}") for i in range(300)]
    store.add_many([Preference("p" * 50, pair, 1.0, "ada", "human", pair, vote_id=pair[0]) for pair in items])
    store.close()
    data = bytearray(path.read_bytes())
    data[4096 * 3 : 4096 * 12] = os.urandom(4096 * 9)
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match="is damaged") as error:
        Store(str(path))
    assert "\n" not in str(error.value)


def test_a_newer_layout_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    Store(str(path)).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(UserError, match="has layout 99, allowed is 1 to 3: use the mmrlhf that wrote it"):
        Store(str(path))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://host/db", "allowed is sqlite:///FILE, a path or postgresql://USER@HOST/NAME"),
        ("sqlite://", "allowed is sqlite:///FILE, a path or"),
        ("sqlite:///", "names no file"),
        (":memory:", "names no file"),
        (".", "is a folder"),
    ],
)
def test_a_wrong_url_is_one_line(url: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Store(url)


def test_the_file_is_durable_and_shared(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "r.db"))
    with store.engine.connect() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2}
    assert store.secret() == store.secret() and len(store.secret()) == 32
    assert store.name == str(store.path) == str(tmp_path / "r.db")
    store.close()


def test_whether_a_store_is_there(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    assert not store_exists(str(path)) and not path.exists()
    Store(str(path)).close()
    assert store_exists(str(path)) and store_exists(f"sqlite:///{path}")
