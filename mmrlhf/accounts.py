"""`mmrlhf accounts`: who may rate, where the rating app is started with `--access accounts`."""

import csv
import getpass
import io
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

from mmrlhf.config import exactly_one
from mmrlhf.data import write_text
from mmrlhf.errors import UserError
from mmrlhf.store import Store, accounts, open_existing

PASSWORD = "MMRLHF_PASSWORD"
MOST = 10_000  # invitations at once


@dataclass(frozen=True)
class AddConfig:
    """Give a rater a password, which is asked for, or taken from the environment variable MMRLHF_PASSWORD."""

    store: str
    """The store that `mmrlhf rate` will use; made where it is missing."""
    name: str
    """The name that the answers will be under."""
    replace: bool = False
    """Give an existing account a new password; its browsers have to log in anew."""


@dataclass(frozen=True)
class InviteConfig:
    """Make links that log a rater in; each is shown once and kept nowhere."""

    store: str
    """The store that `mmrlhf rate` will use; made where it is missing."""
    names: tuple[str, ...] = ()
    """A link for each of these."""
    count: int | None = None
    """Instead of names: so many links, for rater-1, rater-2 …"""
    url: str = "http://localhost:7860"
    """Where raters reach the app."""
    out: Path | None = None
    """A CSV file for the links (name,link) instead of the screen."""
    replace: bool = False
    """Give existing accounts new links; the old ones end."""


@dataclass(frozen=True)
class ListConfig:
    """Print every account: its name, how it logs in, and since when it is there."""

    store: str
    """The store with the accounts."""


@dataclass(frozen=True)
class RemoveConfig:
    """End an account; what it answered stays."""

    store: str
    """The store with the accounts."""
    name: str
    """Whose account."""


def add(config: AddConfig) -> None:
    """Make the account, and say so."""
    accounts.rater_name(config.name)
    password = read_password()
    accounts.check_password(password)
    store = Store(config.store)
    try:
        name = accounts.add_password(store, config.name, password, replace=config.replace)
        print(f"{name} may log in with the password: {store.name}")
    finally:
        store.close()


def read_password() -> str:
    """From the environment, or typed twice; never an argument, which every user of the machine could read."""
    if PASSWORD in os.environ:
        return os.environ[PASSWORD]
    if not sys.stdin.isatty():
        raise UserError(f"no password: give it in the environment variable {PASSWORD}, or run this in a terminal")
    password = getpass.getpass("Password: ")
    if getpass.getpass("Once more: ") != password:
        raise UserError("the two passwords differ: run it again, and type the same one twice")
    return password


def invite(config: InviteConfig) -> dict[str, str]:
    """Make the accounts; print or write their links, and give them by name."""
    check(config)
    store = Store(config.store)
    try:
        names = list(config.names) or accounts.free_names(store, config.count or 0)
        tokens = accounts.invite(store, names, replace=config.replace)
    finally:
        store.close()
    links = {name: f"{config.url.rstrip('/')}/?{urlencode({'token': token})}" for name, token in tokens.items()}
    if config.out is None:
        for name, link in links.items():
            print(f"{link}\t{name}")
    else:
        write_text(table(links), config.out)
        print(f"{len(links)} links, which log in whoever has them: {config.out}")
    return links


def check(config: InviteConfig) -> None:
    """UserError for options that do not go together, before anything is made."""
    exactly_one(names=config.names or None, count=config.count)
    if config.count is not None and not 1 <= config.count <= MOST:
        raise UserError(f"--count got {config.count}, allowed is 1 to {MOST}")
    if not config.url.startswith(("http://", "https://")):
        raise UserError(f"--url got '{config.url}', allowed is http://… or https://…: give where raters reach the app")
    if config.out is not None and config.out.is_dir():
        raise UserError(f"--out {config.out} is a folder: give the name of a file")
    if len({accounts.rater_name(name) for name in config.names}) < len(config.names):
        raise UserError("two of the --names are the same: give each rater a name of their own")


def table(links: dict[str, str]) -> str:
    """Names and links as CSV."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["name", "link"])
    writer.writerows(links.items())
    return file.getvalue()


def show(config: ListConfig) -> None:
    """A line an account."""
    store = open_existing(config.store, "mmrlhf accounts add")
    try:
        found = accounts.accounts(store)
        for account in found:
            print(f"{account.name}\t{'link' if account.by_link else 'password'}\t{account.created}")
        print(f"{len(found)} accounts: {store.name}")
    finally:
        store.close()


def remove(config: RemoveConfig) -> None:
    """End the account, and say so."""
    store = open_existing(config.store, "mmrlhf accounts add")
    try:
        accounts.remove(store, accounts.rater_name(config.name))
        print(f"{config.name} may log in no more: {store.name}")
    finally:
        store.close()
