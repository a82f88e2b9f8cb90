"""A store in PostgreSQL: durable through a crash of the server, safe whatever its defaults, and clear about what it refuses."""

import threading
from collections.abc import Iterator

import psycopg
import pytest
import sqlalchemy as sa

from mmrlhf.errors import UserError
from mmrlhf.store import Preference, Store, Task, postgres, store_exists, store_name
from mmrlhf.store.database import reading, writing
from mmrlhf.store.postgres import shown_url
from tests.store.server import Server, programs, running_server

VOTE = Preference("a cat", ("aa", "bb"), 1.0, "ada", "human", ("bb", "aa"), vote_id="id-1")


def test_acknowledged_votes_survive_a_crash_of_the_server() -> None:
    if programs() is None:
        pytest.skip("no PostgreSQL in /usr/lib/postgresql: apt-get install postgresql")
    with running_server() as server:
        store = Store(server.new_url())
        acknowledged: list[str] = []

        def vote() -> None:
            number = 0
            while not crashed.is_set():
                items = (f"a{number}", "b")
                try:
                    store.add(Preference("p", items, 1.0, "ada", "human", items, vote_id=f"{number}"))
                except UserError as error:
                    assert "cannot be used" in str(error) and "\n" not in str(error)
                else:
                    acknowledged.append(f"{number}")
                number += 1

        crashed = threading.Event()
        voter = threading.Thread(target=vote)
        voter.start()
        while len(acknowledged) < 50 and voter.is_alive():
            crashed.wait(0.01)
        server.kill()
        crashed.set()
        voter.join(60)
        server.start()
        kept = {preference.vote_id for preference in store.preferences()}  # the same store reaches the server again
        store.close()
    assert len(acknowledged) >= 50 and set(acknowledged) <= kept


def test_writers_see_what_was_committed_before_them_whatever_the_default_isolation(server: Server) -> None:
    url = server.new_url()
    with server.connect(url) as connection:
        connection.execute("ALTER ROLE postgres SET default_transaction_isolation = 'serializable'")
        connection.execute("ALTER ROLE postgres SET synchronous_commit = off")
    try:
        store = Store(url)
        with writing(store.engine) as connection:
            assert connection.exec_driver_sql("SHOW transaction_isolation").scalar() == "read committed"
            assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"  # durable at commit
        with reading(store.engine) as connection:
            assert connection.exec_driver_sql("SHOW transaction_isolation").scalar() == "repeatable read"
            assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"
        store.close()
    finally:
        with server.connect() as connection:
            connection.execute("ALTER ROLE postgres RESET ALL")


def test_one_writer_at_a_time(server: Server) -> None:
    store = Store(server.new_url())
    store.add_tasks([Task("p", ("a", "b"))])
    given: list[Task | None] = []
    with writing(store.engine) as connection:
        other = threading.Thread(target=lambda: given.append(store.next_task("bo")))
        other.start()
        other.join(0.3)
        assert other.is_alive() and store.progress("bo").open == 1  # readers do not wait
        connection.exec_driver_sql("INSERT INTO leases SELECT key, 'ada', 0, 1e12 FROM tasks")
    other.join(10)
    assert given == [None]  # it sees the lease that was committed while it waited
    store.close()


def test_who_waits_too_long_is_told(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "WAIT_MILLISECONDS", 200)
    store = Store(server.new_url())
    with writing(store.engine), pytest.raises(UserError, match="cannot be used .*lock timeout"):
        store.add(VOTE)
    assert store.add(VOTE)
    store.close()


@pytest.fixture
def foreign(server: Server) -> Iterator[str]:
    """A database with a table of another program's."""
    url = server.new_url()
    with server.connect(url) as connection:
        connection.execute("CREATE TABLE items (mine int)")
    yield url


def test_another_programs_tables_are_left_alone(server: Server, foreign: str) -> None:
    with pytest.raises(UserError, match="has another program's items: give an empty database, or a schema"):
        Store(foreign)
    with server.connect(foreign) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        connection.execute("CREATE SCHEMA ours")
    assert tables == [("items",)]
    store = Store(f"{foreign}&options=-csearch_path%3Dours")  # what the message advises
    assert store.add(VOTE) and store.preferences() == [VOTE]
    store.close()


def test_a_newer_layout_is_refused(server: Server) -> None:
    url = server.new_url()
    Store(url).close()
    with server.connect(url) as connection:
        connection.execute("UPDATE mmrlhf_layout SET version_num = '99'")
    with pytest.raises(UserError, match="has layout 99, allowed is 1 to 3: use the mmrlhf that wrote it"):
        Store(url)


def test_an_encoding_that_loses_texts_is_refused(server: Server) -> None:
    with pytest.raises(UserError, match="has the encoding SQL_ASCII, allowed is UTF8: createdb -E UTF8"):
        Store(server.new_url("ENCODING 'SQL_ASCII' TEMPLATE template0"))


def test_a_role_that_may_not_is_one_line(server: Server) -> None:
    url = server.new_url()
    with server.connect() as connection:
        connection.execute("CREATE ROLE guest LOGIN")
    with pytest.raises(UserError, match="permission denied for schema public") as error:
        Store(url.replace("postgres@", "guest@"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql://ada:hush@127.0.0.1:1/ratings", r"postgresql://ada:\*\*\*@127.0.0.1:1/ratings cannot be used"),
        ("postgresql://127.0.0.1:1/r?password=hush", "postgresql://127.0.0.1:1/r cannot be used"),
        ("postgresql://host:port/ratings", "the store's URL is none"),
        ("postgresql+asyncpg://host/ratings", "allowed is sqlite:///FILE, a path or postgresql://"),
    ],
)
def test_a_wrong_url_is_one_line_without_the_password(url: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        Store(url)
    assert "hush" not in str(error.value) and "\n" not in str(error.value)


def test_without_psycopg_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(url: sa.URL) -> sa.Engine:
        raise ModuleNotFoundError("No module named 'psycopg'")

    monkeypatch.setattr(postgres, "open_engine", missing)
    with pytest.raises(UserError, match="pip install 'mmrlhf.postgres.'"):
        Store("postgresql://host/ratings")


def test_names() -> None:
    assert store_exists("postgresql://host/ratings")  # the server is asked later
    assert shown_url(sa.make_url("postgresql+psycopg://a:b@h/n")) == "postgresql://a:***@h/n"
    assert store_name("postgresql://a:hush@h/n?sslpassword=hush") == "postgresql://a:***@h/n"
    assert store_name("sqlite:///r.db") == store_name("r.db") == "r.db"
    assert psycopg.__version__.startswith("3.")
