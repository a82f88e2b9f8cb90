"""Rounds of answering, marking and learning: what they write, that a kill changes nothing, and where people mark."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmrlhf.errors import UserError
from mmrlhf.images import load_image
from mmrlhf.rewards.language.inputs import Row
from mmrlhf.segments import read_segments
from mmrlhf.tiny.scene_files import read_scenes, write_scenes
from mmrlhf.tiny.scene_text import DESCRIBE
from tests.vlm.helpers import without_times, write_rows
from vlm import rounds as module
from vlm.benchmarks.scenes import measured
from vlm.policy import VisionLanguagePolicy
from vlm.rounds import RoundsConfig, rounds
from vlm.scenes import MarkConfig, mark, read_responses
from vlm.segment_reward import HallucinationReward
from vlm.worth_marking import answers_worth, questions_of


def small(out: Path, **changes: Any) -> RoundsConfig:
    how: dict[str, Any] = {"rounds": 1, "answers_per_round": 20, "pictures_per_round": 24, "candidates_per_picture": 2,
                           "held_out": 6, "epochs": 1, "device": "cpu"}  # fmt: skip
    return RoundsConfig(out, **how | changes)


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Two rounds that nothing stopped."""
    out = tmp_path_factory.mktemp("rounds") / "whole"
    return out, rounds(small(out, rounds=2))


