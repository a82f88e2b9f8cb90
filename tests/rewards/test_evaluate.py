"""Agreement, its interval, calibration and scoring, from the functions and as a user runs them."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmrlhf.calibration import ece
from mmrlhf.cli import run
from mmrlhf.data import Item, Pair, read_items, read_pairs, write_jsonl, write_pairs
from mmrlhf.errors import UserError
from mmrlhf.rewards.calibrate import CalibrateConfig, calibrate, fit_temperature, fit_tie_threshold
from mmrlhf.rewards.clip import CLIPReward
from mmrlhf.rewards.evaluate import EvalConfig, evaluate, evaluate_reward
from mmrlhf.rewards.evaluation.measures import nll, tie_credits, unit_values
from mmrlhf.rewards.evaluation.scored_pairs import pair_margins
from mmrlhf.rewards.rules.simple import Brightness
from mmrlhf.rewards.score import ScoreConfig, score, score_items


class Scripted:
    """A reward that reads the score off the picture's red level: 0 … 255 stands for −1 … 1.55, level 7 abstains."""

    differentiable = False

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        self.seen += len(images)
        levels = (images[:, 0, 0, 0] * 255).round()
        return torch.where(levels == 7, math.nan, (levels - 100) / 100)


def picture(folder: Path, level: int, size: int = 4) -> Path:
    path = folder / f"{level}-{size}.png"
    Image.new("RGB", (size, size), (level, 0, 0)).save(path)
    return path


@pytest.fixture
def pairs(tmp_path: Path) -> list[Pair]:
    """Margins 1, 1, −1, 0.2 and an abstention; labels win, lose, tie, tie, win."""
    levels = [(200, 100, 1.0), (150, 50, 0.0), (50, 150, 0.5), (120, 100, 0.5), (7, 100, 1.0)]
    return [
        Pair(f"prompt {i // 2}", picture(tmp_path, first), picture(tmp_path, second, size=6), label)
        for i, (first, second, label) in enumerate(levels)
    ]


def test_by_hand(pairs: list[Pair]) -> None:
    figures = evaluate_reward(Scripted(), pairs)
    assert figures["agreement"] == pytest.approx((1 + 0 + 0.5 + 0.5) / 4)
    assert (figures["n"], figures["abstained"], figures["prompts"], figures["ties"]) == (4, 1, 2, 2)
    p = 1 / (1 + np.exp([-1.0, -1.0, 1.0, -0.2]))
    assert figures["ece"] == pytest.approx(ece(p, [1.0, 0.0, 0.5, 0.5]))
    y = np.array([1, 0, 0.5, 0.5])
    assert figures["nll"] == pytest.approx(-np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)))
    low, high = figures["agreement_ci95"]
    assert 0 <= low <= figures["agreement"] <= high <= 1
    # |2p − 1| is 0.0997 for the last pair and 0.462 for the others
    assert evaluate_reward(Scripted(), pairs, tie_threshold=0.1)["agreement"] == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    assert evaluate_reward(Scripted(), pairs, tie_threshold=0.5)["agreement"] == pytest.approx((0.5 + 0.5 + 1 + 1) / 4)
    assert "tie_threshold" in figures["tie_rule"]


def test_pairs_that_nobody_judged_are_left_out(pairs: list[Pair]) -> None:
    extra = [dataclasses.replace(pairs[1], has_label=False)] * 3
    figures = evaluate_reward(Scripted(), [*pairs, *extra])
    assert figures["unlabelled"] == 3
    assert figures["agreement"] == evaluate_reward(Scripted(), pairs)["agreement"]
    with pytest.raises(UserError, match="none of 3 pairs has a label"):
        evaluate_reward(Scripted(), extra)
    with pytest.raises(UserError, match="abstains on all 1 pairs"):
        evaluate_reward(Scripted(), pairs[-1:])
    with pytest.raises(UserError, match="--tie-threshold got 2.0, allowed is from 0 to 1"):
        evaluate_reward(Scripted(), pairs, tie_threshold=2.0)


@given(st.lists(st.tuples(st.floats(0, 1), st.sampled_from("abcde")), min_size=1, max_size=30))
def test_values_of_prompts_have_the_mean_of_the_pairs(rows: list[tuple[float, str]]) -> None:
    values, units = np.array([value for value, _ in rows]), [unit for _, unit in rows]
    assert unit_values(values, units).mean() == pytest.approx(values.mean(), abs=1e-9)
    assert len(unit_values(values, units)) == len(set(units))


