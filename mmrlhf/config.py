"""Typed configs: frozen dataclasses, filled from defaults, then a YAML file (`--config`), then the command line.

tyro converts every value and prints the `--help`; the option names are read here, so that each mistake is one line.
"""

import contextlib
import dataclasses
import difflib
import io
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import tyro
import yaml

from mmrlhf.errors import UserError

Config = TypeVar("Config")
MAX_SEED = 2**32 - 1
CONFIG_HELP = "--config FILE.yaml gives values for any of the options, one 'key: value' a line; the command line wins."


def parse(config_type: type[Config], arguments: Sequence[str], program: str) -> Config:
    """The config that a command line asks for; `config_type` is a dataclass of flat fields.

    `--help` prints the options and exits with 0. UserError for an unknown or missing option, or a value of the wrong type.
    """
    if "-h" in arguments or "--help" in arguments:
        description = "\n\n".join(filter(None, [config_type.__doc__, CONFIG_HELP]))
        tyro.cli(config_type, args=["--help"], prog=program, description=description)
    fields = field_types(config_type)
    options = read_options(arguments, fields, program)
    values: dict[str, Any] = {}
    if "config" in options:
        values = read_yaml(config_path(options.pop("config")), config_type)
    for name, tokens in options.items():
        values[name] = convert(name, fields[name], tokens, "--" + flag_name(name))
    missing = [f"--{flag_name(name)}" for name in required_fields(config_type) if name not in values]
    if missing:
        raise UserError(f"missing {', '.join(missing)}: '{program} --help' says what to give")
    check_seed(values.get("seed") or 0)
    return config_type(**values)


def check_seed(seed: int) -> None:
    """UserError for a seed that some generator would refuse: numpy takes none below 0, torch none that is too long."""
    if not 0 <= seed <= MAX_SEED:
        raise UserError(f"--seed got {seed}, allowed is 0 to {MAX_SEED}")


def check(config: Any, name: str, fits: Any, words: str) -> None:
    """UserError where the value of an option does not fit, or is no finite number."""
    value = getattr(config, name)
    if not (math.isfinite(value) and fits(value)):
        raise UserError(f"--{name.replace('_', '-')} got {value}, allowed is {words}")


def exactly_one(**options: Any) -> None:
    """UserError unless one of two options was given; None is not given."""
    if sum(value is not None for value in options.values()) != 1:
        got = "neither" if all(value is None for value in options.values()) else "both"
        names = " and ".join(f"--{name.replace('_', '-')}" for name in options)
        raise UserError(f"got {got} of {names}: give one of them")


def read_options(arguments: Sequence[str], fields: Mapping[str, Any], program: str) -> dict[str, list[str]]:
    """What follows each `--option` of the command line, by field name; `--no-name` is ["false"]. The last wins."""
    allowed = {flag_name(name): name for name in [*fields, "config"]}
    options: dict[str, list[str]] = {}
    current = None
    for argument in arguments:
        if not re.match(r"--?[A-Za-z]", argument):
            if current is None:
                raise UserError(
                    f"unexpected '{argument}': '{program}' takes only --option VALUE; see '{program} --help'"
                )
            options[current].append(argument)
            continue
        given, equals, value = argument.partition("=")
        flag = flag_name(given.lstrip("-"))
        positive = flag.removeprefix("no-")
        switched_off = flag not in allowed and fields.get(allowed.get(positive, "")) is bool
        if not given.startswith("--") or (flag not in allowed and not switched_off):
            raise UserError(
                f"unknown option {given}{suggestion(flag, allowed, '--')}: allowed are --{', --'.join(allowed)}"
            )
        current = allowed[positive if switched_off else flag]
        options[current] = ["false"] if switched_off else [value] if equals else []
    return options


