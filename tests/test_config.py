"""Configs: defaults, then YAML, then the command line; each mistake says what was got, what is allowed, how to mend it."""

import importlib
from dataclasses import KW_ONLY, FrozenInstanceError, dataclass, fields
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.cli import COMMANDS
from mmrlhf.config import describe, parse, read_yaml, required_fields
from mmrlhf.errors import UserError


@dataclass(frozen=True)
class RunConfig:
    """Run it."""

    model: str
    """which model"""
    out: Path
    epochs: int = 3
    learning_rate: float = 1e-3
    seed: int | None = None
    mode: Literal["pair", "rank"] = "pair"
    tags: tuple[str, ...] = ("a",)
    weights: list[float] | None = None
    crop: tuple[int, int] = (1, 2)
    resume: bool = False
    shuffle: bool = True


@pytest.mark.parametrize("seed", ["-1", str(2**32)])
def test_a_seed_that_a_generator_would_refuse(seed: str) -> None:
    with pytest.raises(UserError, match=f"--seed got {seed}, allowed is 0 to {2**32 - 1}"):
        run("--seed", seed)


REQUIRED = ["--model", "m", "--out", "o"]


def run(*arguments: str) -> RunConfig:
    """Parse on top of the two required options."""
    return parse(RunConfig, [*REQUIRED, *arguments], "mmrlhf run")


def write(folder: Path, text: str) -> str:
    """A config file with this text."""
    path = folder / "config.yaml"
    path.write_text(text)
    return str(path)


def test_defaults() -> None:
    assert run() == RunConfig(model="m", out=Path("o"))


def test_every_kind_of_option() -> None:
    words = "--epochs 5 --learning_rate=3e-4 --seed 7 --mode rank --tags x y --weights -1 2.5 --crop 3 4 --resume --no-shuffle"
    assert run(*words.split()) == RunConfig(
        "m", Path("o"), 5, 3e-4, 7, "rank", ("x", "y"), [-1.0, 2.5], (3, 4), resume=True, shuffle=False
    )


def test_a_config_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        run().epochs = 4  # type: ignore[misc]


def test_the_last_of_two_values_wins() -> None:
    assert run("--epochs", "5", "--epochs", "6").epochs == 6
    assert run("--resume", "--no-resume").resume is False


def test_a_value_may_begin_with_dashes_after_an_equals_sign() -> None:
    assert run("--model=--strange=name").model == "--strange=name"


def test_yaml_gives_values_and_the_command_line_wins(tmp_path: Path) -> None:
    text = "model: y\nout: a/b\nlearning-rate: 3e-4\nseed: null\ntags: [x, 1]\nweights:\n  - 1\n  - 2.5\nresume: true\nepochs: 9"
    path = write(tmp_path, text)
    config = parse(RunConfig, ["--config", path, "--epochs=4", "--no-resume"], "mmrlhf run")
    assert config == RunConfig("y", Path("a/b"), 4, 3e-4, None, "pair", ("x", "1"), [1.0, 2.5])
    assert parse(RunConfig, [f"--config={path}"], "mmrlhf run").resume is True


def test_an_empty_yaml_file_gives_nothing(tmp_path: Path) -> None:
    assert run("--config", write(tmp_path, "# nothing yet\n")) == run()


