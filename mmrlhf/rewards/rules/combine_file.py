"""A combination of rewards in a YAML file, which `--reward FILE.yaml` reads."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from mmrlhf.config import suggestion
from mmrlhf.errors import UserError
from mmrlhf.rewards.rules.combine import Combination, Constraint, Part
from mmrlhf.rewards.rules.python_function import PREFIX, FunctionReward
from mmrlhf.types import Reward

SUFFIXES = (".yaml", ".yml")


def load_combination(file: Path, opened: tuple[Path, ...] = ()) -> Combination:
    """The combination that a YAML file describes; its paths are relative to the file. UserError says what to mend.

    Keys: `parts` (reward, weight, mean and std), `constraints` (reward, at_least, at_most), and with constraints either
    `veto_score` or `abstain: true`. `opened` are the files that name this one.
    """
    file = file.resolve()
    if file in opened:
        raise UserError(f"{file} names itself ({' → '.join(path.name for path in (*opened, file))}): take it out")
    content = read_mapping(file)
    check_keys(content, ("parts", "constraints", "veto_score", "abstain"), str(file))
    opened = (*opened, file)
    parts = [part_of(row, f"{file} part {i}", opened) for i, row in enumerate(listed(content, "parts", file), start=1)]
    constraints = [
        constraint_of(row, f"{file} constraint {i}", opened)
        for i, row in enumerate(listed(content, "constraints", file), start=1)
    ]
    if not any(part.weight for part in parts):
        raise UserError(f"{file} has no part with a weight other than 0: write 'parts:' and '- reward: NAME' below it")
    return Combination(tuple(parts), tuple(constraints), veto_of(content, bool(constraints), file))


def part_of(row: Any, where: str, opened: tuple[Path, ...]) -> Part:
    """A row of `parts`."""
    check_keys(row, ("reward", "weight", "mean", "std"), where)
    if ("mean" in row) != ("std" in row):
        raise UserError(f"{where} has only one of mean and std: give both, or neither")
    part = Part(
        named_reward(row, where, opened),
        **{name: number(row[name], name, where) for name in ("weight", "mean", "std") if name in row},
    )
    if part.std <= 0:
        raise UserError(f"{where}: std got {part.std:g}, allowed is a number above 0")
    return part


def constraint_of(row: Any, where: str, opened: tuple[Path, ...]) -> Constraint:
    """A row of `constraints`."""
    check_keys(row, ("reward", "at_least", "at_most"), where)
    limits = {name: number(row[name], name, where) for name in ("at_least", "at_most") if name in row}
    constraint = Constraint(named_reward(row, where, opened), **limits)
    if not limits or constraint.at_least > constraint.at_most:
        got = f"at_least {constraint.at_least:g} above at_most {constraint.at_most:g}" if limits else "no limit"
        raise UserError(f"{where} has {got}: give at_least, or at_most, or a range that something can lie in")
    return constraint


def veto_of(content: dict[str, Any], constrained: bool, file: Path) -> float:
    """The score of an image that breaks a constraint; NaN to abstain."""
    abstain = content.get("abstain", False)
    if not isinstance(abstain, bool):
        raise UserError(f"{file}: abstain got {abstain!r}, allowed is true or false")
    given = abstain + ("veto_score" in content)
    if given != constrained:
        wanted = (
            "one of 'veto_score: NUMBER' and 'abstain: true'" if constrained else "them together with constraints only"
        )
        raise UserError(f"{file} has {given} of veto_score and abstain: give {wanted}")
    return number(content["veto_score"], "veto_score", str(file)) if "veto_score" in content else math.nan


def named_reward(row: dict[str, Any], where: str, opened: tuple[Path, ...]) -> Reward:
    """The reward that a row names: a name, or a folder, YAML file or Python file relative to the file of the row."""
    from mmrlhf.rewards import REWARDS, load_reward

    name = row.get("reward")
    if not isinstance(name, str) or not name:
        raise UserError(f"{where}: reward got {name!r}, allowed is a reward's name or path")
    if name in REWARDS:
        return load_reward(name)
    place = opened[-1].parent / name.removeprefix(PREFIX)
    if name.endswith(SUFFIXES):
        return load_combination(place, opened)
    if name.startswith(PREFIX):
        return FunctionReward(str(place) if ".py:" in name else name)
    with_settings = place.with_name(place.name.rpartition(":")[0] or place.name)  # FOLDER:pessimism=1
    return load_reward(place if place.exists() or with_settings.exists() else name)


def read_mapping(file: Path) -> dict[str, Any]:
    """The keys and values of a YAML file."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the combination {file} ({error.strerror}): give a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not YAML ({' '.join(str(error).split())}): write 'parts:' and a list") from error
    return content if isinstance(content, dict) else {}


def listed(content: dict[str, Any], key: str, file: Path) -> list[Any]:
    """The list under a key; empty where there is none."""
    rows = content.get(key, [])
    if not isinstance(rows, list):
        raise UserError(f"{file}: {key} got {rows!r}, allowed is a list: write '- reward: NAME' a line below it")
    return rows


def check_keys(row: Any, allowed: Sequence[str], where: str) -> None:
    """UserError unless `row` is a mapping of allowed keys."""
    if not isinstance(row, dict):
        raise UserError(f"{where} got {row!r}, allowed are keys and values: write 'reward: NAME'")
    for key in row:
        if key not in allowed:
            raise UserError(
                f"{where}: unknown key {key}{suggestion(str(key), allowed)}: allowed are {', '.join(allowed)}"
            )


def number(value: Any, name: str, where: str) -> float:
    """A finite number; 1e-3, which YAML takes for a text, too."""
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise UserError(f"{where}: {name} got {value!r}, allowed is a finite number")
    return found
