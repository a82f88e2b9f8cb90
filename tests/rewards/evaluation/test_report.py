"""The page of an evaluation, as a user gets it."""

import copy
import dataclasses
import json
import re
from pathlib import Path

import pytest

from mmrlhf.cli import run
from mmrlhf.data import read_pairs, write_jsonl, write_pairs
from mmrlhf.errors import UserError
from mmrlhf.rewards.clip import CLIPReward
from mmrlhf.rewards.evaluate import EvalConfig, evaluate
from mmrlhf.rewards.evaluation.report import short
from mmrlhf.types import Reward


@pytest.fixture
def judged_file(pairs_file: Path, tmp_path: Path) -> Path:
    """Each pair judged by two annotators, one of whom errs on every fifth."""
    pairs = [dataclasses.replace(pair, annotator="Ann & Co <b>") for pair in read_pairs(pairs_file)]
    second = [
        dataclasses.replace(pair, annotator="bob", label_0=1 - pair.label_0 if i % 5 == 0 else pair.label_0)
        for i, pair in enumerate(pairs)
    ]
    write_pairs([*pairs, *second], tmp_path / "judged.jsonl")
    return tmp_path / "judged.jsonl"


def test_everything_on_one_page(headed: CLIPReward, judged_file: Path, pairs_file: Path, tmp_path: Path) -> None:
    headed.save(tmp_path / "reward")
    rows = [{"kl": i * i, "reward_mean": i, "gold": i - 0.2 * i * i} for i in range(5)]
    write_jsonl(rows, tmp_path / "ddpo" / "metrics.jsonl")
    out = tmp_path / "out" / "eval.json"
    config = EvalConfig(
        str(tmp_path / "reward"), judged_file, out, calibration=pairs_file, runs=tmp_path / "ddpo", gold_key="gold",
        perturbed_pairs=6, tie_threshold=0.0,
    )  # fmt: skip
    figures = evaluate(config)
    assert json.loads(out.read_text()) == figures
    assert figures["calibration"]["fitted"]["n"] == 60
    assert figures["tie_threshold"] == 0 and figures["worst"]
    assert figures["nll"] == figures["calibration"]["after"]["nll"]
    assert figures["ece"] == figures["calibration"]["after"]["ece"]
    assert [part["by"] for part in figures["breakdown"]] == ["annotator", "the annotators' votes"]
    assert figures["ceilings"][0]["pairs"] == 60 and 0.7 < figures["ceilings"][0]["value"] < 0.9
    assert figures["ensemble"]["members"] == 3
    page = (tmp_path / "out" / "eval.html").read_text()
    titles = ("Where it agrees", "own ceiling", "probabilities come true", "abstaining gains", "moves its scores",
              "place decide", "Over-optimisation", "surest and wrong")  # fmt: skip
    assert all(title in page for title in titles)
    assert "Ann &amp; Co &lt;b&gt;" in page and "Ann & Co <b>" not in page
    assert not re.search(r'(src|href)="(?!data:)', page)  # nothing outside the page
    assert page.count("<img") == 5 + 2 * len(figures["worst"])


def test_the_poorest_data_make_a_page_too(pairs_file: Path, tmp_path: Path) -> None:
    pair = dataclasses.replace(read_pairs(pairs_file)[0], label_0=0.5)
    write_pairs([pair], tmp_path / "one.jsonl")
    figures = evaluate(EvalConfig("warmth", tmp_path / "one.jsonl", tmp_path / "a.json", report=tmp_path / "b.html"))
    assert figures["breakdown"] == figures["ceilings"] == figures["worst"] == []
    assert figures["sensitivity"]["prompt"] is None and figures["ensemble"] is None
    page = (tmp_path / "b.html").read_text()
    assert "cannot tell how far people agree" in page and "No answer is strict." in page
    assert not (tmp_path / "a.html").exists()
    evaluate(EvalConfig("warmth", tmp_path / "one.jsonl", tmp_path / "a.json", perturbed_pairs=0))
    assert "moves its scores" not in (tmp_path / "a.html").read_text()


def test_the_tie_threshold_comes_from_the_other_pairs(judged_file: Path, pairs_file: Path, tmp_path: Path) -> None:
    config = EvalConfig("warmth", judged_file, tmp_path / "a.json", calibration=pairs_file, perturbed_pairs=0)
    figures = evaluate(config)
    assert figures["tie_threshold"] == figures["calibration"]["fitted"]["tie_threshold"] > 0
    assert figures["calibration"]["fitted"]["shared_prompts"] == 20


def test_one_criterion(pairs_file: Path, headed: CLIPReward, tmp_path: Path) -> None:
    pairs = read_pairs(pairs_file)
    mixed = [dataclasses.replace(pair, criterion="style") if i < 6 else pair for i, pair in enumerate(pairs)]
    write_pairs(mixed, tmp_path / "mixed.jsonl")
    assert headed.head is not None
    CLIPReward(headed.backbone, {"style": headed.head, "": copy.deepcopy(headed.head)}).save(tmp_path / "reward")
    reward = str(tmp_path / "reward")
    config = EvalConfig(reward, tmp_path / "mixed.jsonl", tmp_path / "a.json", criterion="style", perturbed_pairs=0)
    assert evaluate(config)["n"] == 6
    with pytest.raises(
        UserError, match="--criterion got 'safety', allowed is what the pairs were judged by: '', 'style'"
    ):
        evaluate(dataclasses.replace(config, criterion="safety"))
    with pytest.raises(UserError, match="--criterion got 'style', but this reward has no heads"):
        evaluate(dataclasses.replace(config, reward="warmth"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "page.html"], "--out page.html is the name of the page"),
        (["--out", "a.json", "--report", "."], "--report . is a folder"),
        (["--out", "a.json", "--perturbed-pairs", "-1"], "--perturbed-pairs got -1"),
        (["--out", "a.json", "--tie-threshold", "1.5"], "--tie-threshold got 1.5"),
        (["--out", "a.json", "--runs", "."], "no metrics.jsonl in ."),
        (["--out", "a.json", "--calibration", "none.jsonl"], "cannot read none.jsonl"),
    ],
)
def test_bad_options_are_refused_before_the_work(
    pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    def never(*_: object) -> Reward:
        raise AssertionError("the reward was loaded")

    monkeypatch.setattr("mmrlhf.rewards.evaluate.load_on", never)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        run("reward eval", ["--reward", "warmth", "--data", str(pairs_file), *arguments])
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_the_figures_are_written(
    pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mmrlhf.rewards.evaluate.importlib.util.find_spec", lambda name: None)
    config = EvalConfig("warmth", pairs_file, tmp_path / "a.json", perturbed_pairs=0)
    evaluate(config)
    assert "no page without matplotlib" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(UserError, match=r"b\.html needs matplotlib: pip install 'mmrlhf\[report\]'"):
        evaluate(dataclasses.replace(config, report=tmp_path / "b.html"))


def test_short_names() -> None:
    assert short("a$b") == r"a\$b" and short("x" * 50) == "x" * 29 + "…"
