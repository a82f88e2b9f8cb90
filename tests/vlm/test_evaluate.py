import json
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from mmrlhf.config import parse
from mmrlhf.errors import UserError
from tests.vlm.benchmarks import test_amber as small_amber
from tests.vlm.benchmarks import test_chair as small_chair
from tests.vlm.benchmarks import test_mmhal as small_mmhal
from tests.vlm.benchmarks import test_pope as small_pope
from tests.vlm.benchmarks.files import json_list, responses
from vlm.evaluate import BENCHMARKS, EvalConfig, evaluate


def run(answers: Path, benchmark: str, data: Path, *options: str) -> dict:
    """What the real command line says, the file it writes being the same."""
    out = answers.with_name("figures.json")
    arguments = ["--benchmark", benchmark, "--answers", str(answers), "--data", str(data), "--out", str(out), *options]
    found = evaluate(parse(EvalConfig, arguments, "mmrlhf vlm eval"))
    assert json.loads(out.read_text()) == found
    return found


def test_every_benchmark_can_be_named() -> None:
    assert {*get_args(get_type_hints(EvalConfig)["benchmark"])} == {*BENCHMARKS}


def test_amber(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = json_list(tmp_path / "answers.json", responses(small_amber.RIGHT))
    found = run(answers, "amber", small_amber.folder(tmp_path))
    assert [found[name] for name in ("chair", "cover", "hal", "cog", "accuracy", "score")] == [0, 100, 0, 0, 100, 100]
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"amber of 6 answers: {tmp_path / 'figures.json'}"
    assert any(line.split() == ["chair", "0.0", "(95%", "0.0", "…", "0.0)"] for line in lines)
    assert any(line.split() == ["existence", "1", "100.0", "100.0", "100.0", "100.0"] for line in lines)
    assert [line for line in lines if line.startswith("note: ")] == [f"note: {note}" for note in found["notes"]]


def test_partial(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = json_list(tmp_path / "answers.json", responses({1: "Nothing."}))
    data = small_amber.folder(tmp_path)
    with pytest.raises(UserError, match="1 of 2 answers are missing"):
        run(answers, "amber", data)
    assert not (tmp_path / "figures.json").exists()
    assert run(answers, "amber", data, "--partial")["chair"] is None
    output = capsys.readouterr().out
    assert "1 of 2 answers are missing: figures are of those there" in output and " –" in output
    assert output.endswith(f"amber of 1 answers, 1 missing: {tmp_path / 'figures.json'}\n")


def test_the_seed_moves_the_interval_only(tmp_path: Path) -> None:
    answers = json_list(
        tmp_path / "answers.json", responses({n: "dog, cat, cat" if n % 3 else "dog" for n in range(40)})
    )
    rows = [{"id": n, "objects": ["dog"] if n % 2 else ["cat"]} for n in range(40)]
    first, again, other = (
        run(answers, "chair", json_list(tmp_path / "truth.json", rows), "--seed", seed) for seed in ("0", "0", "1")
    )
    assert first == again and first["chair_i"] == other["chair_i"] and first["chair_i_ci95"] != other["chair_i_ci95"]


def test_the_others(tmp_path: Path) -> None:
    (tmp_path / "objects").mkdir()
    said = json_list(tmp_path / "said.json", responses(small_chair.SAID))
    assert run(said, "chair", small_chair.folder(tmp_path / "objects"))["chair_i"] == 20
    assert run(said, "object-halbench", tmp_path / "objects")["response_rate"] == 50
    questions = small_pope.command(tmp_path)
    yes = json_list(tmp_path / "yes.json", [{"answer": "Yes"}] * 30)
    assert run(yes, "pope", questions)["yes_ratio"] == 100
    (tmp_path / "mmhal").mkdir()
    ratings = json_list(tmp_path / "ratings.json", [6] * 96)
    data = small_mmhal.questions(tmp_path / "mmhal")
    assert run(small_mmhal.answers(tmp_path), "mmhal", data, "--ratings", str(ratings))["average_score"] == 6


def test_options_that_do_not_fit(tmp_path: Path) -> None:
    answers = json_list(tmp_path / "answers.json", responses({1: "dog"}))
    with pytest.raises(UserError, match="--judge and --ratings are for mmhal, --benchmark got amber: leave them out"):
        run(answers, "amber", tmp_path, "--judge", "a:b")
    with pytest.raises(UserError, match="--benchmark got 'other', allowed is one of amber, pope"):
        run(answers, "other", tmp_path)
    with pytest.raises(UserError, match="--out .* is a folder: give the name of a file to write"):
        evaluate(EvalConfig("amber", answers, tmp_path, tmp_path))
