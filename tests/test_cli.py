"""The command line: what each mistake prints, on which stream, and the exit status."""

import contextlib
import importlib
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from pathlib import Path

import pytest

from mmrlhf import __version__, cli
from mmrlhf.cli import COMMANDS
from mmrlhf.errors import UserError


@dataclass(frozen=True)
class EchoConfig:
    """Print a text."""

    text: str
    """what to print"""
    times: int = 1


@pytest.fixture
def mmrlhf(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Call the entry point with words; gives (exit status, stdout, stderr)."""

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mmrlhf", *words])
        status = 0
        try:
            cli.main()
        except SystemExit as leaving:
            status = int(leaving.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[EchoConfig], None]], None]:
    """Put a command `echo` into the table that calls the function given."""

    def install(function: Callable[[EchoConfig], None]) -> None:
        module = types.ModuleType("echo_module")
        module.__dict__.update(EchoConfig=EchoConfig, echo=function)
        monkeypatch.setitem(sys.modules, "echo_module", module)
        monkeypatch.setitem(COMMANDS, "echo", ("echo_module", "EchoConfig", "echo", "print a text"))

    return install


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_lists_every_command(words: list[str], mmrlhf) -> None:
    status, out, err = mmrlhf(*words)
    assert (status, err) == (0, "")
    for command, entry in COMMANDS.items():
        assert any(line.split(entry[3])[0].strip() == command for line in out.splitlines() if entry[3] in line), command


@pytest.mark.parametrize("words", [["reward"], ["reward", "--help"]])
def test_a_group_lists_its_commands_only(words: list[str], mmrlhf) -> None:
    status, out, _ = mmrlhf(*words)
    assert status == 0
    assert "reward train" in out and "reward score" in out and "quickstart" not in out


def test_version(mmrlhf) -> None:
    assert mmrlhf("--version") == (0, f"mmrlhf {__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["quikstart"], "unknown command 'quikstart' (did you mean quickstart?): allowed are quickstart, rate, select"),
        (["reward", "trian"], "unknown command 'reward trian' (did you mean reward train?)"),
        (["rewrd"], "unknown command 'rewrd' (did you mean reward?)"),
        (["rewrd", "train"], "unknown command 'rewrd train' (did you mean reward train?)"),
        (["reward", "--seed", "3"], "'mmrlhf reward' needs a command before its options: allowed are reward train,"),
        (["nonsense", "here"], "unknown command 'nonsense here': allowed are"),
        (["--verison"], "unknown command '--verison'"),
    ],
)
def test_an_unknown_command_is_one_line(words: list[str], message: str, mmrlhf) -> None:
    status, out, err = mmrlhf(*words)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"mmrlhf: error: {message}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--txt", "a"], "unknown option --txt (did you mean --text?): allowed are --text, --times, --config"),
        ([], "missing --text: 'mmrlhf echo --help' says what to give"),
        (["--text", "a", "--times", "many"], "--times got 'many', allowed is a whole number"),
        (["--text", "a", "--times"], "--times got no value, allowed is a whole number"),
        (["a"], "unexpected 'a': 'mmrlhf echo' takes only --option VALUE"),
    ],
)
def test_a_wrong_option_is_one_line_and_nothing_runs(words: list[str], message: str, mmrlhf, echo) -> None:
    echo(lambda config: pytest.fail("the command ran"))
    status, out, err = mmrlhf("echo", *words)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"mmrlhf: error: {message}")


def test_a_command_gets_its_config(mmrlhf, echo) -> None:
    echo(lambda config: print(config.text * config.times))
    assert mmrlhf("echo", "--text", "ab", "--times=2") == (0, "abab\n", "")


def test_help_of_a_command_shows_its_options(mmrlhf, echo) -> None:
    echo(lambda config: pytest.fail("the command ran"))
    status, out, _ = mmrlhf("echo", "--help")
    assert status == 0
    for text in ("mmrlhf echo", "Print a text.", "--text", "what to print", "--times", "--config FILE.yaml"):
        assert text in out


def raising(error: BaseException) -> Callable[[EchoConfig], None]:
    """A command that fails in the way given."""

    def command(config: EchoConfig) -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UserError("no folder x:\n give one"), 2, "mmrlhf: error: no folder x: give one\n"),
        (PermissionError(13, "Permission denied", "/out"), 2, "mmrlhf: error: cannot use /out (Permission denied): "),
        (
            ModuleNotFoundError("No module", name="gradio.blocks"),
            2,
            "mmrlhf: error: 'mmrlhf echo' needs the package gradio",
        ),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_what_the_user_can_mend_is_one_line(error: BaseException, status: int, message: str, mmrlhf, echo) -> None:
    echo(raising(error))
    got, out, err = mmrlhf("echo", "--text", "a")
    assert (got, out) == (status, "")
    assert err.startswith(message) and err.count("\n") == (status == 2)


@pytest.mark.parametrize(
    "error", [ValueError("a bug"), OSError("a bug"), ModuleNotFoundError("a bug", name="mmrlhf.nowhere")]
)
def test_a_bug_keeps_its_traceback(error: Exception, mmrlhf, echo) -> None:
    echo(raising(error))
    with pytest.raises(type(error), match="a bug"):
        mmrlhf("echo", "--text", "a")


@pytest.mark.parametrize(("processes", "status"), [("2", 2), ("1", 0), ("", 0)])
def test_several_processes_of_a_command_for_one_are_refused_before_it_runs(
    processes: str, status: int, mmrlhf, echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    echo(lambda config: print("it ran"))
    monkeypatch.setenv("WORLD_SIZE", processes)
    refusal = (
        "mmrlhf: error: 'mmrlhf echo' got 2 processes, allowed is 1: start it without accelerate launch or torchrun "
        "(or unset WORLD_SIZE)\n"
    )
    assert mmrlhf("echo", "--text", "a") == ((2, "", refusal) if status else (0, "it ran\n", ""))
    assert mmrlhf("echo", "--help")[0] == 0


def test_the_trainers_alone_share_their_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    allowed = set()
    for command in COMMANDS:
        with contextlib.suppress(UserError):
            cli.check_processes(command)
            allowed.add(command)
    trainers = {name for name, entry in COMMANDS.items() if entry[2] == "train"}
    assert allowed == trainers - {"vlm reward", "tiny train", "tiny train-llava"}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_table_names_what_exists(command: str, mmrlhf) -> None:
    module_name, config_name, function_name, _ = COMMANDS[command]
    module = importlib.import_module(module_name)
    assert is_dataclass(getattr(module, config_name))
    assert callable(getattr(module, function_name))
    status, out, _ = mmrlhf(*command.split(), "--help")
    assert status == 0 and f"usage: mmrlhf {command}" in out


def test_extras_are_those_of_the_package() -> None:
    declared = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    for extra in cli.EXTRAS.values():
        assert f"\n{extra} = [" in declared
