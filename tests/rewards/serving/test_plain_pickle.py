"""Plain containers come out as they went in; everything else is one line, and nothing runs."""

import collections
import copyreg
import datetime
import io
import os
import pickle
import pickletools
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.errors import UserError
from mmrlhf.rewards.serving.plain_pickle import MAX_DEPTH, MAX_STEPS, read_plain

MB = 10**6
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
keys = st.none() | st.booleans() | st.integers(-(2**60) + 1, 2**60 - 1) | st.floats(allow_nan=False) | st.text()


def containers(leaves: st.SearchStrategy[Any], keys: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner) | st.dictionaries(keys, inner) | st.lists(inner).map(tuple) | inner.map(lambda x: [x, x])
        ),
        max_leaves=20,
    )


def same(a: Any, b: Any) -> bool:
    """Equal, and of the same types all the way down: 1, 1.0 and True are three things."""
    if type(a) is not type(b):
        return False
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return same(list(a), list(b)) and all(same(a[key], b[key]) for key in a)
    return a == b


@given(containers(scalars, keys), st.integers(0, 5))
def test_texts_and_numbers_survive_every_protocol(value: Any, protocol: int) -> None:
    assert same(read_plain(pickle.dumps(value, protocol), MB), value)


@given(containers(scalars | st.binary(), keys | st.binary()), st.integers(3, 5))
def test_bytes_survive_the_protocols_that_have_them(value: Any, protocol: int) -> None:
    assert same(read_plain(pickle.dumps(value, protocol), MB), value)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("size", [3, 300, 20_000])
