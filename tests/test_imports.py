"""Imports point one way: apps -> {diffusion, vlm, selection} -> mmrlhf. Read from the syntax, so nothing is imported."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "mmrlhf": {"mmrlhf"},
    "diffusion": {"diffusion", "mmrlhf"},
    "vlm": {"vlm", "mmrlhf"},
    "selection": {"selection", "mmrlhf"},
    "apps": {"apps", "diffusion", "vlm", "selection", "mmrlhf"},
}
# These start the other packages' work, so they may name them inside a function: never when they are imported themselves.
MAY_REACH_UP = ("mmrlhf/cli.py", "mmrlhf/quickstart")
NOT_IN_CORE = {"diffusers", "gradio"}
LATE_IN_CORE = {"accelerate", "peft"}  # inside the function that needs them
FILES = sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))


def imported(tree: ast.AST, file: Path, inside: bool = False) -> Iterator[tuple[str, bool, int]]:
    """(top-level name, inside a function, line) of every import in a syntax tree; relative ones count as the package's own."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], inside, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            own = file.relative_to(ROOT).parts[0] if file.is_relative_to(ROOT) else ""
            yield (node.module or "").partition(".")[0] if node.level == 0 else own, inside, node.lineno
        elif isinstance(node, ast.Call) and "import_module" in ast.dump(node.func) and node.args:
            if isinstance(node.args[0], ast.Constant):
                yield str(node.args[0].value).partition(".")[0], inside, node.lineno
        yield from imported(node, file, inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))


def offences(file: Path, source: str) -> list[str]:
    """What one file of a package imports against the rules, as `file:line imports name`."""
    name = file.relative_to(ROOT).as_posix()
    package = name.partition("/")[0]
    found = []
    for module, inside, line in imported(ast.parse(source), file):
        if inside and name.startswith(MAY_REACH_UP):
            continue
        other_package = module in MAY_IMPORT and module not in MAY_IMPORT[package]
        forbidden = NOT_IN_CORE if inside else NOT_IN_CORE | LATE_IN_CORE
        if other_package or (package == "mmrlhf" and module in forbidden):
            found.append(f"{name}:{line} imports {module}")
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_one_way(file: Path) -> None:
    assert offences(file, file.read_text()) == []


@pytest.mark.parametrize(
    ("file", "source", "allowed"),
    [
        ("selection/new.py", "from diffusion.ddim import step", False),
        ("selection/new.py", "def f():\n    import vlm.sft", False),
        ("diffusion/new.py", "from mmrlhf.errors import UserError", True),
        ("diffusion/new.py", "from . import ddim", True),
        ("diffusion/new.py", "import importlib\nimportlib.import_module('apps.rate')", False),
        ("apps/new.py", "import diffusion, selection, mmrlhf", True),
        ("mmrlhf/new.py", "def f():\n    import selection", False),
        ("mmrlhf/new.py", "def f():\n    from diffusers import DDIMScheduler", False),
        ("mmrlhf/new.py", "import torch", True),
        ("mmrlhf/quickstart.py", "def f():\n    import selection.select", True),
        ("mmrlhf/quickstart.py", "import selection.select", False),
        ("mmrlhf/cli.py", "import apps.rate", False),
    ],
)
def test_the_rules_catch_what_they_should(file: str, source: str, allowed: bool) -> None:
    assert (offences(ROOT / file, source) == []) is allowed


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_every_package_is_there_and_typed(package: str) -> None:
    assert (ROOT / package / "__init__.py").is_file()
    assert (ROOT / package / "py.typed").is_file()


def loaded_after(program: str) -> set[str]:
    """The top-level modules in a fresh interpreter after running a program that prints nothing on stderr."""
    code = f"import sys\n{program}\nprint('LOADED', *{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return set(done.stdout.rpartition("LOADED")[2].split())


HEAVY = (
    {"numpy", "torch", "transformers", "tyro", "yaml", "sqlalchemy", "PIL", "tqdm", "jaxtyping"}
    | NOT_IN_CORE
    | LATE_IN_CORE
)


def test_importing_the_core_imports_torch_at_most() -> None:
    assert not loaded_after("import mmrlhf") & (HEAVY - {"numpy", "torch"})


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["reward"], ["reward", "--help"]], ids=" ".join)
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    program = f"sys.argv = ['mmrlhf', *{words}]\nfrom mmrlhf.cli import main\nmain()"
    assert not loaded_after(program) & HEAVY


def test_the_loaded_modules_are_seen() -> None:
    assert "yaml" in loaded_after("import mmrlhf.config")