def test_the_interval_is_over_prompts_not_pairs() -> None:
    """Ten prompts of a hundred equal pairs hold the information of ten pairs; checked against a cluster bootstrap."""
    from mmrlhf.statistics import bootstrap_ci

    generator = np.random.default_rng(0)
    sizes, means = generator.integers(20, 180, 10), generator.random(10)
    values = np.repeat(means, sizes)
    units = [f"p{i}" for i in np.repeat(np.arange(10), sizes)]
    low, high = bootstrap_ci(unit_values(values, units))
    drawn = generator.integers(10, size=(4000, 10))
    plain = (means * sizes)[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    expected = np.quantile(plain, [0.025, 0.975])
    assert high - low == pytest.approx(expected[1] - expected[0], rel=0.2)
    plain_low, plain_high = bootstrap_ci(values)
    assert high - low > 5 * (plain_high - plain_low)


def test_a_sure_scorer_is_cooled_and_a_timid_one_heated() -> None:
    generator = np.random.default_rng(0)
    truth = generator.normal(size=4000) * 2
    labels = (generator.random(4000) < 1 / (1 + np.exp(-truth))).astype(float)
    for factor in (0.02, 1.0, 50.0):
        fitted = fit_temperature(truth * factor, labels)
        assert fitted == pytest.approx(factor, rel=0.12)
        grid = np.geomspace(fitted / 3, fitted * 3, 2001)
        best = min(grid, key=lambda t: nll(truth * factor / t, labels))
        assert fitted == pytest.approx(best, rel=2e-3)
    assert fit_temperature(torch.tensor(truth * 50).float(), torch.tensor(labels)) == pytest.approx(fitted, rel=1e-3)


def test_temperatures_at_the_ends() -> None:
    margins = np.array([1.0, -2.0, 3.0])
    right = (margins > 0).astype(float)
    assert fit_temperature(margins, right) < 0.1  # all right: as sharp as may be
    assert fit_temperature(margins, 1 - right) > 100  # all wrong: as flat as may be, never negative
    assert fit_temperature(np.zeros(3), right) == 1.0
    assert fit_temperature(margins, np.full(3, 0.5)) > 100
    with pytest.raises(UserError, match="got 2 margins and 1 labels"):
        fit_temperature(np.ones(2), np.ones(1))
    with pytest.raises(UserError, match="allowed are as many finite margins"):
        fit_temperature(np.array([math.nan]), np.ones(1))


def test_tie_threshold_is_the_best_of_all_by_brute_force() -> None:
    generator = np.random.default_rng(0)
    p, labels = generator.random(300), generator.choice([0, 0.5, 1], 300)
    labels[np.abs(2 * p - 1) < 0.33] = 0.5
    credits = {t / 10: tie_credits(p, labels, t / 10).mean() for t in range(11)}
    assert fit_tie_threshold(p, labels) == min(t for t, c in credits.items() if c == max(credits.values())) > 0
    assert fit_tie_threshold(np.array([0.9, 0.4]), np.array([1.0, 0.0])) == 0


def test_scores_in_order_each_different_item_once(tmp_path: Path) -> None:
    levels = [30, 90, 30, 200, 7, 90]
    items = [Item("p", picture(tmp_path, level, size=4 + level % 3)) for level in levels]
    for batch_size in (1, 2, 50):
        reward = Scripted()
        found = score_items(reward, items, batch_size=batch_size)
        np.testing.assert_allclose(found, [math.nan if n == 7 else (n - 100) / 100 for n in levels], atol=1e-6)
        assert reward.seen == 4
    with pytest.raises(UserError, match="--batch-size got 0"):
        score_items(Scripted(), items, batch_size=0)


def test_infinite_scores_are_refused(tmp_path: Path) -> None:
    class Endless(Brightness):
        def __call__(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
            return torch.full((len(images),), math.inf)

    with pytest.raises(UserError, match=r"30-4\.png an infinite score"):
        score_items(Endless(), [Item("p", picture(tmp_path, 30))])


def test_margins_are_first_minus_second(pairs: list[Pair]) -> None:
    np.testing.assert_allclose(pair_margins(Scripted(), pairs), [1, 1, -1, 0.2, math.nan], atol=1e-6)


def test_score_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": f"p{level}", "image": picture(tmp_path, level).name} for level in (200, 10, 100)]
    write_jsonl(rows, tmp_path / "items.jsonl")
    out = tmp_path / "new" / "scores.jsonl"
    run("reward score", ["--reward", "redness", "--items", str(tmp_path / "items.jsonl"), "--out", str(out)])
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["prompt"] for row in written] == ["p200", "p10", "p100"]
    assert [row["score"] for row in written] == pytest.approx([200 / 255, 10 / 255, 100 / 255])
    assert [item.image for item in read_items(out)] == [item.image for item in read_items(tmp_path / "items.jsonl")]
    assert str(out) in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (
            "reward score",
            ["--reward", "nice", "--items", "items.jsonl", "--out", "o"],
            "reward 'nice' is neither a name",
        ),
        ("reward score", ["--reward", "redness", "--items", "none.jsonl", "--out", "o"], "cannot read"),
        ("reward score", ["--reward", "redness", "--items", "items.jsonl", "--out", "."], "is a folder"),
        ("reward eval", ["--reward", "redness", "--data", "items.jsonl", "--out", "o"], "row 1 lacks image_0"),
        ("reward eval", ["--reward", "redness", "--data", "items.jsonl"], "missing --out"),
        ("reward calibrate", ["--reward", "none", "--data", "pairs.jsonl"], "no reward in none"),
        ("reward train", ["--data", "items.jsonl", "--out", "o"], "row 1 lacks image_0"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    command: str, arguments: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    picture(tmp_path, 10), picture(tmp_path, 20)
    write_jsonl([{"prompt": "p", "image": "10-4.png"}], tmp_path / "items.jsonl")
    write_pairs([Pair("p", tmp_path / "10-4.png", tmp_path / "20-4.png", 1.0)], tmp_path / "pairs.jsonl")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit) as stop:
        run(command, arguments)
    errors = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and message in errors[-1]
    assert sorted(tmp_path.iterdir()) == before


def test_a_kill_while_scoring_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_jsonl([{"prompt": "p", "image": picture(tmp_path, 9).name}], tmp_path / "items.jsonl")
    (tmp_path / "scores.jsonl").write_text("old\n")
    monkeypatch.setattr("mmrlhf.data.os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        score(ScoreConfig("redness", tmp_path / "items.jsonl", tmp_path / "scores.jsonl"))
    assert (tmp_path / "scores.jsonl").read_text() == "old\n"


def test_eval_command_writes_the_figures(pairs_file: Path, tmp_path: Path) -> None:
    figures = evaluate(EvalConfig("warmth", pairs_file, tmp_path / "eval.json"))
    written = json.loads((tmp_path / "eval.json").read_text())
    assert written == figures and {"agreement", "agreement_ci95", "ece", "n", "tie_rule"} < set(written)
    assert written["agreement"] > 0.9  # the pairs are by someone who likes red better than blue
    assert evaluate(EvalConfig("jpeg-size", pairs_file, tmp_path / "eval.json"))["agreement"] < 0.75


def test_calibration_lowers_the_nll_and_is_kept(headed: CLIPReward, pairs_file: Path, tmp_path: Path) -> None:
    headed.with_temperature(0.05).save(tmp_path)
    weights = (tmp_path / "model.safetensors").stat().st_mtime_ns
    pairs = read_pairs(pairs_file)
    before = evaluate_reward(CLIPReward.load(tmp_path), pairs, tie_threshold=0.0)
    fitted = calibrate(CalibrateConfig(tmp_path, pairs_file))
    loaded = CLIPReward.load(tmp_path)
    assert (loaded.temperature, loaded.tie_threshold) == (fitted.temperature, fitted.tie_threshold)
    after = evaluate_reward(loaded, pairs, tie_threshold=0.0)
    assert after["nll"] < before["nll"] and after["ece"] < before["ece"]
    assert after["agreement"] == pytest.approx(before["agreement"])  # the order stays
    assert evaluate_reward(loaded, pairs)["tie_threshold"] == fitted.tie_threshold
    assert (tmp_path / "model.safetensors").stat().st_mtime_ns == weights
    again = calibrate(CalibrateConfig(tmp_path, pairs_file))
    assert again.temperature == pytest.approx(fitted.temperature, rel=1e-3)
