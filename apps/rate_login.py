"""Who a rater is: a name taken on trust, or an account's password or link; and the cookie that remembers it."""

import base64
import binascii
import hmac
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from fastapi import HTTPException, Request, Response
from pydantic import BaseModel, Field

from apps.throttle import Throttle, address_of, in_words
from mmrlhf.errors import UserError
from mmrlhf.store import Store, accounts

COOKIE = "mmrlhf_rater"
COOKIE_SECONDS = 30 * 24 * 3600
WRONG = "The name or the password is wrong."
HASHING = threading.BoundedSemaphore(4)  # 16 MiB and a core each: a crowd that logs in takes turns
HASHING_SECONDS = 20.0


class Login(BaseModel):
    """What the first page sends: a name, with its password where one is asked for, or a link's token."""

    name: str = Field(default="", max_length=200)
    password: str = Field(default="", max_length=2 * accounts.LONGEST)
    token: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_-]{1,100}$")


class Known(NamedTuple):
    """A rater who was let in, and what their cookie is signed with beside the store's secret."""

    name: str
    proof: str = ""


@dataclass(frozen=True)
class Door:
    """Who may come in. A name is held for a minute at most, so that nobody can shut out another for long by guessing."""

    store: Store
    access: accounts.Access
    annotator_names: tuple[str, ...]
    secret: bytes
    names: Throttle = field(default_factory=lambda: Throttle(5, 60.0))
    addresses: Throttle = field(default_factory=lambda: Throttle(20, 900.0))  # a whole laboratory may share one

    def rater(self, cookie: str) -> str | None:
        """The name that a cookie proves, if it still may rate."""
        name = name_in(cookie)
        if name is None or (self.annotator_names and name not in self.annotator_names):
            return None
        account = accounts.find(self.store, name) if self.access == "accounts" else None
        if self.access == "accounts" and account is None:
            return None
        return verify(cookie, self.secret, account.secret if account else "")

    def admit(self, login: Login, request: Request) -> Known:
        """Who logs in; HTTPException in words for raters where that cannot be."""
        if login.token is not None:
            account = self.by_token(login.token, address_of(request))
        elif self.access == "accounts":
            account = self.by_password(login, address_of(request))
        else:
            return Known(clean_name(login.name, self.annotator_names))
        return Known(account.name, account.secret if self.access == "accounts" else "")

    def by_password(self, login: Login, address: str) -> accounts.Account:
        """The account of a name with its password; unknown names take as long, and are answered alike."""
        name = clean_name(login.name)
        if wait := max(self.names.wait(name), self.addresses.wait(address)):
            raise too_many(wait)
        if wait := max(self.names.count(name), self.addresses.count(address)):
            raise too_many(wait)
        if not HASHING.acquire(timeout=HASHING_SECONDS):
            raise HTTPException(503, "Many people are logging in. Please try again.")
        try:
            account = accounts.with_password(self.store, name, login.password)
        finally:
            HASHING.release()
        if account is None or (self.annotator_names and name not in self.annotator_names):
            raise HTTPException(401, WRONG)
        self.names.forget(name)
        self.addresses.forgive(address)  # but not forget: one's own account is no licence to guess others'
        return account

    def by_token(self, token: str, address: str) -> accounts.Account:
        """The account that a link is for."""
        if wait := self.addresses.count(address):
            raise too_many(wait)
        account = accounts.with_token(self.store, token)
        if account is None or (self.annotator_names and account.name not in self.annotator_names):
            raise HTTPException(401, "This link is not valid, or no longer. Ask who invited you for a new one.")
        self.addresses.forgive(address)
        return account

    def remember(self, known: Known, request: Request, response: Response) -> None:
        """Give the browser the cookie that proves the name from now on."""
        cookie = sign(known.name, self.secret, known.proof)
        response.set_cookie(COOKIE, cookie, max_age=COOKIE_SECONDS, secure=is_https(request), httponly=True,
                            samesite="strict")  # fmt: skip


def too_many(seconds: float) -> HTTPException:
    """The answer to who has to wait."""
    words = f"Too many attempts. Please try again in {in_words(seconds)}."
    return HTTPException(429, words, headers={"Retry-After": str(int(seconds) + 1)})


def clean_name(name: str, allowed: Sequence[str] = ()) -> str:
    """The rater's name, or a 422 that says what is wrong with it."""
    try:
        name = accounts.rater_name(name)
    except UserError as error:
        raise HTTPException(422, str(error)) from error
    if allowed and name not in allowed:
        raise HTTPException(422, "This name is not on the list. Spell it as you were told, or ask who invited you.")
    return name


def sign(name: str, secret: bytes, proof: str = "") -> str:
    """The cookie that proves a rater's name; of an account it ends with the `proof` that it was given for."""
    signed = f"{name}\0{proof}" if proof else name
    mark = hmac.new(secret, signed.encode(), "sha256").hexdigest()
    return f"{base64.urlsafe_b64encode(name.encode()).decode().rstrip('=')}.{mark}"


def verify(cookie: str, secret: bytes, proof: str = "") -> str | None:
    """The name in a cookie that we signed, else None."""
    name = name_in(cookie)
    return name if name and hmac.compare_digest(sign(name, secret, proof).encode(), cookie.encode()) else None


def name_in(cookie: str) -> str | None:
    """The name that a cookie claims; whether it is true `verify` says."""
    encoded = cookie.partition(".")[0]
    try:
        name = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode()
    except (binascii.Error, ValueError):
        return None
    return name if name and name.isprintable() else None  # a database may refuse others


def is_https(request: Request) -> bool:
    """Whether the browser's side of the connection is encrypted, also where a proxy before the app does that."""
    forwarded = request.headers.get("x-forwarded-proto", "").partition(",")[0].strip().lower()
    return request.url.scheme == "https" or forwarded == "https"
