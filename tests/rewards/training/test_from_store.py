"""A store's answers as rounds of judgements: what a run learned from stays beside its reward, and is the past of the next one."""

from pathlib import Path

import pytest

from mmrlhf.data import Pair, read_pairs
from mmrlhf.errors import UserError
from mmrlhf.images import content_hash
from mmrlhf.outcomes import read_outcomes
from mmrlhf.rewards.train import TrainConfig, settings, train
from mmrlhf.store import Preference, Store, Task
from mmrlhf.store.checks import Check, add_checks


def answer(store: Store, pairs: list[Pair], annotator: str) -> None:
    """Put the answers to some pairs into a store."""
    hashes = {path: content_hash(path.read_bytes()) for pair in pairs for path in (pair.image_0, pair.image_1)}
    store.add_items({key: (path, "") for path, key in hashes.items()})
    for pair in pairs:
        items = (hashes[pair.image_0], hashes[pair.image_1])
        store.add(Preference(pair.prompt, items, pair.label_0, annotator, "human", items))


@pytest.fixture
def url(pairs_file: Path, tmp_path: Path) -> str:
    """A store with 40 answers."""
    store = Store(str(tmp_path / "ratings.db"))
    answer(store, read_pairs(pairs_file)[:40], "ann")
    store.close()
    return str(tmp_path / "ratings.db")


def test_the_next_round_is_what_came_since(clip_folder: Path, pairs_file: Path, url: str, tmp_path: Path) -> None:
    first = train(TrainConfig(store=url, out=tmp_path / "first", model=str(clip_folder), epochs=20))
    kept = read_outcomes(tmp_path / "first" / "judgements.jsonl")
    assert len(kept) == 40 and kept[0].annotator == "ann"
    assert max(line["held_out_agreement"] for line in first.metrics) > 0.8
    store = Store(url)
    answer(store, read_pairs(pairs_file)[40:], "ben")
    store.close()
    second = train(TrainConfig(store=url, out=tmp_path / "second", start=tmp_path / "first", epochs=2))
    assert second.metrics[-1]["earlier_pairs"] == 40
    assert len(read_outcomes(tmp_path / "second" / "judgements.jsonl")) == 60
    with pytest.raises(UserError, match="all 60 judgements of .* are in .*, too: collect new ones"):
        train(TrainConfig(store=url, out=tmp_path / "third", start=tmp_path / "second"))
    assert not (tmp_path / "third").exists()


def test_a_resumed_run_keeps_the_answers_that_it_began_with(
    clip_folder: Path, pairs_file: Path, url: str, tmp_path: Path
) -> None:
    config = {"store": url, "out": tmp_path / "run", "model": str(clip_folder), "epochs": 2}
    train(TrainConfig(**config))  # type: ignore[arg-type]
    weights = (tmp_path / "run" / "judgements.jsonl").read_bytes()
    store = Store(url)
    answer(store, read_pairs(pairs_file)[40:], "ben")
    store.close()
    train(TrainConfig(**config, resume=True))  # type: ignore[arg-type]
    assert (tmp_path / "run" / "judgements.jsonl").read_bytes() == weights
    with pytest.raises(UserError, match="already holds files"):
        train(TrainConfig(**config))  # type: ignore[arg-type]


def test_who_fails_the_checks_is_left_out(clip_folder: Path, pairs_file: Path, url: str, tmp_path: Path) -> None:
    store = Store(url)
    answer(store, read_pairs(pairs_file)[40:], "eve")
    checks = [Task("check", (f"good-{number}", f"bad-{number}")) for number in range(6)]
    add_checks(store, [Check(task, {"item": task.item_0}) for task in checks])
    for task in checks:
        for name, label in (("ann", 1.0), ("eve", 0.0)):
            store.add(Preference("check", (task.item_0, task.item_1), label, name, "human", (task.item_0, task.item_1)))
    store.close()
    train(TrainConfig(store=url, out=tmp_path / "run", model=str(clip_folder), epochs=1, min_check_rate=0.7))
    assert {each.annotator for each in read_outcomes(tmp_path / "run" / "judgements.jsonl")} == {"ann"}
    with pytest.raises(UserError, match="--min-check-rate got 2, allowed is 0 to 1"):
        train(TrainConfig(store=url, out=tmp_path / "other", min_check_rate=2.0))


def test_what_cannot_be_is_one_line(url: str, pairs_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="got neither of --data and --store"):
        train(TrainConfig(out=tmp_path / "run"))
    with pytest.raises(UserError, match="got both of --data and --store"):
        train(TrainConfig(pairs_file, out=tmp_path / "run", store=url))
    with pytest.raises(UserError, match="no store at"):
        train(TrainConfig(out=tmp_path / "run", store=str(tmp_path / "none.db")))
    with pytest.raises(UserError, match=r"no answers .*\(source: ai\)"):
        train(TrainConfig(out=tmp_path / "run", store=url, source="ai"))
    with pytest.raises(UserError, match="unknown model"):
        train(TrainConfig(out=tmp_path / "run", store=url, model=str(tmp_path / "nowhere")))
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds no run on a store's answers"):
        train(TrainConfig(out=tmp_path / "run", store=url, resume=True))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_a_password_is_written_nowhere(pairs_file: Path, tmp_path: Path) -> None:
    config = TrainConfig(pairs_file, out=tmp_path, store="postgresql://ann:hush@host/ratings")
    assert settings(config)["store"] == "postgresql://ann:***@host/ratings"
