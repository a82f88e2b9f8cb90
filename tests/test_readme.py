"""The README is true: its commands take these options, its Python runs on these names, its files and links are there."""

import ast
import importlib
import re
import shlex
from dataclasses import fields, is_dataclass
from typing import Any

import pytest

from mmrlhf.cli import COMMANDS
from mmrlhf.config import read_options, required_fields
from tests.tree import ROOT, START, with_tree

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python"]
SHELL = [
    line.split("#")[0] for language, text in BLOCKS if not language for line in text.replace("\\\n", "").splitlines()
]
SHELL += [line.strip().replace("$(BIN)", ".venv/bin") for line in (ROOT / "Makefile").read_text().splitlines()]
LINES = [line.strip().removeprefix(".venv/bin/") for line in SHELL if re.match(r"(\.venv/bin/)?mmrlhf ", line)]


@pytest.mark.parametrize("line", LINES)
def test_a_command_takes_the_options_shown(line: str) -> None:
    words = shlex.split(line)[1:]
    length = 2 if " ".join(words[:2]) in COMMANDS else 1
    module, config_name, _, _ = COMMANDS[" ".join(words[:length])]
    config = getattr(importlib.import_module(module), config_name)
    if words[length:] == ["--help"]:
        return
    options = read_options(words[length:], {field.name: field.type for field in fields(config)}, line)
    assert set(required_fields(config)) <= options.keys() or "config" in options


@pytest.mark.parametrize("text", PYTHON, ids=range(len(PYTHON)))
def test_python_uses_names_and_arguments_that_exist(text: str) -> None:
    program = ast.parse(text)
    names: dict[str, Any] = {}
    for node in ast.walk(program):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            names |= {alias.asname or alias.name: getattr(module, alias.name) for alias in node.names}
    calls = [node for node in ast.walk(program) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    configs = [(call, names[call.func.id]) for call in calls if is_dataclass(names.get(call.func.id))]  # type: ignore[attr-defined]
    assert configs
    for call, config in configs:
        in_order = [field.name for field in fields(config)][: len(call.args)]
        given = {*in_order, *(keyword.arg for keyword in call.keywords)}
        assert set(required_fields(config)) <= given <= {field.name for field in fields(config)}


def test_both_kinds_of_example_were_seen() -> None:
    assert len(LINES) >= 5 and len(PYTHON) >= 3


def test_the_tree_is_that_of_the_files() -> None:
    assert START in README
    assert README == with_tree(README), "run `make tree` and commit the README"


def test_links_and_pictures_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_every_make_target_named_exists() -> None:
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z][\w-]*)", "\n".join(re.findall(r"`([^`]+)`", README)))) <= targets
