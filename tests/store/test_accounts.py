"""Accounts in both databases: nothing in them lets anybody in, and only what was given does."""

import hashlib
import threading
import unicodedata

import pytest
import sqlalchemy as sa

from mmrlhf.errors import UserError
from mmrlhf.store import Store, accounts
from mmrlhf.store.tables import ACCOUNTS


def test_a_password_lets_its_own_name_in_only(store: Store) -> None:
    assert accounts.add_password(store, "  Zoë   L ", "correct horse") == "Zoë L"
    accounts.add_password(store, "bo", "battery staple")
    found = accounts.with_password(store, "Zoë L", "correct horse")
    assert found is not None and found.name == "Zoë L" and not found.by_link
    for name, password in (("Zoë L", "battery staple"), ("bo", "correct horse"), ("cy", "correct horse"), ("bo", "")):
        assert accounts.with_password(store, name, password) is None
    assert accounts.with_password(store, "Zoë L", found.secret) is None  # the hash is no password


def test_the_hash_is_scrypt_of_the_salt_and_parameters_in_the_text(store: Store) -> None:
    """Against hashlib itself; equal passwords have different hashes."""
    texts = [accounts.hash_password("pässword"), accounts.hash_password("pässword")]
    assert texts[0] != texts[1]
    scheme, n, r, p, salt, hashed = texts[0].split("$")
    assert scheme == "scrypt" and (int(n), int(r), int(p)) == (2**14, 8, 5) and len(accounts.decoded(salt)) == 16
    expected = hashlib.scrypt("pässword".encode(), salt=accounts.decoded(salt), n=2**14, r=8, p=5, dklen=32)
    assert accounts.decoded(hashed) == expected
    assert accounts.is_password(texts[0], unicodedata.normalize("NFD", "pässword"))  # typed on another keyboard
    weaker = hashlib.scrypt(b"old", salt=b"salt", n=2, r=1, p=1, dklen=32)
    old = f"scrypt$2$1$1${accounts.encoded(b'salt')}${accounts.encoded(weaker)}"
    assert accounts.is_password(old, "old") and not accounts.is_password(old, "new")  # by its own parameters


def test_an_unknown_name_costs_as_much_work(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    accounts.add_password(store, "ada", "correct horse")
    accounts.invite(store, ["linked"])
    work: list[tuple[int, int, int]] = []

    def stretched(password: str, salt: bytes, cost: int, block: int, lanes: int) -> bytes:
        work.append((cost, block, lanes))
        return bytes(32)  # which is what the stand-in for nobody's password holds

    monkeypatch.setattr(accounts, "stretched", stretched)
    assert [accounts.with_password(store, name, "whatever") for name in ("ada", "nobody", "linked")] == [None] * 3
    assert len(work) == 3 and len(set(work)) == 1


def test_a_link_is_one_name_s_and_not_in_the_store(store: Store) -> None:
    tokens = accounts.invite(store, ["ada", "bo"])
    assert all(len(token) >= 32 for token in tokens.values())  # 6 bits each
    for name, token in tokens.items():
        found = accounts.with_token(store, token)
        assert found is not None and found.name == name and found.by_link
    assert accounts.with_token(store, "x" * 32) is None and accounts.with_token(store, "") is None
    secret = accounts.accounts(store)[0].secret
    assert accounts.with_token(store, secret) is None and accounts.with_token(store, secret.split("$")[1]) is None
    assert accounts.with_password(store, "ada", tokens["ada"]) is None
    with store.reading() as connection:
        kept = str(connection.execute(sa.select(ACCOUNTS)).all())
    assert not any(token in kept for token in tokens.values())


def test_an_account_is_replaced_on_demand_only_and_removed(store: Store) -> None:
    accounts.add_password(store, "ada", "correct horse")
    before = accounts.find(store, "ada")
    with pytest.raises(UserError, match="'ada' has an account: give another name, or --replace"):
        accounts.add_password(store, "ada", "another one")
    with pytest.raises(UserError, match="'ada' has an account"):
        accounts.invite(store, ["new", "ada"])
    assert accounts.accounts(store) == [before]  # all or none
    accounts.add_password(store, "ada", "correct horse", replace=True)
    after = accounts.find(store, "ada")
    assert before is not None and after is not None and before.secret != after.secret
    old = accounts.invite(store, ["ada"], replace=True)["ada"]
    new = accounts.invite(store, ["ada"], replace=True)["ada"]
    assert accounts.with_token(store, old) is None and accounts.with_token(store, new) is not None
    accounts.remove(store, "ada")
    assert accounts.find(store, "ada") is None and accounts.accounts(store) == []
    with pytest.raises(UserError, match="there is no account 'ada'"):
        accounts.remove(store, "ada")


def test_names_that_are_free_go_on_from_those_that_are_taken(store: Store) -> None:
    accounts.invite(store, ["rater-2", "ada"])
    assert accounts.free_names(store, 3) == ["rater-1", "rater-3", "rater-4"]


@pytest.mark.parametrize(
    ("name", "password", "message"),
    [
        ("", "long enough", "1 to 60 letters"),
        ("a" * 61, "long enough", "1 to 60 letters"),
        ("a\0b", "long enough", "1 to 60 letters"),
        ("a\ud800", "long enough", "1 to 60 letters"),
        ("a\u202eb", "long enough", "1 to 60 letters"),  # turns what follows around
        ("Simulated-x", "long enough", "not people"),
        ("ada", "short", "the password has 5 letters, allowed is 8 to 1000"),
        ("ada", "x" * 1001, "the password has 1001 letters"),
    ],
)
def test_what_cannot_be_an_account_is_refused(store: Store, name: str, password: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        accounts.add_password(store, name, password)
    assert accounts.accounts(store) == []


def test_two_that_make_the_same_account_at_once(store: Store) -> None:
    """One makes it, the other is told."""
    told: list[str] = []

    def make(number: int) -> None:
        try:
            accounts.add_password(store, "ada", f"password {number}")
        except UserError as error:
            told.append(str(error))

    threads = [threading.Thread(target=make, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 3 and len(accounts.accounts(store)) == 1
