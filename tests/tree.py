"""`python -m tests.tree` rewrites the README's file tree from the first sentence of each file's docstring."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
START, END = "<!-- tree: written by `make tree` -->\n", "<!-- end of tree -->\n"
PACKAGES = ("mmrlhf", "diffusion", "vlm", "selection", "apps")
OTHERS = {
    "configs/": "METHOD/MODEL.yaml, each headed by command, hardware and expected result",
    "tests/": "mirrors the source",
    "benchmarks/": "one script a claim; prints ratios measured in one run",
    "docs/": "guides, decisions and the log of what was tried",
}


def first_sentence(file: Path) -> str:
    """The start of a file's docstring, up to the end of its first sentence or line; AssertionError where there is none."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    assert text, f"{file} has no docstring: begin it with one line that says what it is for"
    return re.split(r"(?<!et al)(?<=[^.])\.(?:\s|$)|\n", text, maxsplit=1)[0].removesuffix(".")


def tree() -> str:
    """The block between the markers: every package and the files in it, a line each, then the other folders."""
    rows: list[tuple[str, str]] = []
    for package in PACKAGES:
        rows.append((f"{package}/", first_sentence(ROOT / package / "__init__.py").removeprefix("mmrlhf: ")))
        for file in sorted((ROOT / package).rglob("*.py")):
            if file.name != "__init__.py" or (file.parent.name not in PACKAGES and file.read_text().strip()):
                rows.append((f"  {file.relative_to(ROOT / package).as_posix()}", first_sentence(file)))
    rows += [(name, what) for name, what in OTHERS.items() if (ROOT / name).is_dir()]
    width = max(len(name) for name, _ in rows) + 2
    lines = [f"{name:<{width}}{what}".rstrip() for name, what in rows]
    return f"{START}```\n" + "\n".join(lines) + f"\n```\n{END}"


def with_tree(readme: str) -> str:
    """The README with its tree as the files now are."""
    before, _, rest = readme.partition(START)
    return before + tree() + rest.partition(END)[2]


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(with_tree(path.read_text(encoding="utf-8")), encoding="utf-8")
