"""Exports of stores and of files, and requests that cannot be met."""

from pathlib import Path
from typing import Any

import pytest

from mmrlhf.answers import AnswerPair, write_answer_pairs
from mmrlhf.data import Pair, read_pairs, write_pairs
from mmrlhf.datasets.export import ExportConfig, export
from mmrlhf.errors import UserError
from mmrlhf.outcomes import Ranking, Rating, read_outcomes, write_outcomes
from mmrlhf.segments import read_segments
from mmrlhf.store import Judgement, Preference, SegmentJudgement, Store
from mmrlhf.types import SegmentLabel
from tests.datasets.files import touch


def store_of(folder: Path, *, score: float = 4.0) -> Path:
    """A store with two answers to pairs, the second shown the other way round, and the score of an image."""
    touch(folder, "a.png", "b.png")
    store = Store(str(folder / "s.db"))
    store.add_items({name: (folder / f"{name}.png", "p") for name in "ab"})
    store.add(Preference("p", ("a", "b"), 1.0, "ann", "human", ("a", "b")))
    store.add(Preference("p", ("a", "b"), 1.0, "bot", "ai", ("b", "a")))
    store.add_judgement(Judgement("p", "b", score, "ann", "human"))
    store.close()
    return folder / "s.db"


def test_a_store_gives_pairs_as_they_were_shown_with_their_annotators(tmp_path: Path) -> None:
    url, out, a, b = str(store_of(tmp_path)), tmp_path / "x.jsonl", tmp_path / "a.png", tmp_path / "b.png"
    export(ExportConfig(out, store=url))
    first, second = Pair("p", a, b, 1.0, annotator="ann"), Pair("p", b, a, 0.0, annotator="bot")
    assert read_pairs(out) == [first, second]
    export(ExportConfig(out, store=url, source="ai"))
    assert read_pairs(out) == [second]
    export(ExportConfig(out, store=url, format="outcomes"))
    assert read_outcomes(out) == [first, second, Rating("p", b, 4, annotator="ann")]


def test_a_score_off_the_scale_is_refused(tmp_path: Path) -> None:
    url = str(store_of(tmp_path, score=4.5))
    with pytest.raises(UserError, match="has the score 4.5, allowed is 1 to 5"):
        export(ExportConfig(tmp_path / "x.jsonl", store=url, format="outcomes"))


def test_rankings_become_strict_pairs_and_ratings_do_not(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png", "c.png")
    a, b, c = (tmp_path / name for name in ("a.png", "b.png", "c.png"))
    ranking = Ranking("p", (a, b, c), (1.0, 1.0, 2.0), annotator="ann", criterion="fit")
    write_outcomes([ranking, Rating("p", a, 3)], tmp_path / "in.jsonl")
    config: dict[str, Any] = {"out": tmp_path / "x.jsonl", "data": tmp_path / "in.jsonl"}
    with pytest.raises(UserError, match="judgement 2 of .* is of ratings, .*--on-fault skip"):
        export(ExportConfig(**config))
    export(ExportConfig(**config, on_fault="skip"))
    names = ("p", True, "ann", "fit")
    assert read_pairs(tmp_path / "x.jsonl") == [Pair("p", a, c, 1.0, *names), Pair("p", b, c, 1.0, *names)]
    export(ExportConfig(**config, format="outcomes", criterion=""))
    assert read_outcomes(tmp_path / "x.jsonl") == [Rating("p", a, 3)]


def test_what_compares_something_else_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png")
    write_answer_pairs([AnswerPair("p", "x", "y", 1.0)], tmp_path / "answers.jsonl")
    write_pairs([Pair("p", tmp_path / "a.png", tmp_path / "b.png", 1.0)], tmp_path / "pairs.jsonl")
    for format, data, words in (
        ("pairs", "answers", "is of answers, which are no pair of images"),
        ("outcomes", "answers", "compares answers, not images"),
        ("answers", "pairs", "is of pairs, which compare no answers"),
    ):
        with pytest.raises(UserError, match=words):
            export(ExportConfig(tmp_path / "x", data=tmp_path / f"{data}.jsonl", format=format))  # type: ignore[arg-type]
    assert not (tmp_path / "x").exists()


def test_doubtful_requests_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png")
    with pytest.raises(UserError, match="neither of --store and --data"):
        export(ExportConfig(tmp_path / "y.jsonl"))
    with pytest.raises(UserError, match="both of --store and --data"):
        export(ExportConfig(tmp_path / "y.jsonl", store="x.db", data=tmp_path / "z.jsonl"))
    write_pairs([Pair("p", tmp_path / "a.png", tmp_path / "b.png", 1.0)], tmp_path / "p.jsonl")
    with pytest.raises(UserError, match="is a folder"):
        export(ExportConfig(tmp_path, data=tmp_path / "p.jsonl"))


def test_marked_answers_of_a_store_become_segments(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    store = Store(str(tmp_path / "s.db"))
    store.add_items({"a": (tmp_path / "a.png", "p")})
    labels = (SegmentLabel("a", 2, 3, "misleading", "cat"), SegmentLabel("a", 4, 8, "correct"))
    for text, segments, name, source in (("a 🐶 here", labels, "ann", "human"), ("a cat", (), "bot", "ai")):
        marked: dict[str, Any] = {"text": text, "segments": segments, "annotator": name, "source": source}
        store.add_segments(SegmentJudgement(prompt="what is it", item="a", **marked))
    store.close()
    out, url = tmp_path / "new" / "SEGMENTS.jsonl", str(tmp_path / "s.db")
    first, second = export(ExportConfig(out, store=url, format="segments"))
    assert read_segments(out) == [first, second] and first.item != second.item
    assert (first.prompt, first.answer, first.image, first.annotator) == (
        "what is it",
        "a 🐶 here",
        tmp_path / "a.png",
        "ann",
    )
    assert [(s.start, s.end, s.tag, s.correction) for s in first.segments] == [
        (2, 3, "misleading", "cat"),
        (4, 8, "correct", None),
    ]
    assert second.segments == () and second.answer == "a cat"
    assert export(ExportConfig(out, store=url, format="segments", source="human")) == [first]
    with pytest.raises(UserError, match=r"no marked answers \(source: simulated\) in .*: collect some"):
        export(ExportConfig(out, store=url, format="segments", source="simulated"))
    with pytest.raises(UserError, match="--format segments takes marked answers: give --store, and neither --data"):
        export(ExportConfig(out, data=out, format="segments"))
