"""Reads pickles of plain containers, and can run nothing that they ask for.

`pickle` is a program for a small stack machine, and `pickle.Unpickler` calls whatever the program names. This reader is another
machine for the same programs, which has only the instructions that make dicts, lists, tuples, texts, bytes and numbers: there is
no callable that could be reached. Even with `find_class` refusing everything, `pickle.Unpickler` can be hurt: a number in the
memo reserves gigabytes, and a key of nested tuples overflows the C stack when it is hashed. Here keys are scalars.
"""

import pickletools
from typing import Any

from mmrlhf.errors import UserError

MAX_STEPS = 50_000  # instructions run, and values in what comes out: a request for 256 images takes a few thousand
MAX_DEPTH = 50
MAX_KEY = 2**60  # below it no two integers have one hash, so nobody can make a dict slow
ALLOWED = "dict, list, tuple, str, bytes, int, float, bool and None"
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
NUMBERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
TEXTS = {"UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8"}
TYPES = {"EMPTY_SET": "a set", "FROZENSET": "a frozenset", "BYTEARRAY8": "a bytearray"}


def read_plain(data: bytes, max_bytes: int) -> Any:
    """What `pickle.dumps` made `data` of, protocols 0 to 5 (bytes: 3 to 5). What follows the pickle's end is not looked at.

    `max_bytes` bounds the texts in what comes out, counted each time they occur. UserError for a pickle that is broken, holds
    anything but `ALLOWED`, is deeper than MAX_DEPTH or larger than MAX_STEPS.
    """
    machine = Machine()
    try:
        for step, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if step >= MAX_STEPS:
                raise UserError(f"the pickle has more than {MAX_STEPS} instructions: send fewer or flatter values")
            machine.run(opcode.name, argument)
        value = machine.stack.pop()
    except UserError:
        raise
    except Exception as error:  # pickletools and the machine fail in many ways on bytes that no pickler wrote
        raise UserError(
            f"the body is no whole pickle ({printable(str(error))}): send all of pickle.dumps(…)"
        ) from error
    check_size(value, max_bytes)
    return value


class Machine:
    """The stack, the marks on it, and the memo, with the instructions that make plain containers."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}

    def run(self, name: str, argument: Any) -> None:
        """One instruction. UserError for one that makes what is not allowed."""
        if name in NUMBERS or name in TEXTS:
            self.stack.append(argument)
        elif name in CONSTANTS:
            self.stack.append(CONSTANTS[name])
        elif not (self.build(name) or self.rearrange(name) or self.remember(name, argument)):
            raise refusal(self.named(name, argument))

    def build(self, name: str) -> bool:
        """Make a container or put something into one; False for another kind of instruction."""
        match name:
            case "EMPTY_LIST":
                self.stack.append([])
            case "EMPTY_DICT":
                self.stack.append({})
            case "EMPTY_TUPLE":
                self.stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self.stack.append(tuple(self.pop(int(name[-1]))))
            case "LIST" | "TUPLE":
                values = self.pop_mark()
                self.stack.append(values if name == "LIST" else tuple(values))
            case "DICT":
                items = self.pop_mark()
                self.stack.append({})
                self.set(items)
            case "APPEND":
                self.extend(self.pop(1))
            case "APPENDS":
                self.extend(self.pop_mark())
            case "SETITEM":
                self.set(self.pop(2))
            case "SETITEMS":
                self.set(self.pop_mark())
            case _:
                return False
        return True

    def rearrange(self, name: str) -> bool:
        """Move marks and values about, or do nothing where a real reader would only prepare; False for other kinds."""
        match name:
            case "MARK":
                self.marks.append(self.stack)
                self.stack = []
            case "POP_MARK":
                self.pop_mark()
            case "POP" if self.stack:
                self.stack.pop()
            case "POP":
                self.pop_mark()
            case "DUP":
                self.stack.append(self.stack[-1])
            case "PROTO" | "FRAME" | "STOP":
                pass
            case _:
                return False
        return True

    def remember(self, name: str, argument: Any) -> bool:
        """Into the memo, or out of it; False for another kind of instruction."""
        match name:
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                self.stack.append(self.memo[argument])
            case _:
                return False
        return True

    def pop(self, count: int) -> list[Any]:
        """The last values, taken off the stack."""
        if len(self.stack) < count:
            raise ValueError("the stack is too short")
        values = self.stack[-count:]
        del self.stack[-count:]
        return values

    def pop_mark(self) -> list[Any]:
        """The values above the last mark, taken off with it."""
        values, self.stack = self.stack, self.marks.pop()
        return values

    def extend(self, values: list[Any]) -> None:
        """Put values into the list on top."""
        if type(self.stack[-1]) is not list:
            raise ValueError("values are put into what is no list")
        self.stack[-1].extend(values)

    def set(self, items: list[Any]) -> None:
        """Put keys and values, which take turns, into the dict on top."""
        if type(self.stack[-1]) is not dict or len(items) % 2:
            raise ValueError("keys and values do not match a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if isinstance(key, dict | list | tuple) or (isinstance(key, int) and abs(key) >= MAX_KEY):
                raise refusal(f"a key of type {type(key).__name__}", "texts and numbers below 2**60 as keys")
            self.stack[-1][key] = value

    def named(self, name: str, argument: Any) -> str:
        """What a forbidden instruction asks for, as its sender would say it."""
        if name in ("GLOBAL", "INST"):
            return str(argument).replace(" ", ".", 1)
        if name == "STACK_GLOBAL":
            return ".".join(str(part) if isinstance(part, str) else "?" for part in self.pop(2))
        return TYPES.get(name, f"the instruction {name}")


def refusal(found: str, allowed: str = ALLOWED) -> UserError:
    """The error for something in a pickle that is not allowed, with how its sender gets rid of it."""
    advice = "convert it before pickling"
    if found.startswith(("_codecs.", "__builtin__.bytes")):
        advice = "bytes need pickle protocol 3 or later"
    elif found.startswith(("numpy", "torch")):
        advice = "convert arrays with .tolist() and numbers with float() or int()"
    return UserError(f"the pickle holds {printable(found)}, allowed are {allowed}: {advice}")


def printable(text: str) -> str:
    """A short, harmless version of what a stranger sent."""
    return "".join(character if character.isprintable() else "?" for character in text[:100])


def check_size(value: Any, max_bytes: int) -> None:
    """UserError where a value, written out, is too deep or too large: few bytes can share one list a million times."""
    waiting, count, size = [(value, 0)], 1, 0
    while waiting:
        part, depth = waiting.pop()
        size += len(part) if isinstance(part, str | bytes) else 0
        inner = [*part.keys(), *part.values()] if isinstance(part, dict) else part
        if isinstance(inner, list | tuple):
            count += len(inner)
            if depth >= MAX_DEPTH or count > MAX_STEPS:
                raise UserError(
                    f"the pickle holds containers more than {MAX_DEPTH} deep, or more than {MAX_STEPS} values: "
                    "send fewer or flatter values"
                )
            waiting.extend((entry, depth + 1) for entry in inner)
        if size > max_bytes:
            raise UserError(f"the pickle holds more than {max_bytes / 1e6:g} MB of texts and images: send fewer")
