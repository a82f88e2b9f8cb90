"""Older stores become new ones at opening: whole or not at all, with all that was in them, on both databases."""

import shutil
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.config import Config
from alembic.script import ScriptDirectory

from mmrlhf.errors import UserError
from mmrlhf.store import Item, Judgement, Preference, Store, Task, database
from mmrlhf.store.database import writing
from mmrlhf.store.migrations import migrate
from mmrlhf.store.tables import LAYOUT, VERSION_TABLE

GOLDEN = (
    Path(__file__).parents[1] / "golden" / "store_v1.sqlite"
)  # written by mmrlhf's first layout, before it had others
CAT, PAIR = "a cat", ("aa", "bb")
ID_1 = Preference(CAT, PAIR, 1.0, "ada", "human", ("bb", "aa"), 2.5, "2026-01-01T00:00:00.000Z", "id-1", app_version="")
PREFERENCES = [
    ID_1,
    Preference(CAT, PAIR, 0.5, "ada", "human", ("bb", "aa"), 3.25, "2026-01-01T00:01:00.000Z", "id-2",
               {"both_bad": True}, app_version=""),
    Preference(CAT, ("bb", "aa"), 0.125, "judge: é", "ai", PAIR, extra={"order": [0.25, 0.0]}, app_version=""),
    Preference(CAT, ("aa", "cc"), 0.0, "bo", "simulated", ("aa", "cc"), 0.0, "2026-01-01T00:02:00.000Z", "id-3",
               app_version=""),
    Preference(CAT, ("aa", "cc"), 1.0, "ada", "human", ("cc", "aa"), 1.0, "2026-01-01T00:05:00.000Z", "id-6",
               app_version=""),
]  # fmt: skip
SCORE = Judgement(CAT, "aa", 4.0, "ada", "human", 1.5, "2026-01-01T00:03:00.000Z", "id-4", {"scale": [1, 5]},
                  app_version="")  # fmt: skip
TASKS = [
    Task(CAT, ("aa", "bb"), priority=2.0, why="random"),
    Task(CAT, ("aa", "cc"), priority=1.0, why="listed"),
    Task(CAT, ("aa",), "score", why="listed"),
    Task("a dog", ("cc", "bb")),
]


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A store of the first layout."""
    return Path(shutil.copy(GOLDEN, tmp_path / "old.sqlite"))


@pytest.fixture
def old_url(url: str, old: Path) -> str:
    """A store of the first layout in either database, with what is in the golden file."""
    if url.startswith("sqlite"):
        return f"sqlite:///{old}"
    engine = database.open_postgres(url).engine
    with writing(engine) as new, sa.create_engine(f"sqlite:///{old}").connect() as file:
        migrate(new, None, "1")
        for name in ("items", "tasks", "votes", "leases", "settings"):
            table = sa.Table(name, sa.MetaData(), autoload_with=file)
            new.execute(table.insert(), [dict(row._mapping) for row in file.execute(sa.select(table))])
        for name in ("tasks", "votes"):  # as if the rows had been numbered by the database itself
            new.exec_driver_sql(f"SELECT setval('{name}_number_seq', (SELECT max(number) FROM {name}))")
    file.engine.dispose()
    engine.dispose()
    return url


def test_an_old_store_opens_with_all_that_is_in_it(old_url: str) -> None:
    for _ in range(2):  # the second time, there is nothing left to upgrade
        store = Store(old_url)
        assert store.preferences(include_superseded=True) == PREFERENCES
        assert store.judgements() == [SCORE]
        assert store.items() == {key: Item(key, f"pictures/{key}.png", CAT) for key in ("aa", "bb", "cc")}
        assert [store.task(task.key) for task in TASKS] == TASKS
        assert store.secret().hex() == "447b32d0f3ef1b395308a9abc32db4915c1e7fac90c15ed4407f935307231b65"
        store.close()


def test_an_upgraded_store_goes_on_as_before(old_url: str) -> None:
    store = Store(old_url)
    # ada's later answers stand: a tie, a skip that withdrew a vote, and a skip
    assert store.preferences() == PREFERENCES[1:4]
    assert [(answer.number, answer.kind, answer.value) for answer in store.answers("ada", limit=9)] == [
        (8, "skip", None), (6, "skip", None), (5, "score", 4.0), (2, "pair", 0.5)
    ]  # fmt: skip
    assert store.progress("ada", 1) == (3, 2, 1, 2, 0)
    assert not store.add(ID_1)  # a retry of a vote from before
    with pytest.raises(UserError, match="recorded for another vote"):
        store.add(Preference(CAT, PAIR, 0.0, "ada", "human", PAIR, vote_id="id-1"))
    changed = Preference(CAT, PAIR, 0.0, "ada", "human", PAIR, vote_id="id-9", unsafe=("bb",))
    assert store.add(changed)
    assert store.preferences() == [*PREFERENCES[2:4], changed]
    store.add_tasks([Task(CAT, ("aa", "bb"), priority=7.0), Task(CAT, ("aa", "bb", "cc"), "rank")])
    assert store.task(TASKS[0].key) == Task(CAT, ("aa", "bb"), priority=7.0)  # the same question, not a second one
    store.close()


def tables_of(url: str) -> dict[str, Any]:
    """Everything about a store's tables but the order of their columns."""
    store = Store(url)
    found: dict[str, Any] = {}
    with store.engine.connect() as connection:
        inspected = sa.inspect(connection)
        for name in inspected.get_table_names():
            columns = [
                (each["name"], str(each["type"]), each["nullable"], str(each["default"]).strip("()"))
                for each in inspected.get_columns(name)
            ]
            indexes = [{**each, "dialect_options": None} for each in inspected.get_indexes(name)]
            unique = [each["column_names"] for each in inspected.get_unique_constraints(name)]
            keys = inspected.get_pk_constraint(name)["constrained_columns"]
            found[name] = {"columns": sorted(columns), "indexes": indexes, "unique": unique, "keys": keys}
    store.close()
    return found


