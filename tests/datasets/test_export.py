"""Exports of stores and of files, and requests that cannot be met."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from mmrlhf.answers import AnswerPair, write_answer_pairs
from mmrlhf.data import Pair, read_pairs, write_pairs
from mmrlhf.datasets.export import ExportConfig, export
from mmrlhf.datasets.importing import ImportConfig, import_data
from mmrlhf.errors import UserError
from mmrlhf.outcomes import Ranking, Rating, read_outcomes, write_outcomes
from mmrlhf.points import Point, PointedImage, read_points, write_points
from mmrlhf.segments import read_segments
from mmrlhf.store import (
    Judgement,
    LikertJudgement,
    PointJudgement,
    Preference,
    RankJudgement,
    SegmentJudgement,
    Store,
    Task,
)
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


def test_points_of_a_store_become_a_file_of_their_own_and_key_points(tmp_path: Path) -> None:
    """The places are those that were clicked, to the last digit; who found nothing is there, too."""
    url, out, b = str(store_of(tmp_path)), tmp_path / "new" / "points.jsonl", tmp_path / "b.png"
    with pytest.raises(UserError, match=r"no images with points \(source: all\) in .*: collect some .*--mode points"):
        export(ExportConfig(out, store=url, format="points"))
    store = Store(url)
    places = (Point(1 / 3, 0.7071067811865476, "hand"), Point(0.0, 1.0, "text"))
    for name, points, source in (("ann", places, "human"), ("bot", (), "ai")):
        store.add_points(PointJudgement(prompt="p", item="b", points=points, annotator=name, source=source))  # type: ignore[arg-type]
    store.close()
    export(ExportConfig(out, store=url, format="points"))
    first, second = PointedImage("p", b, places, annotator="ann"), PointedImage("p", b, (), annotator="bot")
    assert read_points(out) == [first, second]
    assert export(ExportConfig(out, store=url, format="points", source="ai")) == [second]
    with pytest.raises(UserError, match="--format points takes images with points: give --store, and neither --data"):
        export(ExportConfig(out, data=out, format="points"))
    # Label Studio's tasks have them beside everything else that the store holds, outcomes and pairs have no place for them
    rows = export(ExportConfig(tmp_path / "tasks.json", store=url, format="label-studio"))
    assert rows[-2:] == [first, second] and len(rows) == 5
    assert len(export(ExportConfig(tmp_path / "o.jsonl", store=url, format="outcomes"))) == 3
    import_data(ImportConfig("label-studio", tmp_path / "tasks.json", tmp_path / "back"))
    again = read_points(tmp_path / "back" / "points.jsonl")
    assert [each.annotator for each in again] == ["ann", "bot"] and again[1] == second
    for place, clicked in zip(again[0].points, places, strict=True):
        assert place[:2] == pytest.approx(clicked[:2], abs=1e-12, rel=0) and place.tag == clicked.tag


def test_a_file_of_points_goes_to_label_studio_alone(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    write_points([PointedImage("p", tmp_path / "a.png", (Point(0.5, 0.5, "hand"),))], tmp_path / "points.jsonl")
    for name, words in (
        ("pairs", "is of points, which are no pair of images"),
        ("outcomes", "is of points, which have a file of their own"),
        ("answers", "is of points, which compare no answers"),
        ("argilla", "points at places in an image, for which Argilla has no question"),
    ):
        with pytest.raises(UserError, match=words):
            export(ExportConfig(tmp_path / "x", data=tmp_path / "points.jsonl", format=name))  # type: ignore[arg-type]
    assert len(export(ExportConfig(tmp_path / "t.json", data=tmp_path / "points.jsonl", format="label-studio"))) == 1


def full_store(folder: Path) -> Path:
    """A store with an answer of every kind that is about pictures, some of them vetoed."""
    touch(folder, "a.png", "b.png", "c.png")
    store = Store(str(folder / "full.db"))
    store.add_items({name: (folder / f"{name}.png", "p") for name in "abc"})
    ann: dict[str, Any] = {"prompt": "p", "annotator": "ann", "source": "human"}
    shown = ("c", "a", "b")
    store.add(Preference("p", ("a", "b"), 1.0, "ann", "human", ("b", "a"), unsafe=("b",)))
    store.add_ranking(RankJudgement(items=("a", "b", "c"), ranks=(2, 1, 1), shown=shown, unsafe=("b",), **ann))
    store.add_ranking(RankJudgement(items=("a", "c"), ranks=(1, 1), shown=("c", "a"), **ann))
    store.add_judgement(Judgement("p", "a", 2.0, "ben", "simulated"))
    store.add_likert(LikertJudgement(item="b", scores={"fit": 3, "look": 1}, levels=4, **ann))
    store.add_likert(LikertJudgement(item="b", scores={"fit": 3}, text="an answer", **ann))
    store.skip(Task("p", ("a", "c")), "ben", unsafe=("c",))
    store.add_segments(SegmentJudgement(item="a", text="a dog", segments=(), **ann))
    store.close()
    return folder / "full.db"


def test_outcomes_carry_rankings_criteria_and_vetoes(tmp_path: Path) -> None:
    url, out = str(full_store(tmp_path)), tmp_path / "x.jsonl"
    a, b, c = (tmp_path / f"{name}.png" for name in "abc")
    export(ExportConfig(out, store=url, format="outcomes"))
    ann: dict[str, Any] = {"annotator": "ann"}
    everything = [
        Pair("p", b, a, 0.0, **ann),
        Ranking("p", (c, a, b), (1.0, 2.0, 1.0), **ann),
        Pair("p", c, a, 0.5, **ann),  # a ranking of ties alone
        Rating("p", a, 2, annotator="ben"),
        Rating("p", b, 3, 4, criterion="fit", **ann),
        Rating("p", b, 1, 4, criterion="look", **ann),
        Rating("p", b, 1, 2, criterion="safety", **ann),  # vetoed in two answers
        Rating("p", c, 1, 2, criterion="safety", annotator="ben"),  # a skip, which has a veto all the same
    ]
    assert read_outcomes(out) == everything
    export(ExportConfig(out, store=url, format="outcomes", vetoes="leave"))
    assert read_outcomes(out) == everything[:-2]
    export(ExportConfig(out, store=url, format="outcomes", source="simulated"))
    assert read_outcomes(out) == [everything[3]]
    export(ExportConfig(out, store=url))
    strict = [Pair("p", c, a, 1.0, "p", **ann), Pair("p", a, b, 0.0, "p", **ann)]  # stay together
    assert read_pairs(out) == [everything[0], *strict, everything[2]]


@pytest.mark.parametrize("format", ["label-studio", "argilla"])
def test_a_store_goes_out_to_other_tools_whole(format: Any, tmp_path: Path) -> None:
    url, out = str(full_store(tmp_path)), tmp_path / "x.json"
    export(ExportConfig(tmp_path / "outcomes.jsonl", store=url, format="outcomes"))
    export(ExportConfig(tmp_path / "marked.jsonl", store=url, format="segments"))
    export(ExportConfig(out, store=url, format=format))
    import_data(ImportConfig(format, out, tmp_path / "back", rankings="keep"))
    assert Counter(read_outcomes(tmp_path / "back" / "outcomes.jsonl")) == Counter(
        read_outcomes(tmp_path / "outcomes.jsonl")
    )
    assert read_segments(tmp_path / "back" / "segments.jsonl") == read_segments(tmp_path / "marked.jsonl")


def test_marked_answers_alone_go_out_to_other_tools(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    store = Store(str(tmp_path / "s.db"))
    store.add_items({"a": (tmp_path / "a.png", "p")})
    said: dict[str, Any] = {"text": "a dog", "segments": (), "annotator": "ann", "source": "human"}
    store.add_segments(SegmentJudgement(prompt="what is it", item="a", **said))
    store.close()
    export(ExportConfig(tmp_path / "x.json", store=str(tmp_path / "s.db"), format="label-studio"))
    assert import_data(ImportConfig("label-studio", tmp_path / "x.json", tmp_path / "back")) == 1


def test_an_export_while_people_rate_is_whole(tmp_path: Path) -> None:
    """Pictures and answers are added all the time, as an app that was started again with more pictures adds them."""
    url = str(store_of(tmp_path))
    done = Event()

    def rate() -> None:
        store = Store(url)
        for number in range(10_000):
            if done.is_set():
                break
            items = (f"x{number}", "a")
            store.add_items({items[0]: (tmp_path / "b.png", "p")})
            store.add(Preference("p", items, 1.0, "ann", "human", items, vote_id=items[0]))
            store.add_ranking(
                RankJudgement(prompt="p", items=items, ranks=(1, 2), shown=items, annotator="ann", source="human")
            )
        store.close()

    with ThreadPoolExecutor(1) as pool:
        rating = pool.submit(rate)
        counts = []
        for number in range(8):
            out = tmp_path / f"{number}.jsonl"
            counts.append(len(export(ExportConfig(out, store=url, format="outcomes"), say=lambda _: None)))
            assert len(read_outcomes(out)) == counts[-1]
        done.set()
        rating.result()
    assert counts == sorted(counts) and counts[-1] > counts[0] >= 3
