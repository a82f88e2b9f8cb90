"""Every test of the store runs on SQLite and on PostgreSQL."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mmrlhf.store import Store
from tests.store.server import Server, programs, running_server


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A PostgreSQL server of these tests' own."""
    if programs() is None:
        pytest.skip("no PostgreSQL in /usr/lib/postgresql: apt-get install postgresql")
    with running_server() as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a new store goes."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'new' / 'ratings.db'}"
    return request.getfixturevalue("server").new_schema()


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    """A new store."""
    opened = Store(url)
    yield opened
    opened.close()
