"""Accounts of raters in a store: a password, or an invitation link, each kept as a hash only."""

import base64
import hashlib
import hmac
import secrets
import unicodedata
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Literal, NamedTuple

import sqlalchemy as sa

from mmrlhf.errors import UserError
from mmrlhf.store.rows import checked
from mmrlhf.store.store import Store
from mmrlhf.store.tables import ACCOUNTS

Access = Literal["names", "accounts"]  # what a rater has to say to come in: a name, or what proves it
LENGTH = 60  # letters of a name, at most
SHORTEST, LONGEST = 8, 1000  # letters of a password
COST, BLOCK, LANES = (
    2**14,
    8,
    5,
)  # 16 MiB and 0.2 s a guess: of the settings that OWASP recommends the one with least memory
NOT_PEOPLE = ("simulated", "ai-")


class Account(NamedTuple):
    """A rater who may log in; `secret` is the hash of what proves it, and changes with that."""

    name: str
    secret: str
    created: str

    @property
    def by_link(self) -> bool:
        """Whether an invitation link is the proof, and no password."""
        return self.secret.startswith("token$")


def rater_name(text: str) -> str:
    """A name with its spaces and accents put in order; UserError where it can be no rater's."""
    name = " ".join(unicodedata.normalize("NFC", text).split())
    if not 1 <= len(name) <= LENGTH or not name.isprintable():
        raise UserError(f"Please give a name of 1 to {LENGTH} letters.")
    if name.casefold().startswith(NOT_PEOPLE):
        raise UserError("Names that start with “simulated” or “ai-” are kept for raters that are not people.")
    return name


def check_password(password: str) -> None:
    """UserError for a password too short to withstand guessing, or too long to be one."""
    if not SHORTEST <= len(password) <= LONGEST:
        raise UserError(
            f"the password has {len(password)} letters, allowed is {SHORTEST} to {LONGEST}: give another one"
        )


def hash_password(password: str) -> str:
    """`scrypt$N$r$p$salt$hash`: a salt for each password, and the parameters beside it, so that they may grow."""
    check_password(password)
    salt = secrets.token_bytes(16)
    numbers = f"{COST}${BLOCK}${LANES}"
    return f"scrypt${numbers}${encoded(salt)}${encoded(stretched(password, salt, COST, BLOCK, LANES))}"


def hash_token(token: str) -> str:
    """The hash of an invitation's token, which is random and long: no salt and no stretching, so that it can be looked up."""
    return f"token${hashlib.sha256(token.encode()).hexdigest()}"


def is_password(secret: str, password: str) -> bool:
    """Whether a password is the one that was hashed; in a time that does not depend on how much of it is right."""
    _, cost, block, lanes, salt, expected = secret.split("$")
    got = stretched(password, decoded(salt), int(cost), int(block), int(lanes))
    return hmac.compare_digest(got, decoded(expected))


# what nobody's password gives: names without an account cost as much work as those with one
NOBODY = f"scrypt${COST}${BLOCK}${LANES}${base64.b64encode(bytes(16)).decode()}${base64.b64encode(bytes(32)).decode()}"


def with_password(store: Store, name: str, password: str) -> Account | None:
    """The account of this name if the password is right; as much work where there is no such account."""
    account = find(store, name)
    known = account is not None and not account.by_link
    right = is_password(account.secret if account is not None and known else NOBODY, password)
    return account if known and right else None


def with_token(store: Store, token: str) -> Account | None:
    """The account that an invitation's token is for."""
    with store.reading() as connection:
        row = connection.execute(sa.select(ACCOUNTS).where(ACCOUNTS.c.secret == hash_token(token))).first()
    return None if row is None else Account(row.name, row.secret, row.created)


def find(store: Store, name: str) -> Account | None:
    """The account of a name, or None."""
    with store.reading() as connection:
        row = connection.execute(sa.select(ACCOUNTS).where(ACCOUNTS.c.name == name)).first()
    return None if row is None else Account(row.name, row.secret, row.created)


def accounts(store: Store) -> list[Account]:
    """All accounts, by name."""
    with store.reading() as connection:
        rows = connection.execute(sa.select(ACCOUNTS).order_by(ACCOUNTS.c.name)).all()
    return [Account(row.name, row.secret, row.created) for row in rows]


def add_password(store: Store, name: str, password: str, *, replace: bool = False) -> str:
    """Make an account with a password; gives the name as it is kept. UserError where there is one, unless it is replaced."""
    name = rater_name(name)
    put(store, {name: hash_password(password)}, replace)
    return name


def invite(store: Store, names: list[str], *, replace: bool = False) -> dict[str, str]:
    """Make accounts of these names, all or none; gives each one's token, which is kept nowhere."""
    tokens = {rater_name(name): secrets.token_urlsafe(24) for name in names}
    if len(tokens) < len(names):
        raise UserError("two of the names are the same: give each rater a name of their own")
    put(store, {name: hash_token(token) for name, token in tokens.items()}, replace)
    return tokens


def free_names(store: Store, count: int) -> list[str]:
    """`rater-1`, `rater-2` … as many as asked for, without those that have an account."""
    taken = {account.name for account in accounts(store)}
    numbers = (f"rater-{number}" for number in range(1, count + len(taken) + 1))
    return [name for name in numbers if name not in taken][:count]


def put(store: Store, secret_of: Mapping[str, str], replace: bool) -> None:
    """Keep new accounts, or new secrets of old ones; all or none."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    with store.writing() as connection:
        for name, secret in secret_of.items():
            removed = connection.execute(ACCOUNTS.delete().where(ACCOUNTS.c.name == name)).rowcount
            if removed and not replace:
                raise UserError(f"'{name}' has an account: give another name, or --replace for a new password or link")
            connection.execute(ACCOUNTS.insert().values(checked({"name": name, "secret": secret, "created": now})))


def remove(store: Store, name: str) -> None:
    """End an account, and with it what its browsers keep; the answers stay. UserError where there is none."""
    with store.writing() as connection:
        if not connection.execute(ACCOUNTS.delete().where(ACCOUNTS.c.name == name)).rowcount:
            raise UserError(f"there is no account '{name}': `mmrlhf accounts list` says which there are")


def stretched(password: str, salt: bytes, cost: int, block: int, lanes: int) -> bytes:
    """scrypt (RFC 7914) of a password, alike however its accents were typed; 32 bytes."""
    text = unicodedata.normalize("NFKC", password).encode(errors="surrogatepass")
    return hashlib.scrypt(text, salt=salt, n=cost, r=block, p=lanes, maxmem=2**27, dklen=32)


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def decoded(text: str) -> bytes:
    return base64.b64decode(text)