def test_it_has_the_tables_of_a_new_store(old_url: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    in_file = old_url.startswith("sqlite")
    fresh = tables_of(str(tmp_path / "fresh.db") if in_file else request.getfixturevalue("server").new_schema())
    assert set(fresh) == {"items", "tasks", "votes", "leases", "settings", "accounts", "checks", VERSION_TABLE}
    assert fresh["votes"]["unique"] == [["vote_id"]] and len(fresh["votes"]["indexes"]) >= 2
    assert tables_of(old_url) == fresh


def test_the_second_layout_becomes_the_newest(url: str) -> None:
    in_file = url.startswith("sqlite")
    opened = database.open_sqlite(url) if in_file else database.open_postgres(url)
    with writing(opened.engine) as connection:
        migrate(connection, None, "2")
        opened.mark(connection)
        if in_file:
            connection.exec_driver_sql("PRAGMA user_version = 2")
    opened.engine.dispose()
    assert tables_of(url)["checks"]["keys"] == ["task"]


def test_every_upgrade_is_whole_or_not_at_all(old_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last step of opening fails, after all tables were changed: what is left is the old store, and it upgrades later."""
    kind = database.SQLite if old_url.startswith("sqlite") else database.PostgreSQL

    def fail(_database: object, _connection: sa.Connection) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(kind, "mark", fail)
        with pytest.raises(KeyboardInterrupt):
            Store(old_url)
    opened = database.open_postgres(old_url) if old_url.startswith("p") else None
    engine = opened.engine if opened else sa.create_engine(old_url)
    columns = {column["name"] for column in sa.inspect(engine).get_columns("tasks")}
    engine.dispose()
    assert "item_0" in columns and "items" not in columns
    store = Store(old_url)
    assert store.preferences(include_superseded=True) == PREFERENCES
    store.close()


def test_several_open_an_old_store_at_once(old_url: str) -> None:
    counts: list[int] = []

    def open_it() -> None:
        store = Store(old_url)
        counts.append(len(store.preferences(include_superseded=True)))
        store.close()

    threads = [threading.Thread(target=open_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert counts == [len(PREFERENCES)] * 4


def test_floats_stay_the_same_to_the_last_bit(old: Path) -> None:
    labels = [0.1 + 0.2, 1 / 3, 5e-324, 0.1, 1e-17, 1 - 2**-53]
    with sqlite3.connect(old) as connection:
        connection.execute("DELETE FROM votes")
        items = '["a", "b"]'
        row = "INSERT INTO votes VALUES (NULL, NULL, 'pair', ?, 'p', ?, ?, 'x', 'ai', ?, 0, '', '{}')"
        connection.executemany(row, [(str(label), items, label, items) for label in labels])
    connection.close()
    store = Store(str(old))
    assert [preference.label for preference in store.preferences(include_superseded=True)] == labels
    store.close()


def test_the_header_tells_older_programs(old: Path) -> None:
    """The first mmrlhf refuses every layout that is not 1; it reads the number from the file's header."""
    Store(str(old)).close()
    connection = sqlite3.connect(old)
    assert connection.execute("PRAGMA user_version").fetchone() == (LAYOUT,)
    connection.close()


def test_the_newest_revision_is_the_layout() -> None:
    config = Config()
    config.set_main_option("script_location", "mmrlhf.store:migrations")
    assert ScriptDirectory.from_config(config).get_current_head() == str(LAYOUT)