def test_long_ones_too_optimised_or_not(protocol: int, size: int) -> None:
    """Other instructions hold long texts, long lists and many memo entries."""
    numbers: list[Any] = [{"n": i, "big": 1 << i % 3000} for i in range(min(size, 2000))]
    value = {"text": "é" * size, "list": numbers, "tuple": tuple(range(size // 10))}
    data = pickle.dumps(value, protocol)
    assert same(read_plain(data, MB), value)
    assert same(read_plain(pickletools.optimize(data), MB), value)


def test_images_of_a_real_size() -> None:
    value = {"images": [bytes([i]) * 70_000 for i in range(64)], "prompts": ["a cat"] * 64, "metadata": {}}
    for protocol in (3, 4, 5):
        assert read_plain(pickle.dumps(value, protocol), 10 * MB) == value
    assert read_plain(pickle._dumps(value), 10 * MB) == value  # type: ignore[attr-defined]  # the pickler in Python


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.arguments


class Plain:
    pass


class Slots:
    __slots__ = ("a",)

    def __init__(self) -> None:
        self.a = 1


class Named(pickle.Pickler):
    """Gives everything a persistent id."""

    def persistent_id(self, value: Any) -> Any:
        return "somewhere" if isinstance(value, Plain) else None


def persistent(protocol: int) -> bytes:
    file = io.BytesIO()
    Named(file, protocol).dump([Plain()])
    return file.getvalue()


def with_extension(code: int) -> bytes:
    """A pickle that names this file's Plain by a number in copyreg's table."""
    copyreg.add_extension(__name__, "Plain", code)
    try:
        return pickle.dumps(Plain, 2)
    finally:
        copyreg.remove_extension(__name__, "Plain", code)


def hostile(command: str) -> dict[str, bytes]:
    """Pickles that do something to whoever unpickles them, by the instruction they use; most would run `command`."""
    line = command.encode()
    text = b"\x8c" + bytes([len(line)]) + line
    pickles = {f"system {protocol}": pickle.dumps(Calls(os.system, command), protocol) for protocol in range(6)}
    pickles |= {
        f"inside {protocol}": pickle.dumps({"images": [Calls(exec, command)]}, protocol) for protocol in range(6)
    }
    pickles |= {f"persistent {protocol}": persistent(protocol) for protocol in range(5)}
    pickles |= {f"object {protocol}": pickle.dumps([Plain()], protocol) for protocol in range(6)}
    pickles |= {f"slots {protocol}": pickle.dumps([Slots()], protocol) for protocol in range(2, 6)}
    pickles |= {f"extension {code}": with_extension(code) for code in (1, 1000, 100_000)}
    return pickles | {
        "GLOBAL": b"cos\nsystem\n(S'" + line + b"'\ntR.",
        "INST": b"(S'" + line + b"'\nios\nsystem\n.",
        "INST text": b"(V" + line + b"\nios\nsystem\n.",
        "OBJ": b"(cos\nsystem\n" + text + b"o.",
        "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93" + text + b"\x85R.",
        "STACK_GLOBAL from the memo": b"\x80\x04\x8c\x02os\x94\x8c\x06system\x940h\x00h\x01\x93" + text + b"\x85R.",
        "NEWOBJ": b"\x80\x02cos\nsystem\n" + text + b"\x85\x81.",
        "NEWOBJ_EX": b"\x80\x04\x8c\x02os\x8c\x06system\x93" + text + b"\x85}\x92.",
        "BUILD": b"\x80\x04}\x8c\x01a\x8c\x01bsb}b.",
        "REDUCE of a text": b"\x80\x04\x8c\x09os.system" + text + b"\x85R.",
        "eval": b"cbuiltins\neval\n" + text + b"\x85R.",
        "getattr": b"cbuiltins\ngetattr\n(cos\n__dict__\n" + text + b"tR.",
        "after the images": pickle.dumps({"images": [b"x"], "prompts": ["y"], "metadata": Calls(os.system, command)}),
    }


NAMES = [*hostile("true")]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = hostile("touch ran")[name]
    with pytest.raises(UserError, match="the pickle holds .*allowed are") as caught:
        read_plain(data, MB)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_hostile_pickles_are_hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own reader runs them, so their refusal means something."""
    monkeypatch.chdir(tmp_path)
    ran = []
    for name in ("system 0", "system 5", "GLOBAL", "INST", "OBJ", "STACK_GLOBAL", "after the images"):
        pickle.loads(hostile(f"touch '{name}'".replace("'", ""))[name])
        ran.append(len(list(tmp_path.iterdir())))
    assert ran[-1] >= 5


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (np.float32(0.5), r"numpy.*\.scalar.*\.tolist\(\)"),
        (np.array(["a", "b"]), r"numpy.*\.tolist\(\)"),
        (list(np.array(["a", "b"])), r"numpy.*\.scalar"),
        ({1, 2}, "a set"),
        (frozenset({1}), "a frozenset"),
        (bytearray(b"x"), "a bytearray|builtins.bytearray"),
        (1j, "builtins.complex"),
        (collections.OrderedDict(a=1), "collections.OrderedDict"),
        (datetime.date(2020, 1, 1), "datetime.date"),
        (Path("x"), "pathlib"),
        (range(3), "builtins.range"),
        ({(1, 2): 3}, "a key of type tuple"),
        ({2**60: 3}, "a key of type int"),
    ],
)
def test_what_is_not_plain_is_named(value: Any, named: str) -> None:
    for protocol in (4, 5):
        with pytest.raises(UserError, match=f"the pickle holds {named}"):
            read_plain(pickle.dumps({"metadata": value}, protocol), MB)


@pytest.mark.parametrize("protocol", [0, 1, 2])
@pytest.mark.parametrize("image", [b"", b"\xff\xd8"])
def test_bytes_in_an_old_protocol_say_which_to_use(protocol: int, image: bytes) -> None:
    with pytest.raises(UserError, match="protocol 3 or later"):
        read_plain(pickle.dumps({"images": [image]}, protocol), MB)


def deep(count: int) -> bytes:
    return b"]" * count + b"a" * (count - 1) + b"."


BOMBS = {
    "a list in itself": b"\x80\x04]\x94h\x00a.",
    "a dict in itself": b"\x80\x04}\x94\x8c\x01ah\x00s.",
    "laughs by the memo": b"\x80\x04]\x94\x8c\x01xa" + b"".join(
        b"]\x94(" + b"h" + bytes([i]) + b"h" + bytes([i]) + b"e" for i in range(40)) + b".",
    "laughs by DUP": b"\x80\x04N" + b"2\x86" * 45 + b".",
    "laughs as a key": b"\x80\x04}N" + b"2\x86" * 45 + b"Ns.",
    "deep lists": deep(24_000),
    "deep tuples": b"N" + b"\x85" * 49_000 + b".",
    "deep tuples as a key": b"}N" + b"\x85" * 49_000 + b"Ns.",
    "many marks": b"(" * 49_000 + b".",
    "many lists": b"(" + b"]" * 100_000 + b"l.",
    "a memo of gigabytes": b"\x80\x04Nr\xff\xff\xff\x7f]a.",
    "a text of exabytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"x.",
    "a number of gigabytes": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"x.",
    "a number of negative size": b"\x80\x02\x8b" + struct.pack("<i", -5) + b"x.",
    "a frame of exabytes": b"\x80\x04\x95" + struct.pack("<Q", 2**63) + b"Na.",
    "a number of a million digits": b"L" + b"9" * 10**6 + b"L\n.",
    "one text a thousand times": b"(V" + b"x" * 10_000 + b"\n" + b"2" * 1000 + b"l.",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_one_line(name: str) -> None:
    with pytest.raises(UserError, match="pickle") as caught:
        read_plain(BOMBS[name], MB)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_the_limits_are_where_they_say() -> None:
    value: list[Any] = []
    for _ in range(MAX_DEPTH - 1):
        value = [value]
    assert read_plain(pickle.dumps(value), MB) == value
    with pytest.raises(UserError, match=f"more than {MAX_DEPTH} deep"):
        read_plain(pickle.dumps([value]), MB)
    with pytest.raises(UserError, match=f"more than {MAX_STEPS} instructions"):
        read_plain(pickle.dumps([1.5] * MAX_STEPS), MB)
    assert read_plain(pickle.dumps("x" * 1000), 1000) == "x" * 1000
    with pytest.raises(UserError, match="more than 0.000999 MB of texts"):
        read_plain(pickle.dumps("x" * 1000), 999)


WHOLE = pickle.dumps({"images": [b"\xff\xd8" * 40], "prompts": ["é"], "metadata": {"a": 1.5, "b": (1, 2**70, None)}})


@pytest.mark.parametrize("end", range(len(WHOLE)))
def test_a_truncated_pickle_is_one_line(end: int) -> None:
    with pytest.raises(UserError, match="no whole pickle"):
        read_plain(WHOLE[:end], MB)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_value_or_one_line(data: bytes) -> None:
    readable_or_refused(data)


@given(st.integers(0, 2**32))
def test_so_are_damaged_pickles(seed: int) -> None:
    """A few bytes of real pickles replaced, left out or doubled."""
    chance = random.Random(seed)
    data = bytearray(chance.choice([WHOLE, *hostile("true").values()]))
    for _ in range(chance.randint(1, 5)):
        where = chance.randrange(len(data))
        data[where : where + chance.randint(0, 2)] = bytes(chance.choices(range(256), k=chance.randint(0, 2)))
    readable_or_refused(bytes(data))


def readable_or_refused(data: bytes) -> None:
    """Plain types, or a UserError in one line."""
    try:
        waiting = [read_plain(data, MB)]
    except UserError as error:
        assert "\n" not in str(error)
        return
    while waiting:
        value = waiting.pop()
        assert type(value) in (dict, list, tuple, str, bytes, int, float, bool, type(None))
        inner = [*value, *value.values()] if isinstance(value, dict) else value
        waiting += inner if isinstance(inner, list | tuple) else []