@pytest.mark.parametrize(
    ("learn_from", "model", "data"),
    [
        ("first", "tiny-llava", "round-2/marks-so-far.jsonl"),
        ("last", "round-1/dense-dpo/model", "round-2/marked.jsonl"),
    ],
)
def test_a_round_begins_with(
    learn_from: str, model: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(module.dense_dpo, "train", seen.append)
    module.learn(small(tmp_path, learn_from=learn_from, lora_rank=0), 2)
    assert (seen[0].model, seen[0].data) == (model if model == "tiny-llava" else str(tmp_path / model), tmp_path / data)


def test_a_round_keeps_some_of_its_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(module.dense_dpo, "train", lambda config: None)
    monkeypatch.setattr(
        module, "load_adapter", lambda network, folder, *, merge, scale: seen.append((folder, merge, scale))
    )
    monkeypatch.setattr(module, "save_model", lambda network, processor, folder: None)
    module.learn(small(tmp_path, adapter_scale=0.3), 1)
    assert seen == [(tmp_path / "round-1" / "dense-dpo", True, 0.3)]


def test_a_line_a_round_from_the_model_before_any(whole: tuple[Path, list[dict[str, Any]]]) -> None:
    out, metrics = whole
    assert rows_of(out / "metrics.jsonl") == metrics
    assert [(line["round"], line["marked"]) for line in metrics] == [(0, 0), (1, 20), (2, 40)]
    assert [line["strategy"] for line in metrics] == ["", "answers", "hallucination"]
    assert all(0 <= line["chair_i"] < 60 and line["coverage"] > 30 and line["seconds"] > 0 for line in metrics)
    assert load_image(out / "rounds.png").shape[2] > 800
    # the last line's figures from the answers and the truth
    scenes = read_scenes(out / "held-out" / "scenes.jsonl")
    texts = [row["response"] for row in rows_of(out / "round-2" / "held-out.jsonl")]
    expected = measured(texts, list(scenes.values()))
    assert {name: metrics[2][name] for name in expected} == expected


def test_the_answers_of_highest_worth_are_marked_and_all_marks_teach_the_reward(
    whole: tuple[Path, list[dict[str, Any]]],
) -> None:
    out, metrics = whole
    for number in (1, 2):
        folder = out / f"round-{number}"
        candidates = [row for _, row in read_responses(folder / "candidates.jsonl")]
        chosen = [row for _, row in read_responses(folder / "to_mark.jsonl")]
        assert len(candidates) == 48 and len(chosen) == len(set(questions_of(chosen).tolist())) == 20
        judge = HallucinationReward.load(out / "round-1" / "reward", device="cpu") if number == 2 else None
        worth = answers_worth("hallucination", candidates, judge, torch.Generator())
        places = [candidates.index(row) for row in chosen]
        assert worth[places].tolist() == sorted(worth[places].tolist(), reverse=True)
        best = {int(q): float(worth[questions_of(candidates) == q].max()) for q in questions_of(candidates)}
        torch.testing.assert_close(worth[places], torch.tensor(sorted(best.values(), reverse=True)[:20]))
        marks = read_segments(folder / "marked.jsonl")
        assert [item.answer for item in marks] == [row.answer for row in chosen]
        wrong = sum(getattr(segment, "tag", "") == "misleading" for item in marks for segment in item.segments)
        assert metrics[number]["misleading_marks"] == wrong > 0
    every = read_segments(out / "round-2" / "marks-so-far.jsonl")
    assert [item.item for item in every] == [
        item.item for number in (1, 2) for item in read_segments(out / f"round-{number}" / "marked.jsonl")
    ]
    assert len({item.item for item in every}) == len({item.image for item in every}) == 40


def test_each_round_answers_with_some_of_what_the_one_before_learned(whole: tuple[Path, list[dict[str, Any]]]) -> None:
    out, _ = whole
    settings = json.loads((out / "round-2" / "dense-dpo" / "config.json").read_text())
    assert settings["model"] == "tiny-llava"
    assert settings["data"] == str(out.resolve() / "round-2" / "marks-so-far.jsonl")
    rows = [Row(DESCRIBE, None, out / "held-out" / f"scene-0000{i}.png") for i in range(2)]
    answers = [row["response"] for row in rows_of(out / "round-1" / "held-out.jsonl")]
    folder = out / "round-1" / "dense-dpo"
    merged = VisionLanguagePolicy.load(str(folder / "model"), device="cpu")
    beside = VisionLanguagePolicy.load("tiny-llava", adapter=folder, adapter_scale=0.6, device="cpu")
    told = [Row(row.prompt, answer, row.image) for row, answer in zip(rows, answers, strict=False)]
    start = VisionLanguagePolicy.load("tiny-llava", device="cpu")
    scored = [policy.log_probs(policy.encode(told)).detach() for policy in (merged, beside, start)]
    torch.testing.assert_close(scored[0], scored[1], atol=1e-3, rtol=1e-3)
    assert (scored[0] - scored[2]).abs().max() > 0.01


def killed(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def stopped(config: RoundsConfig, places: list[tuple[Any, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs, each killed where it calls something."""
    for where, name in places:
        with monkeypatch.context() as patch:
            patch.setattr(where, name, killed)
            with pytest.raises(KeyboardInterrupt):
                rounds(replace(config, resume=config.out.exists()))


def same_weights(one: Path, other: Path, names: tuple[str, ...]) -> None:
    for name in names:
        weights = load_file(one / name)
        assert all(torch.equal(value, weights[key]) for key, value in load_file(other / name).items())


WEIGHTS = ("dense-dpo/model/model.safetensors", "reward/segment.safetensors")


def test_a_run_killed_in_every_stage_is_as_one_that_was_not(
    whole: tuple[Path, list[dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(tmp_path / "killed")
    stopped(config, [(module, "generate"), (module, "choose"), (module, "write_segments"), (module.reward, "write_page"),
                     (module, "save_model")], monkeypatch)  # fmt: skip
    metrics = rounds(replace(config, resume=True))
    assert without_times(metrics) == without_times(whole[1][:2])
    same_weights(config.out / "round-1", whole[0] / "round-1", WEIGHTS)
    assert rounds(replace(config, resume=True)) == metrics  # nothing is done twice, nor timed anew


def test_a_run_that_is_over_goes_on_with_more_rounds(
    whole: tuple[Path, list[dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(tmp_path / "longer", rounds=2)
    shutil.copytree(whole[0], config.out, ignore=shutil.ignore_patterns("round-2"))
    stopped(config, [(HallucinationReward, "load"), (module.dense_dpo, "train"), (module, "measured")], monkeypatch)
    assert without_times(rounds(replace(config, resume=True))) == without_times(whole[1])
    same_weights(config.out / "round-2", whole[0] / "round-2", WEIGHTS)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[RoundsConfig, list[dict[str, Any]]]:
    """Given scenes, random answers, and people who have not marked yet."""
    folder = tmp_path_factory.mktemp("people")
    scenes = write_scenes(folder / "scenes", 29, seed=5)
    how: dict[str, Any] = {"rater": "human", "strategy": "random", "candidates_per_picture": 1}
    config = small(folder / "out", scenes=scenes, pictures_per_round=None, **how)
    return config, rounds(config)


def resumed(config: RoundsConfig, folder: Path, write: Callable[[Path], None]) -> list[dict[str, Any]]:
    """What comes after people wrote round 1's marks, in a copy of the folder."""
    out = folder / "out"
    shutil.copytree(config.out.parent, folder, dirs_exist_ok=True)
    write(out / "round-1")
    return rounds(small(out, scenes=config.scenes, pictures_per_round=None, rater="human", strategy="random",
                        candidates_per_picture=1, resume=True))  # fmt: skip


def test_people_mark_what_is_asked_and_the_run_goes_on(
    asked: tuple[RoundsConfig, list[dict[str, Any]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, metrics = asked
    assert [line["round"] for line in metrics] == [0]
    folder = config.out / "round-1"
    to_mark = rows_of(folder / "to_mark.jsonl")
    assert len(to_mark) == 20 and all(set(row) == {"id", "prompt", "image", "response"} for row in to_mark)
    assert not (folder / "marked.jsonl").exists() and not (folder / "dense-dpo").exists()
    held_out = set(read_scenes(config.out / "held-out" / "scenes.jsonl"))
    pictures = set(read_scenes(folder / "pictures" / "scenes.jsonl"))
    assert len(held_out) == 6 and len(pictures) == 23 and not held_out & pictures
    assert all((folder / row["image"]).resolve() in pictures for row in to_mark)

    assert [line["round"] for line in resumed(config, tmp_path / "not-yet", lambda folder: None)] == [0]
    told = capsys.readouterr().out.splitlines()[-1]
    assert "round-1/to_mark.jsonl" in told and "marked.jsonl" in told and "--resume" in told

    def people(folder: Path) -> None:
        """Only what is wrong is marked."""
        mark(MarkConfig(folder / "to_mark.jsonl", folder / "pictures" / "scenes.jsonl", folder / "marked.jsonl"))
        rows = rows_of(folder / "marked.jsonl")
        wrong = [row | {"segments": [s for s in row["segments"] if s["tag"] == "misleading"]} for row in rows]
        write_rows(wrong, folder / "marked.jsonl")

    after = resumed(config, tmp_path / "marked", people)
    assert [(line["round"], line["marked"]) for line in after] == [(0, 0), (1, 20)]
    assert 0 < after[1]["misleading_marks"] < 200 and after[0] == metrics[0]


def test_marks_of_other_answers_are_refused(asked: tuple[RoundsConfig, list[dict[str, Any]]], tmp_path: Path) -> None:
    def others(folder: Path) -> None:
        row = rows_of(folder / "to_mark.jsonl")[0]
        said = {"prompt": row["prompt"], "image": row["image"], "answer": "A cow.", "segments": []}
        write_rows([said], folder / "marked.jsonl")

    with pytest.raises(UserError, match="is of an answer that is not in to_mark.jsonl: give the marks of those"):
        resumed(asked[0], tmp_path, others)


def test_given_scenes_are_asked_about_in_turn(tmp_path: Path) -> None:
    scenes = write_scenes(tmp_path / "scenes", 60, seed=1)
    config = small(tmp_path / "out", scenes=scenes, held_out=10, pictures_per_round=30)
    turns = []
    for number in (0, 1, 2, 3, 4, 5):
        module.set_out(config, number)
        turns.append([row["id"] for row in rows_of(module.pictures_of(config, number))])
    assert sorted(set(turns[0]) | set(turns[1]) | set(turns[2])) == list(range(60)) and len(turns[0]) == 10
    asked = [i for turn in turns[1:] for i in turn]
    assert asked[:50] == asked[50:100] == asked[100:150] and not set(asked) & set(turns[0])
    assert read_scenes(module.pictures_of(config, 1)).items() <= read_scenes(scenes).items()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"answers_per_round": 19}, "--answers-per-round got 19, allowed is 20 or more"),
        ({"pictures_per_round": 19}, r"--pictures-per-round got 19, allowed is 20 \(--answers-per-round\) or more"),
        ({"candidates_per_picture": 1}, "--candidates-per-picture got 1, allowed is 2 or more"),
        ({"rounds": 0}, "--rounds got 0, allowed is 1 or more"),
        ({"held_out": 1}, "--held-out got 1, allowed is 2 or more"),
        ({"temperature": -1.0}, "--temperature got -1.0, allowed is 0 or more"),
        ({"learning_rate": 0.0}, "--learning-rate got 0.0, allowed is above 0"),
        ({"gamma": float("nan")}, "--gamma got nan, allowed is above 0"),
        ({"micro_batch_size": 0}, "--micro-batch-size got 0, allowed is 1 or more, or leave it out"),
        ({"seed": -1}, "--seed got -1"),
        ({"model": "tiny-lava"}, "tiny-lava"),
        ({"scenes": Path("no-such.jsonl")}, "no-such.jsonl"),
    ],
)
def test_bad_settings_are_one_line_and_leave_nothing(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        rounds(small(tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_scenes_that_are_too_few_or_none_are_refused(tmp_path: Path) -> None:
    scenes = write_scenes(tmp_path / "scenes", 25, seed=1)
    with pytest.raises(UserError, match=r"has 25 scenes, allowed are 26 or more \(20 to ask about, 6 held out\)"):
        rounds(small(tmp_path / "out", scenes=scenes, pictures_per_round=None))
    lines = rows_of(scenes)
    write_rows([{name: row[name] for name in ("id", "image", "prompt")} for row in lines], scenes)
    with pytest.raises(UserError, match="line 1 holds no scene"):
        rounds(small(tmp_path / "out", scenes=scenes, pictures_per_round=None, answers_per_round=20, held_out=5))
    assert not (tmp_path / "out").exists()


def test_another_run_in_the_folder_is_refused(whole: tuple[Path, list[dict[str, Any]]]) -> None:
    with pytest.raises(UserError, match="already holds files: give an empty folder, or --resume"):
        rounds(small(whole[0], rounds=2))
    with pytest.raises(UserError, match=r"holds a run with other settings \(gamma; gamma was 5.0, now 2.0\)"):
        rounds(small(whole[0], rounds=2, resume=True, gamma=2.0))