def test_what_is_allowed_are_the_fields_alone(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Keywords:
        first: int
        _: KW_ONLY
        second: int = 2

    with pytest.raises(UserError, match=r"unknown option --third: allowed are --first, --second, --config$"):
        parse(Keywords, ["--third", "3"], "program")
    with pytest.raises(UserError, match=r"unknown key _: allowed are first, second$"):
        parse(Keywords, ["--config", str(write(tmp_path, "_: 1\n"))], "program")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--epoch", "3"],
            r"unknown option --epoch \(did you mean --epochs\?\): allowed are --model, --out, --epochs, ",
        ),
        (["--zzz"], "unknown option --zzz: allowed are --model"),
        (["-e", "3"], "unknown option -e: allowed are --model"),
        (["--no-epochs"], "unknown option --no-epochs"),
        (["--epochs", "3.5"], "--epochs got '3.5', allowed is a whole number"),
        (["--epochs", "3", "4"], "--epochs got '3 4', allowed is a whole number"),
        (["--epochs"], "--epochs got no value, allowed is a whole number"),
        (["--seed", "x"], "--seed got 'x', allowed is a whole number or None"),
        (["--learning-rate", "fast"], "--learning-rate got 'fast', allowed is a number"),
        (["--mode", "likert"], "--mode got 'likert', allowed is one of pair, rank"),
        (["--crop", "1"], "--crop got '1', allowed is a whole number then a whole number"),
        (["--weights", "1", "x"], "--weights got '1 x', allowed is several of: a number or None"),
        (["--resume", "perhaps"], "--resume got 'perhaps', allowed is true or false"),
        (["--config"], "--config got 0 values, allowed is one: write --config FILE.yaml"),
        (
            ["--config", "nowhere.yaml"],
            r"cannot read the config nowhere.yaml \(No such file or directory\): give the path",
        ),
    ],
)
def test_a_wrong_option(arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=message) as caught:
        run(*arguments)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_missing_options_are_all_named() -> None:
    with pytest.raises(UserError, match="missing --model, --out: 'mmrlhf run --help' says what to give"):
        parse(RunConfig, ["--epochs", "3"], "mmrlhf run")


def test_a_stray_word() -> None:
    with pytest.raises(UserError, match="unexpected 'm': 'mmrlhf run' takes only --option VALUE"):
        parse(RunConfig, ["m"], "mmrlhf run")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "epoch: 3",
            r"unknown key epoch \(did you mean epochs\?\): allowed are model, out, epochs, learning_rate, seed",
        ),
        ("epochs: many", "config.yaml: epochs got 'many', allowed is a whole number"),
        ("epochs: 2.5", "config.yaml: epochs got '2.5', allowed is a whole number"),
        ("epochs: yes", "config.yaml: epochs got true, allowed is a whole number"),
        ("model: off", "config.yaml: model got false, allowed is a text: put a text in quotes"),
        ("resume: 3", "config.yaml: resume got '3', allowed is true or false"),
        ("tags: {a: 1}", "config.yaml: tags got .*: write no keys or lists inside"),
        ("- a\n- b", "config.yaml holds a list, not keys and values: write one 'key: value' a line"),
        ("a: [", "config.yaml is not YAML .*: write one 'key: value' a line"),
    ],
)
def test_a_wrong_yaml_file(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        run("--config", write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_yaml_runs_no_code(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not YAML"):
        run("--config", write(tmp_path, "model: !!python/object/apply:os.getcwd []"))


def test_help_prints_the_options_and_leaves(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        parse(RunConfig, ["--help"], "mmrlhf run")
    printed = capsys.readouterr().out
    assert leaving.value.code == 0
    for text in ("usage: mmrlhf run", "--learning-rate", "which model", "--config FILE.yaml"):
        assert text in printed


@given(st.integers(), st.floats(allow_nan=False), st.text(st.characters(codec="ascii"), min_size=1))
def test_any_value_comes_back(epochs: int, rate: float, model: str) -> None:
    config = run(f"--epochs={epochs}", f"--learning-rate={rate!r}", f"--model={model}")
    assert (config.epochs, config.learning_rate, config.model) == (epochs, rate, model)


def test_describe_names_a_type_in_words() -> None:
    assert describe(Path) == "a path"
    assert describe(dict) == "dict"


CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*/*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_shipped_config_is_headed_and_has_no_wrong_key(path: Path) -> None:
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for line, start in zip(header, ("# command: ", "# hardware: ", "# expected: "), strict=False):
        assert line.startswith(start) and len(line) > len(start) + 1
    program, _, options = header[0].removeprefix("# command:").strip().partition(" --")
    assert f"--config configs/{path.parent.name}/{path.name}" in f"--{options}"
    module, config_name, _, _ = COMMANDS[program.removeprefix("mmrlhf ")]
    config_type = getattr(importlib.import_module(module), config_name)
    values = read_yaml(path, config_type)
    named = {word[2:].replace("-", "_") for word in f"--{options}".split() if word.startswith("--")}
    assert named - {"config"} <= {field.name for field in fields(config_type)}
    assert set(required_fields(config_type)) <= values.keys() | named  # the command as written lacks nothing


def test_every_shipped_config_was_seen() -> None:
    assert {f"{path.parent.name}/{path.stem}" for path in CONFIGS} >= {"ddpo/tiny-sd", "ddpo/sd15", "reward/tiny-clip"}
