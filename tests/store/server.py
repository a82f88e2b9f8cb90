"""A real PostgreSQL server for the tests: made in a temporary folder, on a Unix socket there, gone at the end."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import psycopg


def programs() -> Path | None:
    """The folder of Debian's newest initdb and pg_ctl."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


@dataclass(frozen=True)
class Server:
    """A running server; everyone on the socket in its folder may do everything."""

    programs: Path
    folder: Path
    owner: str | None  # who runs it: PostgreSQL refuses root
    numbers: count

    def new_url(self, options: str = "") -> str:
        """The URL of an empty database."""
        name = f"store{next(self.numbers)}"
        with self.connect() as connection:
            connection.execute(f"CREATE DATABASE {name} {options}".encode())
        return f"postgresql://postgres@/{name}?host={self.folder}"

    def new_schema(self) -> str:
        """The URL of an empty schema in the server's own database: much cheaper than a database of its own."""
        name = f"store{next(self.numbers)}"
        with self.connect() as connection:
            connection.execute(f"CREATE SCHEMA {name}".encode())
        return f"postgresql://postgres@/postgres?host={self.folder}&options=-csearch_path%3D{name}"

    def connect(self, url: str = "") -> psycopg.Connection[Any]:
        """A connection to a database, or to the server's own."""
        return psycopg.connect(url or f"postgresql://postgres@/postgres?host={self.folder}", autocommit=True)

    def run(self, program: str, *words: str) -> None:
        """One of PostgreSQL's programs; its output lies in the folder."""
        command = [str(self.programs / program), "-D", str(self.folder / "data"), *words]
        with (self.folder / "output.txt").open("a") as output:
            subprocess.run(command, stdout=output, stderr=output, check=True, user=self.owner, cwd=self.folder)

    def start(self) -> None:
        """Start the server, or start it again; without fsync, which only a power cut would miss."""
        options = f"-c listen_addresses='' -c unix_socket_directories={self.folder} -c fsync=off"
        self.run("pg_ctl", "start", "-w", "-l", str(self.folder / "log.txt"), "-o", options)

    def kill(self) -> None:
        """End every process of the server at once, as a crash would."""
        self.run("pg_ctl", "stop", "-w", "-m", "immediate")


@contextlib.contextmanager
def running_server() -> Iterator[Server]:
    """A new server, until the end of the block."""
    folder = Path(
        tempfile.mkdtemp(prefix="pg-")
    )  # short, as the paths of sockets must be, and open to the owner's steps
    owner = "postgres" if os.geteuid() == 0 else None
    where = programs()
    assert where is not None, "install Debian's postgresql first"
    server = Server(where, folder, owner, count())
    try:
        if owner is not None:
            shutil.chown(folder, owner)
        (folder / "output.txt").touch()
        server.run("initdb", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        server.start()
        try:
            yield server
        finally:
            server.kill()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
