"""Recipes from YAML: each strategy a mapping with a type; a typo fails and lists the keys."""

import typing
from pathlib import Path
from typing import Any

import yaml

from mmrlhf.config import convert, required_fields, suggestion, yaml_tokens
from mmrlhf.errors import UserError
from selection.recipe import KINDS, Strategy, label


def read_recipe(path: Path) -> tuple[Strategy, ...]:
    """The strategies of a YAML file `strategies: [{type: diversity, strength: 1}, …]`. UserError names the entry and the fix."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"cannot read the recipe {path} ({reason}): give the path of a YAML file") from error
    except yaml.YAMLError as error:
        raise UserError(
            f"{path} is not YAML ({' '.join(str(error).split())}): write 'strategies:' and a list"
        ) from error
    if not isinstance(content, dict) or "strategies" not in content:
        raise UserError(f"{path} has no key strategies: write 'strategies:' and a list of entries '- type: diversity'")
    if unknown := [key for key in content if key != "strategies"]:
        raise UserError(f"{path}: unknown key {unknown[0]}, allowed is strategies")
    return strategies_of(content["strategies"], str(path))


def strategies_of(content: Any, where: str = "recipe") -> tuple[Strategy, ...]:
    """The strategies of a list of mappings, as YAML or JSON gives it."""
    if not isinstance(content, list) or not content:
        raise UserError(f"{where}: strategies got {content!r:.80}, allowed is a list of entries '- type: diversity'")
    return tuple(strategy_of(entry, f"{where}: strategy {number}") for number, entry in enumerate(content, start=1))


def strategy_of(entry: Any, where: str) -> Strategy:
    """One strategy of its mapping."""
    if not isinstance(entry, dict) or "type" not in entry:
        raise UserError(f"{where} got {entry!r:.80}, allowed is a mapping with a type: one of {', '.join(KINDS)}")
    name = str(entry["type"]).replace("_", "-").lower()
    if name not in KINDS:
        raise UserError(
            f"{where}: unknown type {entry['type']}{suggestion(name, KINDS)}: allowed are {', '.join(KINDS)}"
        )
    kind, where = KINDS[name], f"{where} ({name})"
    fields = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, value in entry.items():
        if key == "type":
            continue
        if key not in fields:
            allowed = ", ".join(["type", *fields])
            raise UserError(f"{where}: unknown key {key}{suggestion(str(key), fields)}: allowed are {allowed}")
        values[key] = value_of(key, value, fields[key], f"{where}: {key}")
    if missing := [field for field in required_fields(kind) if field not in values]:
        raise UserError(f"{where} lacks {', '.join(missing)}: allowed are {', '.join(['type', *fields])}")
    try:
        return kind(**values)
    except UserError as error:
        raise UserError(f"{where.rpartition(' (')[0]}, {error}") from error


def value_of(key: str, value: Any, field_type: Any, where: str) -> Any:
    """A field's value as its type; shares are a mapping of numbers by label."""
    if key != "shares":
        return convert(key, field_type, yaml_tokens(value, field_type, where), where)
    if not isinstance(value, dict) or not value:
        raise UserError(f"{where} got {value!r:.80}, allowed is a mapping such as {{sunny: 0.5, rainy: 0.3}}")
    return {
        label(group): convert("share", float, yaml_tokens(share, float, f"{where} of {group}"), f"{where} of {group}")
        for group, share in value.items()
    }