def read_yaml(path: Path, config_type: type[Any]) -> dict[str, Any]:
    """The values that a YAML file gives for fields of `config_type`; an unknown key lists the allowed ones.

    An empty file gives none. Relative paths in it mean the same as on the command line: from the working directory.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the config {path} ({error.strerror}): give the path of a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is not YAML ({' '.join(str(error).split())}): write one 'key: value' a line"
        ) from error
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not keys and values: write one 'key: value' a line")
    fields = field_types(config_type)
    values: dict[str, Any] = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in fields:
            raise UserError(f"{path}: unknown key {key}{suggestion(name, fields)}: allowed are {', '.join(fields)}")
        values[name] = convert(name, fields[name], yaml_tokens(value, fields[name], f"{path}: {key}"), f"{path}: {key}")
    return values


def config_path(tokens: list[str]) -> Path:
    """The file that `--config` names."""
    if len(tokens) != 1:
        raise UserError(f"--config got {len(tokens)} values, allowed is one: write --config FILE.yaml")
    return Path(tokens[0])


def yaml_tokens(value: Any, field_type: Any, where: str) -> list[str]:
    """A YAML value as the command line would spell it, a list as several words."""
    entries = value if isinstance(value, list) else [value]
    for entry in entries:
        if isinstance(entry, dict | list):
            raise UserError(f"{where} got '{value}', allowed is {describe(field_type)}: write no keys or lists inside")
        if isinstance(entry, bool) and field_type is not bool:
            raise UserError(
                f"{where} got {str(entry).lower()}, allowed is {describe(field_type)}: put a text in quotes"
            )
    return [str(entry).lower() if isinstance(entry, bool) else str(entry) for entry in entries]


def convert(name: str, field_type: Any, tokens: list[str], where: str) -> Any:
    """The value of one field from its words, by tyro; UserError says `where`, what was got and what is allowed."""
    flag = "--" + flag_name(name)
    if field_type is bool:
        switch = {(): True, ("true",): True, ("false",): False}.get(tuple(tokens))
        if switch is None:
            raise UserError(f"{where} got '{' '.join(tokens)}', allowed is true or false")
        return switch
    one_field = dataclasses.make_dataclass("one_field", [(name, field_type)])
    arguments = [f"{flag}={tokens[0]}"] if len(tokens) == 1 else [flag, *tokens]
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # tyro would draw a box of several lines
            return getattr(tyro.cli(one_field, args=arguments), name)
    except SystemExit:
        got = f"'{' '.join(tokens)}'" if tokens else "no value"
        raise UserError(f"{where} got {got}, allowed is {describe(field_type)}") from None


def describe(field_type: Any) -> str:
    """The values that a field takes, in words."""
    origin, inner = typing.get_origin(field_type), typing.get_args(field_type)
    if origin is typing.Annotated:
        return describe(inner[0])
    if origin is Literal:
        return "one of " + ", ".join(str(value) for value in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(choice) for choice in inner)
    if origin in (tuple, list, Sequence):
        repeated = len(inner) == 1 or inner[-1] is Ellipsis
        return f"several of: {describe(inner[0])}" if repeated else " then ".join(describe(entry) for entry in inner)
    words = {int: "a whole number", float: "a number", str: "a text", Path: "a path", types.NoneType: "None"}
    return words.get(field_type, getattr(field_type, "__name__", str(field_type)))


def field_types(config_type: type[Any]) -> dict[str, Any]:
    """The type of each field, in order."""
    types_of = typing.get_type_hints(config_type, include_extras=True)
    return {field.name: types_of[field.name] for field in dataclasses.fields(config_type)}


def required_fields(config_type: type[Any]) -> list[str]:
    """The names of the fields that have no default."""
    nothing = dataclasses.MISSING
    return [f.name for f in dataclasses.fields(config_type) if f.default is nothing and f.default_factory is nothing]


def suggestion(given: str, allowed: Iterable[str], prefix: str = "") -> str:
    """` (did you mean …?)` where an allowed name is close to the given one, else nothing."""
    close = difflib.get_close_matches(given, list(allowed), 2)
    return f" (did you mean {' or '.join(prefix + name for name in close)}?)" if close else ""


def flag_name(name: str) -> str:
    """A field's name on the command line: `sample_batch_size` is `sample-batch-size`."""
    return name.replace("_", "-")
