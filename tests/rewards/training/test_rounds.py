"""What a round of training is made of: replayed judgements, annotators by their reliability, and rows with faults left out."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from mmrlhf.data import Pair, read_pairs, write_pairs
from mmrlhf.errors import UserError
from mmrlhf.outcomes import Outcome, Ranking, Rating, write_outcomes
from mmrlhf.rewards.clip import CLIPReward
from mmrlhf.rewards.train import TrainConfig, train
from mmrlhf.rewards.training.rounds import forgetting, gather, pairs_only
from tests.small_clip import warm_pairs


def turned(pairs: list[Pair], annotator: str = "") -> list[Pair]:
    """The opposite taste."""
    return [Pair(p.prompt, p.image_0, p.image_1, 1 - p.label_0, annotator=annotator) for p in pairs]


@pytest.mark.parametrize(("share", "count"), [(0.5, 30), (0.25, 20), (0.01, 1)])
def test_replayed_judgements_are_a_share_of_all(pairs_file: Path, tmp_path: Path, share: float, count: int) -> None:
    old = read_pairs(warm_pairs(tmp_path / "old", prompts=10, each=3, seed=5))
    found = gather(pairs_file, tmp_path / "old" / "pairs.jsonl", share, "ignore", "refuse", 0)
    assert len(found.new) == 60 and len(found.replayed) == count and found.old == old
    assert set(found.replayed) <= set(old) and len(set(found.replayed)) == count
    assert found.reliability == {} and found.everything == [*found.new, *found.replayed]
    assert found == gather(pairs_file, tmp_path / "old" / "pairs.jsonl", share, "ignore", "refuse", 0)


def test_replay_keeps_what_was_learnt_before(clip_folder: Path, pairs_file: Path, tmp_path: Path) -> None:
    """First red is liked whatever the prompt; the new round is about other prompts, and there blue is liked."""
    write_pairs(
        [Pair("a dog", p.image_0, p.image_1, p.label_0) for p in turned(read_pairs(pairs_file))], tmp_path / "new.jsonl"
    )
    first = TrainConfig(pairs_file, out=tmp_path / "first", model=str(clip_folder))
    train(first)
    common = {"start": tmp_path / "first", "validation": 0.0, "epochs": 20}
    lines = {}
    for name, replay in (("with", pairs_file), ("without", None)):
        metrics = train(TrainConfig(tmp_path / "new.jsonl", out=tmp_path / name, replay=replay, **common)).metrics  # type: ignore[arg-type]
        lines[name] = metrics[-1]
    assert lines["with"]["earlier_pairs"] == 60 and lines["with"]["earlier_agreement_before"] > 0.9
    assert lines["with"]["earlier_agreement_after"] > 0.85
    forgotten = forgetting(None, CLIPReward.load(tmp_path / "without"), list(read_pairs(pairs_file)))
    assert forgotten["earlier_agreement_after"] < lines["with"]["earlier_agreement_after"] - 0.1


def test_an_unreliable_annotator_counts_less(
    pairs_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = read_pairs(pairs_file)
    named = [Pair(p.prompt, p.image_0, p.image_1, p.label_0, annotator=name) for name in ("ann", "ben") for p in pairs]
    write_pairs([*named, *turned(pairs, "con")], tmp_path / "all.jsonl")
    found = gather(tmp_path / "all.jsonl", None, 0.5, "weigh", "refuse", 0)
    assert min(found.reliability[name] for name in ("ann", "ben")) > 0.8 and found.reliability["con"] < 0.1
    alone = gather(pairs_file, None, 0.5, "weigh", "refuse", 0)
    assert alone.reliability == {} and "no pair was judged by two" in capsys.readouterr().out


def test_rows_with_faults_are_refused_or_left_out(
    clip_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = warm_pairs(tmp_path / "data", prompts=10)
    rows = file.read_text().splitlines()
    bad = json.loads(rows[0]) | {"label_0": 3}
    read_pairs(file)[5].image_0.write_bytes(b"no picture")
    file.write_text("\n".join([*rows, json.dumps(bad)]) + "\n")
    config = TrainConfig(file, out=tmp_path / "run", model=str(clip_folder), epochs=1)
    with pytest.raises(UserError, match="row 31: label_0 got 3"):
        train(config)
    assert not (tmp_path / "run").exists()
    train(TrainConfig(file, out=tmp_path / "run", model=str(clip_folder), epochs=1, on_fault="skip"))
    assert "note: 2 rows of" in capsys.readouterr().out and (tmp_path / "run" / "reward.json").is_file()


@pytest.mark.parametrize("on_fault", ["refuse", "skip"])
def test_judgements_that_all_say_the_same(
    clip_folder: Path,
    pairs_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    on_fault: Literal["refuse", "skip"],
) -> None:
    """Refused before anything is written; by one criterion among others a note; the first always the better is nothing odd."""
    pairs = read_pairs(pairs_file)[:20]
    ties: list[Outcome] = [replace(p, label_0=0.5) for p in pairs]
    same: list[Outcome] = [Rating(p.prompt, p.image_0, 2, 3, criterion="c") for p in pairs]
    config = TrainConfig(
        tmp_path / "data.jsonl", out=tmp_path / "run", model=str(clip_folder), epochs=1, on_fault=on_fault
    )
    for flat in (ties, same, [*ties, *same]):
        write_outcomes(flat, tmp_path / "data.jsonl")
        with pytest.raises(
            UserError, match=rf"all {len(flat)} judgements of .* are ties or ratings of one level, from"
        ):
            train(config)
        assert not (tmp_path / "run").exists()
    first = [
        p if p.label_0 > 0.5 else replace(p, image_0=p.image_1, image_1=p.image_0, label_0=1 - p.label_0) for p in pairs
    ]
    write_outcomes([*first, *same], tmp_path / "data.jsonl")
    train(config)
    assert "note: all 20 judgements by 'c' are ties or ratings of one level: nothing is" in capsys.readouterr().out


def test_what_is_left_may_all_say_the_same(clip_folder: Path, pairs_file: Path, tmp_path: Path) -> None:
    """The one strict pair has a fault: named, or left out, and then there is nothing to learn."""
    pairs = [replace(p, label_0=0.5) for p in read_pairs(pairs_file)[:5]]
    (tmp_path / "bad.png").write_bytes(b"no picture")
    write_pairs([*pairs, Pair("p", tmp_path / "bad.png", pairs[0].image_0, 1.0)], tmp_path / "data.jsonl")
    config = TrainConfig(tmp_path / "data.jsonl", out=tmp_path / "run", model=str(clip_folder), on_fault="skip")
    with pytest.raises(UserError, match="all 5 judgements of .* are ties"):
        train(config)
    with pytest.raises(UserError, match="bad.png is not a readable image"):
        train(replace(config, on_fault="refuse"))


def test_towers_take_pairs_and_rankings(tmp_path: Path) -> None:
    a, b, c = (tmp_path / name for name in "abc")
    ranked: list[Outcome] = [Ranking("p", (a, b, c), (1.0, 2.0, 2.0)), Pair("p", a, b, 0.5)]
    pairs = pairs_only(ranked)
    assert [(p.image_0, p.image_1, p.label_0) for p in pairs] == [(a, b, 1.0), (a, c, 1.0), (a, b, 0.5)]
    with pytest.raises(UserError, match="allowed is head: each needs a head of its own"):
        pairs_only([Rating("p", a, 2)])


def test_outcomes_of_all_kinds_train_from_the_command_line(clip_folder: Path, pairs_file: Path, tmp_path: Path) -> None:
    pairs = read_pairs(pairs_file)
    outcomes: list[Outcome] = [
        *pairs,
        *(Rating(p.prompt, p.image_0, 1 + i % 2, 2, criterion="safety") for i, p in enumerate(pairs)),
    ]
    write_outcomes(outcomes, tmp_path / "all.jsonl")
    result = train(TrainConfig(tmp_path / "all.jsonl", out=tmp_path / "run", model=str(clip_folder), epochs=2))
    assert isinstance(result.reward, CLIPReward)
    assert sorted(result.reward.heads) == ["", "safety"]
    assert [line.get("criterion", "") for line in result.metrics] == ["", "", "safety", "safety"]
