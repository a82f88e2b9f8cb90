"""Reading runs: what is in metrics.jsonl, torn and broken lines, resumed runs, signs of life, and what may not be read."""

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from apps.dashboard_files import find, printable
from apps.dashboard_reports import curves_of, drift_of
from apps.dashboard_runs import Run, duration, read_board, status_of
from mmrlhf.data import write_jsonl
from mmrlhf.images import save_image
from mmrlhf.rewards.evaluation.drift_report import DriftConfig, drift
from mmrlhf.runs import write_advice, write_metrics


def make_run(folder: Path, lines: list[dict[str, Any]], tail: str = "", **config: Any) -> Path:
    """A run's folder, as the trainers write it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_metrics(folder, lines)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(tail)
    return folder


def only(root: Path) -> Run:
    (run,) = read_board([root]).runs
    return run


def values(run: Run, name: str) -> list[tuple[float, float]]:
    return [(point.step, point.value) for series in run.named(name) for point in series.points]


def test_every_folder_with_metrics_is_a_run_named_by_its_path(tmp_path: Path) -> None:
    for name in ("b", "a/deep", "a", ".cache/hidden"):
        make_run(tmp_path / name, [{"epoch": 0, "loss": 1.0}])
    assert [run.name for run in read_board([tmp_path]).runs] == ["a", "a/deep", "b"]
    assert [run.name for run in read_board([tmp_path / "b"]).runs] == ["b"]
    several = [run.name for run in read_board([tmp_path / "a", tmp_path / "b", tmp_path / "a"]).runs]
    assert several == ["a", "a/deep", "b"]


def test_runs_of_one_name_get_different_ones(tmp_path: Path) -> None:
    for name in ("x/run", "y/run"):
        make_run(tmp_path / name, [{"epoch": 0, "loss": 1.0}])
    assert [run.name for run in read_board([tmp_path / "x/run", tmp_path / "y/run"]).runs] == ["run", "run (2)"]


def test_numbers_become_series_and_everything_else_does_not(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {
            "epoch": 0,
            "loss": 2,
            "kl": None,
            "ok": True,
            "who": "me",
            "nested": {"a": 1.5},
            "chair": 3.0,
            "chair_ci95": [2, 4],
        },
        {"epoch": 1, "loss": 1.5, "kl": 0.25, "list": [1, 2]},
    ]
    run = only(make_run(tmp_path / "r", lines))
    assert run.metrics() == ["chair", "kl", "loss", "nested/a"]
    assert values(run, "loss") == [(0.0, 2.0), (1.0, 1.5)] and values(run, "kl") == [(1.0, 0.25)]
    (point,) = run.named("chair")[0].points
    assert (point.low, point.high) == (2.0, 4.0)


@pytest.mark.parametrize("tail", ['{"epoch": 2, "lo', '{"epoch": 2, "loss": 0.5, "name": "\xc3', "{", "   "])
def test_a_half_written_last_line_is_ignored(tmp_path: Path, tail: str) -> None:
    run = only(make_run(tmp_path / "r", [{"epoch": 0, "loss": 2.0}, {"epoch": 1, "loss": 1.0}], tail))
    assert values(run, "loss") == [(0.0, 2.0), (1.0, 1.0)] and run.faults == ()


@given(cut=st.integers(min_value=0, max_value=10**6))
def test_a_file_cut_off_anywhere_gives_the_lines_before(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    folder = make_run(tmp_path_factory.mktemp("cut") / "r", [{"epoch": i, "loss": float(i)} for i in range(5)])
    text = (folder / "metrics.jsonl").read_bytes()
    (folder / "metrics.jsonl").write_bytes(text[: cut % (len(text) + 1)])
    run = only(folder)
    whole = text[: cut % (len(text) + 1)].count(b"}")
    assert values(run, "loss") == [(float(i), float(i)) for i in range(whole)] and run.faults == ()


@pytest.mark.parametrize("broken", ["{broken", "[1, 2]", "7", '"text"', "[" * 100_000, "\x00"])
def test_a_broken_line_is_named_and_left_out(tmp_path: Path, broken: str) -> None:
    tail = broken + '\n{"epoch": 1, "loss": 1.0}\n'
    run = only(make_run(tmp_path / "r", [{"epoch": 0, "loss": 2.0}], tail))
    assert values(run, "loss") == [(0.0, 2.0), (1.0, 1.0)]
    assert run.faults == ("line 2 of metrics.jsonl is no JSON object: left out",)


def test_numbers_no_float_can_hold_are_a_problem_and_no_crash(tmp_path: Path) -> None:
    tail = (
        '{"epoch": 1, "loss": NaN, "kl": 1' + "0" * 400 + '}\n{"epoch": 2, "loss": 1.0}\n{"epoch": 1e999, "loss": 3}\n'
    )
    run = only(make_run(tmp_path / "r", [{"epoch": 0, "loss": 2.0}], tail))
    assert math.isnan(run.named("loss")[0].points[1].value)
    told = {problem.name: (problem.first, problem.last, problem.lasts) for problem in run.problems}
    assert told["loss is not a finite number"] == (1.0, 1.0, False) and "kl is not a finite number" in told


def test_a_resumed_run_replaces_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    """As a trainer that only appends leaves it: epochs 2 and 3 were made again."""
    lines = [{"epoch": i, "loss": float(i)} for i in range(4)] + [{"epoch": i, "loss": 10.0 + i} for i in (2, 3, 4)]
    run = only(make_run(tmp_path / "r", lines, epochs=5))
    assert values(run, "loss") == [(0.0, 0.0), (1.0, 1.0), (2.0, 12.0), (3.0, 13.0), (4.0, 14.0)]
    assert run.count == 5 and run.done == 5 and run.finished


def test_a_text_column_parts_a_run(tmp_path: Path) -> None:
    """A reward with a head a criterion counts its epochs anew for each, and measures something once at the end."""
    lines: list[dict[str, Any]] = [
        {"epoch": i, "loss": 1.0, "criterion": name} for name in ("beauty", "fidelity") for i in range(3)
    ]
    run = only(make_run(tmp_path / "r", [*lines, {"earlier_agreement": 0.8}]))
    assert [(series.part, len(series.points)) for series in run.named("loss")] == [("beauty", 3), ("fidelity", 3)]
    assert values(run, "earlier_agreement") == [(0.0, 0.8)]


def test_a_text_that_never_repeats_parts_nothing(tmp_path: Path) -> None:
    run = only(make_run(tmp_path / "r", [{"epoch": i, "loss": 1.0, "time": f"12:0{i}"} for i in range(4)]))
    assert [series.part for series in run.named("loss")] == [""]


def test_lines_without_a_step_are_counted(tmp_path: Path) -> None:
    run = only(make_run(tmp_path / "r", [{"images": 8, "seconds": 1.0}, {"images": 4, "seconds": 2.0}]))
    assert run.step_name == "line" and values(run, "images") == [(0.0, 8.0), (1.0, 4.0)]


def test_problems_say_since_when_and_whether_they_last(tmp_path: Path) -> None:
    named = [[], ["flat reward"], ["flat reward", "no step"], ["no step"]]
    run = only(make_run(tmp_path / "r", [{"epoch": i, "problems": names} for i, names in enumerate(named)]))
    assert [tuple(problem) for problem in run.problems] == [
        ("flat reward", 1.0, 2.0, False, ""),
        ("no step", 2.0, 3.0, True, ""),
    ]


def test_problems_say_what_to_change_where_the_run_wrote_it(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r", [{"epoch": i, "problems": ["flat reward", "no step"]} for i in range(2)])
    write_advice(folder, {"flat reward": "check the reward, of epoch 0"})
    write_advice(folder, {"flat reward": "check the reward", "gone": "?"})  # the newest words
    assert [(problem.name, problem.advice) for problem in only(folder).problems] == [
        ("flat reward", "check the reward"),
        ("no step", ""),
    ]
    assert not read_board([folder]).calibrations and not read_board([folder]).drifts
    for broken in ("{", "[1]", '{"flat reward": 3}', '"text"'):
        (folder / "advice.json").write_text(broken)
        assert [problem.advice for problem in only(folder).problems] == ["", ""]
    (folder / "advice.json").unlink()
    (tmp_path / "outside.json").write_text('{"flat reward": "secret"}')
    (folder / "advice.json").symlink_to(tmp_path / "outside.json")
    assert [problem.advice for problem in read_board([folder]).runs[0].problems] == ["", ""]


def test_a_run_that_stopped_says_why_and_one_that_goes_on_after_all_does_not(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [{"epoch": i, "seconds": 1.0} for i in range(2)]
    why = "the next KL to the start would be 0.3 nats, over the budget of 0.25"
    run = only(make_run(tmp_path / "r", [*lines, {"epoch": 2, "seconds": 1.0, "stopped": why}], epochs=10))
    assert status_of(run, run.changed + 7200) == ("stopped", f"{why}, 2\N{NO-BREAK SPACE}h ago")
    assert [series.part for series in run.named("seconds")] == [""]
    on = only(make_run(tmp_path / "on", [*lines, {"epoch": 2, "stopped": why}, {"epoch": 3}], epochs=10))
    assert status_of(on, on.changed).word == "running"
    whole = only(make_run(tmp_path / "whole", [*lines, {"epoch": 2, "stopped": why}], epochs=3))
    assert status_of(whole, whole.changed).word == "finished"  # it was over the budget in the last epoch
    other = only(make_run(tmp_path / "other", [{"epoch": 0, "stopped": 3}], epochs=10))
    assert status_of(other, other.changed + 7200).word == "silent"


def test_signs_of_life(tmp_path: Path) -> None:
    lines = [{"epoch": i, "loss": 1.0, "seconds": 60.0} for i in range(3)]
    run = only(make_run(tmp_path / "r", lines, epochs=10))
    assert (run.done, run.wanted, run.seconds) == (3, 10, 60.0)
    assert status_of(run, run.changed + 200).word == "running"
    assert "7\N{NO-BREAK SPACE}min left" in status_of(run, run.changed).says
    assert status_of(run, run.changed + 300).word == "silent"
    assert status_of(run, run.changed - 50).word == "running"  # a clock that is behind
    fast = only(make_run(tmp_path / "f", [{"epoch": 0, "seconds": 0.1}], epochs=10))
    assert status_of(fast, fast.changed + 29).word == "running"  # samples are drawn between the lines
    begun = only(make_run(tmp_path / "b", [], epochs=10))
    assert status_of(begun, begun.changed + 60).word == "starting"
    assert status_of(begun, begun.changed + 7200).word == "silent"


@pytest.mark.parametrize(
    ("lines", "config", "finished"),
    [
        ([{"epoch": 0}, {"epoch": 1}], {"epochs": 2}, True),
        ([{"epoch": 0}], {"epochs": 2}, False),
        ([{"round": 0}, {"round": 1}, {"round": 2}], {"rounds": 3, "epochs": 2}, False),  # round 0 is the start
        ([{"round": i} for i in range(4)], {"rounds": 3, "epochs": 2}, True),
        ([{"epoch": 5}], {"epochs": True}, False),
        ([{"epoch": 5}], {"epochs": "many"}, False),
        ([], {"epochs": 0}, False),
    ],
)
def test_a_run_is_finished_when_it_made_all_its_steps(tmp_path: Path, lines, config, finished: bool) -> None:
    assert only(make_run(tmp_path / "r", lines, **config)).finished is finished


def test_a_reward_is_finished_when_it_was_saved(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r", [{"epoch": 0}], epochs=99)
    (folder / "reward.json").write_text("{}")
    assert only(folder).finished


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r", [{"epoch": 0, "loss": 1.0}])
    assert len(values(only(folder), "loss")) == 1
    make_run(folder, [{"epoch": 0, "loss": 1.0}, {"epoch": 1, "loss": 0.5}])
    assert len(values(only(folder), "loss")) == 2


def test_pictures_are_in_order_of_their_steps(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r", [{"epoch": 0}])
    for name in ("epoch-0010.png", "epoch-0002.png", "other.png"):
        save_image(torch.zeros(3, 4, 4), folder / "samples" / name)
    run = only(folder)
    assert [picture.step for picture in run.pictures] == [2, 10]
    assert read_board([folder]).pictures == {picture.key: picture.path for picture in run.pictures}


def test_prompts_are_shown_only_if_they_are_still_the_runs(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    digest = hashlib.sha256(b"a cat\na dog").hexdigest()
    for name in ("prompts.txt", str(tmp_path / "prompts.txt")):
        make_run(tmp_path / "r", [{"epoch": 0}], prompts=name, prompts_sha256=digest)
        assert only(tmp_path).prompts == ("a cat", "a dog") * 8
    (tmp_path / "prompts.txt").write_text("a cat\na fish\n")
    assert only(tmp_path).prompts == ()


def test_links_out_of_the_folder_are_refused_and_named(tmp_path: Path) -> None:
    secret = make_run(tmp_path / "outside", [{"epoch": 0, "loss": 1.0}], secret="key")
    save_image(torch.zeros(3, 4, 4), secret / "epoch-0001.png")
    (secret / "prompts.txt").write_text("secret\n")
    digest = hashlib.sha256(b"secret").hexdigest()
    inside = make_run(
        tmp_path / "runs" / "a", [{"epoch": 0}], prompts=str(secret / "prompts.txt"), prompts_sha256=digest
    )
    (inside / "samples").mkdir()
    (inside / "samples" / "epoch-0001.png").symlink_to(secret / "epoch-0001.png")
    (tmp_path / "runs" / "linked").symlink_to(secret)
    (tmp_path / "runs" / "b").mkdir()
    (tmp_path / "runs" / "b" / "metrics.jsonl").symlink_to(secret / "metrics.jsonl")
    (inside / "config.json").rename(inside / "train.json")
    (inside / "config.json").symlink_to(secret / "config.json")
    (tmp_path / "runs" / "circle").symlink_to(tmp_path / "runs" / "circle")
    board = read_board([tmp_path / "runs"])
    (run,) = board.runs
    assert (run.name, run.pictures, run.prompts, board.pictures) == ("a", (), (), {})
    assert "secret" not in run.settings
    assert {"linked", "b/metrics.jsonl", "a/config.json"} <= set(board.refused)


def test_a_folder_of_samples_that_is_a_link_gives_no_picture(tmp_path: Path) -> None:
    save_image(torch.zeros(3, 4, 4), tmp_path / "outside" / "epoch-0001.png")
    inside = make_run(tmp_path / "runs" / "a", [{"epoch": 0}])
    (inside / "samples").symlink_to(tmp_path / "outside")
    assert only(tmp_path / "runs").pictures == ()


def test_names_that_are_no_unicode_are_shown_with_a_mark(tmp_path: Path) -> None:
    name = os.fsdecode(b"run-\xff")
    try:
        make_run(tmp_path / name, [{"epoch": 0}])
    except OSError:
        pytest.skip("this file system takes only names that are Unicode")
    assert only(tmp_path).name == printable(name) == "run-\N{REPLACEMENT CHARACTER}"


def test_reliability_of_reward_eval_and_of_a_quickstart() -> None:
    curve = [{"predicted": 0.25, "observed": 0.3, "size": 4}]
    bins = ((0.25, 0.3, 4.0),)
    assert curves_of({"reliability": curve}) == (("", bins),)
    assert curves_of({"reliability": {"before": curve, "after": curve}}) == (("before", bins), ("after", bins))
    both = {"before": {"reliability": curve, "ece": 0.1}, "after": {"reliability": curve}, "temperature": 2.0}
    assert [name for name, _ in curves_of({"reliability": curve, "calibration": both})] == ["before", "after"]
    wrong: list[dict[str, Any]] = [{}, {"reliability": 3}, {"reliability": [1]}, {"reliability": []}]
    for figures in [*wrong, {"reliability": [{"predicted": "x"}]}]:
        assert curves_of(figures) == ()


def test_the_files_of_reward_drift_are_read_as_they_are_written(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for name, shift in (("round-1", 0.0), ("round-2", 2.0)):
        rows = [
            {"prompt": f"p{i % 20}", "image": f"{i}.png", "score": float(generator.normal(shift))} for i in range(200)
        ]
        write_jsonl(rows, tmp_path / f"{name}-scores.jsonl")
    figures = drift(
        DriftConfig(tmp_path / "round-1-scores.jsonl", tmp_path / "round-2-scores.jsonl", tmp_path / "drift.json")
    )
    board = read_board([tmp_path])
    (found,) = board.drifts
    assert found.name == "drift.json" and found.verdict == figures["verdict"] == "retrain"
    assert [(check.name, check.verdict) for check in found.checks] == [
        (c["check"], c["verdict"]) for c in figures["checks"]
    ]
    assert found.before == tuple(figures["stability"]["before"])
    assert [each.size for each in board.scores] == [200, 200]
    medians = [each.quantiles[2] for each in board.scores]
    assert medians[1] - medians[0] == pytest.approx(2.0, abs=0.4)
    assert drift_of("x", {"stability": {"before": [1]}, "checks": []}) is None


def test_files_that_only_look_like_reports_are_passed_over(tmp_path: Path) -> None:
    make_run(tmp_path / "r", [{"epoch": 0}])
    (tmp_path / "a.json").write_text('{"stability": 1, "reliability": "high"}')
    (tmp_path / "b.json").write_text('[{"reliability": []}]')
    (tmp_path / "c.json").write_text('{"reliability": ')
    (tmp_path / "scores.jsonl").write_text('{"score": "x"}\n[1]\n')
    board = read_board([tmp_path])
    assert (board.calibrations, board.drifts, board.scores) == ((), (), ())
    assert len(find(tmp_path).reports) == 4  # with the run's config


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (1.5, "1.5 s"), (59.0, "59 s"), (150.0, "2 min"), (7200.0, "2 h"), (200000.0, "2 d")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds).replace("\N{NO-BREAK SPACE}", " ") == text
