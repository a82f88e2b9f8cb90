"""`mmrlhf reward judge` from end to end: a queue or a file of pairs in, verdicts in the store and figures out."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmrlhf.data import Pair, write_pairs
from mmrlhf.errors import UserError
from mmrlhf.images import content_hash
from mmrlhf.rewards import REWARDS
from mmrlhf.rewards.judging.judge import JudgeConfig, judge
from mmrlhf.rewards.rules.python_function import FunctionReward
from mmrlhf.store import Store, Task
from mmrlhf.types import Preference
from tests.rewards.small_vlm import small_vlm
from tests.small_clip import noisy_colour, warm_pairs

REDS = (0.9, 0.1, 0.6, 0.3)


@pytest.fixture
def pictures(tmp_path: Path) -> dict[str, Path]:
    """Four pictures by content hash, from warm to cold by `REDS`."""
    generator = torch.Generator().manual_seed(0)
    files = [noisy_colour(tmp_path / f"{red}.png", (red, 0.5, 1 - red), generator) for red in REDS]
    return {content_hash(file.read_bytes()): file for file in files}


@pytest.fixture
def config(tmp_path: Path, pictures: dict[str, Path]) -> JudgeConfig:
    """A store with three queued pairs, two of them answered by ann and one by the simulated sim."""
    keys = list(pictures)
    store = Store(str(tmp_path / "ratings.db"))
    store.add_items({key: (path, "p") for key, path in pictures.items()})
    store.add_tasks([Task("p", (keys[i], keys[j])) for i, j in ((0, 1), (3, 2), (1, 2))])
    for who, source, first, second in [("ann", "human", 0, 1), ("ann", "human", 3, 2), ("sim", "simulated", 2, 1)]:
        items = (keys[first], keys[second])
        store.add(Preference("p", items, 1.0, who, source, items))  # type: ignore[arg-type]
    store.close()
    return JudgeConfig(store=str(tmp_path / "ratings.db"), reward="warmth", out=tmp_path / "figures.json")


def votes(config: JudgeConfig, name: str = "ai-warmth") -> list[Preference]:
    store = Store(config.store)
    found = [p for p in store.preferences() if p.annotator == name]
    store.close()
    return found


def test_the_queue_is_judged_once_and_compared(
    config: JudgeConfig, pictures: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    figures = judge(config)
    keys = list(pictures)
    labels = {p.items: p.label for p in votes(config)}
    assert labels[keys[0], keys[1]] > 0.5 > labels[keys[3], keys[2]] and labels[keys[1], keys[2]] < 0.5
    assert {p.source for p in votes(config)} == {"ai"}
    assert (figures["judged"], figures["judged_before"], figures["abstained"]) == (3, 0, 0)
    assert figures["agreement"]["human"]["agreement"] == 0.5 and figures["agreement"]["human"]["answers"] == 2
    assert figures["agreement"]["simulated"]["agreement"] == 1
    assert figures["position"]["p_left"] == 0.5 and figures["position"]["flipped"] == 0
    assert config.out is not None and json.loads(config.out.read_text()) == figures
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(
        "3 pairs judged by ai-warmth (0 before, 0 abstained); P(left) 0.500, 0% turn with the order; "
    )
    assert "agrees with 2 human answers 0.500; agrees" in last and last.endswith(f"{config.store}, {config.out}")
    again = judge(config)
    assert (again["judged"], again["judged_before"]) == (0, 3) and len(votes(config)) == 3
    assert again["agreement"] == figures["agreement"]


def test_people_are_still_asked(config: JudgeConfig) -> None:
    judge(config)
    store = Store(config.store)
    assert len(store.next_tasks("bob", overlap=3, count=9)) == 3  # no lease is left behind
    store.close()


def test_only_what_lacks_votes(config: JudgeConfig, pictures: dict[str, Path]) -> None:
    store = Store(config.store)
    keys = list(pictures)
    store.add_tasks([Task("p", (keys[0], keys[2]))])
    store.close()
    assert judge(replace(config, overlap=1))["judged"] == 1
    (found,) = votes(config)
    assert found.items == (keys[0], keys[2])


def test_a_file_of_pairs(tmp_path: Path) -> None:
    pairs = warm_pairs(tmp_path, prompts=6, each=3)
    config = JudgeConfig(store=str(tmp_path / "new" / "ai.db"), data=pairs, reward="warmth", tie_threshold=0.2)
    figures = judge(replace(config, temperature=0.5))
    assert figures["judged"] == 18 and 0 < figures["ties"] < 9
    assert figures["agreement"]["data"]["agreement"] > 0.8
    assert list(figures["agreement"]["data"]["raters"]) == ["pairs.jsonl"]
    assert judge(config)["judged"] == 0
    assert judge(replace(config, name="other", reward="brightness"))["judged"] == 18
    store = Store(config.store)
    assert len(store.items()) == 36 and store.progress().tasks == 0  # nobody is asked about them
    store.close()


def test_a_vision_language_model_and_its_bias(
    tmp_path: Path, pictures: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    files = list(pictures.values())
    labels = [(0, 1, 1.0, "ann"), (1, 2, 0.0, "ann"), (2, 3, 1.0, "bob"), (0, 1, 1.0, "bob")]
    pairs = [Pair("a cat", files[a], files[b], label, annotator=who) for a, b, label, who in labels]
    same = tmp_path / "copy.png"
    same.write_bytes(files[0].read_bytes())
    write_pairs([*pairs, Pair("a cat", files[0], same, 0.5)], tmp_path / "pairs.jsonl")
    config = JudgeConfig(
        store=str(tmp_path / "ai.db"), data=tmp_path / "pairs.jsonl", vlm=str(small_vlm(tmp_path / "vlm")), batch_size=2,
        name="small", question="{prompt}", least_answer=0.0,
    )  # fmt: skip
    figures = judge(config)
    assert figures["judged"] == 3 and figures["judge"] == "small"
    assert set(figures["agreement"]["data"]["raters"]) == {"ann", "bob"}
    assert figures["position"]["p_left"] != 0.5 and figures["position"]["pairs"] == 3
    for found in votes(config, "small"):
        left, right = found.extra["p_first_shown_left"], found.extra["p_first_shown_right"]
        assert left != right and found.label == pytest.approx((left + right) / 2)
    figures = judge(replace(config, name="unsure", least_answer=0.5))  # random weights say neither A nor B
    assert (figures["judged"], figures["abstained"], figures["ties"]) == (0, 3, 0) and not votes(config, "unsure")
    assert "(0 before, 3 abstained)" in capsys.readouterr().out


def test_who_abstains_leaves_no_vote(config: JudgeConfig, tmp_path: Path) -> None:
    (tmp_path / "unsure.py").write_text("def never(images, prompts): return [float('nan')] * len(images)\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(REWARDS, "unsure", lambda: FunctionReward(f"{tmp_path / 'unsure.py'}:never"))
        figures = judge(replace(config, reward="unsure", name="unsure"))
    assert (figures["judged"], figures["abstained"], figures["ties"]) == (0, 3, 0)
    assert figures["agreement"] == {} and figures["position"] is None and not votes(config, "unsure")


def test_mistakes(config: JudgeConfig, tmp_path: Path, pictures: dict[str, Path]) -> None:
    Store(str(tmp_path / "empty.db")).close()
    cases = [
        ({"reward": None}, "got neither of --reward and --vlm: give one of them"),
        ({"vlm": "some/model"}, "got both of --reward and --vlm: give one of them"),
        ({"temperature": 0.0}, "--temperature got 0.0, allowed is a finite number above 0"),
        ({"tie_threshold": 1.5}, "--tie-threshold got 1.5, allowed is from 0 to 1"),
        ({"least_answer": -0.1}, "--least-answer got -0.1, allowed is from 0 to 1"),
        ({"batch_size": 0}, "--batch-size got 0, allowed is 1 or more"),
        ({"overlap": 0}, "--overlap got 0, allowed is 1 or more"),
        ({"out": tmp_path}, "is a folder: give the name of a file to write"),
        ({"store": str(tmp_path / "none.db")}, "no store at .*none.db: give the one that `mmrlhf rate` made, or pairs"),
        ({"store": str(tmp_path / "empty.db")}, "no pairs are queued in .*empty.db: give some with --data"),
        ({"reward": "wramth"}, "reward 'wramth' is neither a name nor a folder"),
        ({"name": "ann"}, "--name got 'ann', which is a rater in .* who is no AI: give another name"),
        ({"data": tmp_path / "none.jsonl"}, "cannot read .*none.jsonl"),
    ]
    for change, message in cases:
        with pytest.raises(UserError, match=message):
            judge(replace(config, **change))  # type: ignore[arg-type]
    assert not (tmp_path / "none.db").exists() and not (tmp_path / "figures.json").exists()
    file = next(iter(pictures.values()))
    file.write_bytes(b"something else")
    with pytest.raises(UserError, match="knows .*0.9.png, which is gone or has changed: put it back, or register"):
        judge(config)
    store = Store(config.store)
    store.add_tasks([Task("p", ("unknown", next(iter(pictures))), priority=1.0)])
    store.close()
    with pytest.raises(UserError, match="does not know the picture unknown"):
        judge(config)
    write_pairs([Pair("p", file, file.parent / "0.1.png", 1.0)], tmp_path / "pairs.jsonl")
    (tmp_path / "0.1.png").write_bytes(file.read_bytes())
    with pytest.raises(UserError, match="both pictures of every pair in .* are the same"):
        judge(replace(config, data=tmp_path / "pairs.jsonl"))
