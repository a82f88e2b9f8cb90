"""What raters say, into the store and back onto the page, in every mode."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from apps.rate_answers import Vote, said, save, shown
from apps.rate_items import KINDS, MOST_RANKED, Mode, draw_groups, read_questions
from mmrlhf.errors import UserError
from mmrlhf.images import save_image
from mmrlhf.store import Point, Store, Task
from mmrlhf.types import SegmentLabel
from tests.apps.raters import served

TASKS: dict[Mode, Task] = {
    "pair": Task("p", ("bb", "aa")),
    "likert": Task("p", ("aa",), "score"),
    "criteria": Task("p", ("aa",), "likert", criteria=("quality", "prompt fit")),
    "rank": Task("p", ("cc", "aa", "dd", "bb"), "rank"),
    "segments": Task("p", ("aa",), "segments", text="a 🐶 and a dog"),
    "points": Task("p", ("aa",), "point"),
}
CAT = {"start": 2, "end": 3, "tag": "misleading", "correction": "cat"}
SAVED: dict[Mode, tuple[str, Any]] = {
    "pair": ("left", None),
    "likert": ("4", None),
    "criteria": ("save", {"quality": 4, "prompt fit": 1}),
    "rank": ("save", [2, 1, 2, 3]),
    "segments": ("save", [CAT, {"start": 8, "end": 13, "tag": "correct"}]),
    "points": ("save", [{"x": 0.25, "y": 1.0, "tag": "artifact"}]),
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(str(tmp_path / "r.db"))
    opened.add_tasks(list(TASKS.values()))
    yield opened
    opened.close()


def vote(mode: Mode, **changes: Any) -> dict[str, Any]:
    choice, value = SAVED[mode]
    body = {"vote_id": "0" * 32, "task": TASKS[mode].key, "choice": choice, "seconds": 2.0, "value": value}
    return {**body, **changes}


@pytest.mark.parametrize("mode", list(TASKS))
def test_what_is_saved_comes_back_onto_the_page(store: Store, mode: Mode) -> None:
    task = TASKS[mode]
    choice, value = SAVED[mode]
    last = len(task.items) - 1
    save(store, mode, task, Vote(**vote(mode, unsafe=[last])), "ada")
    (answer,) = store.answers("ada", kind=KINDS[mode])
    expected = {"number": answer.number, "choice": choice, "value": value, "unsafe": [last]}
    assert said(answer, "ada") == expected
    assert [(v.item, v.annotator) for v in store.vetoes()] == [(shown(task, "ada")[last], "ada")]
    assert store.count(KINDS[mode]) == 1


@pytest.mark.parametrize("mode", list(TASKS))
def test_a_skip_keeps_its_veto_in_every_mode(store: Store, mode: Mode) -> None:
    save(store, mode, TASKS[mode], Vote(**vote(mode, choice="skip", value=None, unsafe=[0])), "ada")
    (answer,) = store.answers("ada", kind=KINDS[mode])
    assert said(answer, "ada") == {"number": answer.number, "choice": "skip", "value": None, "unsafe": [0]}
    assert [v.item for v in store.vetoes()] == [shown(TASKS[mode], "ada")[0]]


def test_records_say_what_was_on_the_screen(store: Store) -> None:
    for number, mode in enumerate(TASKS):
        save(store, mode, TASKS[mode], Vote(**vote(mode, vote_id=f"{number:032x}")), "ada")
    (ranking,) = store.rankings()
    order = shown(TASKS["rank"], "ada")
    assert ranking.shown == order and sorted(order) == ["aa", "bb", "cc", "dd"]
    assert [ranking.ranks[ranking.items.index(item)] for item in order] == [2, 1, 2, 3]
    (likert,) = store.likert()
    assert likert.scores == {"quality": 4, "prompt fit": 1} and likert.levels == 5
    (marked,) = store.segments()
    assert marked.segments == (
        SegmentLabel("aa", 2, 3, "misleading", "cat"),
        SegmentLabel("aa", 8, 13, "correct"),
    )
    assert marked.text[8:13] == "a dog" and marked.text[2:3] == "🐶"
    (points,) = store.points()
    assert points.points == (Point(0.25, 1.0, "artifact"),)


def test_pictures_of_a_ranking_are_not_in_one_order_for_all_raters() -> None:
    orders = {shown(TASKS["rank"], f"rater {number}") for number in range(200)}
    assert len(orders) == 24
    again = Task("p", ("aa", "bb", "cc", "dd"), "rank")
    assert shown(again, "ada") == shown(TASKS["rank"], "ada")


SPAN = {"start": 2, "end": 3, "tag": "correct"}
BAD: list[tuple[Mode, dict[str, Any]]] = [
    ("pair", {"choice": "save"}),
    ("pair", {"unsafe": [2]}),
    ("pair", {"unsafe": [-1]}),
    ("likert", {"choice": "6"}),
    ("likert", {"unsafe": [1]}),
    ("criteria", {"value": {"quality": 4}}),
    ("criteria", {"value": {"quality": 4, "prompt fit": 6}}),
    ("criteria", {"value": {"quality": 4, "prompt fit": True}}),
    ("criteria", {"value": {"quality": 4, "prompt fit": 1, "more": 1}}),
    ("criteria", {"choice": "4"}),
    ("rank", {"value": [1, 2, 3]}),
    ("rank", {"value": [0, 1, 2, 3]}),
    ("rank", {"value": [1.5, 1, 2, 3]}),
    ("rank", {"value": None}),
    ("segments", {"value": [{**SPAN, "end": 14}]}),
    ("segments", {"value": [{**SPAN, "end": 2}]}),
    ("segments", {"value": [{**SPAN, "tag": "fine"}]}),
    ("segments", {"value": [{**SPAN, "correction": "cat"}]}),
    ("segments", {"value": [{**SPAN, "tag": "misleading", "correction": "🐶"}]}),
    ("segments", {"value": [SPAN, {**SPAN, "start": 0}]}),
    ("segments", {"value": [SPAN, {**SPAN, "start": 0, "tag": "irrelevant"}]}),
    ("segments", {"value": [{**SPAN, "item": "bb"}]}),
    ("points", {"value": [{"x": 1.01, "y": 0.5, "tag": "a"}]}),
    ("points", {"value": [{"x": 0.5, "y": 0.5, "tag": ""}]}),
    ("points", {"value": "x"}),
]


@pytest.mark.parametrize("mode", list(TASKS))
def test_what_does_not_fit_the_question_is_refused_by_the_route(store: Store, mode: Mode) -> None:
    with served(store, mode=mode) as client:
        client.post("/api/login", json={"name": "ada"})
        for other, change in BAD:
            if other == mode:
                answer = client.post("/api/vote", json=vote(mode, **change))
                assert answer.status_code == 422, change
        assert store.answers("ada") == []
        other_mode: Mode = "likert" if mode != "likert" else "pair"
        assert client.post("/api/vote", json=vote(other_mode)).status_code == 404  # a question of another kind
        assert client.post("/api/vote", json=vote(mode)).status_code == 200
        assert client.post("/api/vote", json=vote(mode)).status_code == 200  # a retry
        question = client.get("/api/back").json()["question"]
        assert (question["choice"], question["value"]) == SAVED[mode]
    assert len(store.answers("ada", limit=9)) == 1


def test_a_vote_without_the_new_fields_is_still_one(store: Store) -> None:
    """A page that was open while the server was updated."""
    body = {name: value for name, value in vote("pair").items() if name != "value"}
    with served(store, mode="pair") as client:
        client.post("/api/login", json={"name": "ada"})
        assert client.post("/api/vote", json=body).status_code == 200
    assert store.preferences()[0].unsafe == ()


# --- questions of the newer modes ---


@given(counts=st.lists(st.integers(2, 20), min_size=1, max_size=4), size=st.integers(2, 6), seed=st.integers(0, 9))
def test_every_picture_is_ranked_among_others_of_its_prompt(counts: list[int], size: int, seed: int) -> None:
    groups = {f"p{i}": [f"{i}-{k}" for k in range(max(count, size))] for i, count in enumerate(counts)}
    tasks = draw_groups(groups, size, seed)
    assert tasks == draw_groups(groups, size, seed)
    for prompt, keys in groups.items():
        mine = [task for task in tasks if task.prompt == prompt]
        assert all(len(set(task.items)) == size and set(task.items) <= set(keys) for task in mine)
        assert {item for task in mine for item in task.items} == set(keys)
        assert len(mine) == -(-len(keys) // size)  # no more questions than it takes


@pytest.mark.parametrize("size", [1, MOST_RANKED + 1])
def test_a_ranking_of_too_few_or_many_is_one_line(size: int) -> None:
    with pytest.raises(UserError, match=f"--per-question got {size}, allowed is 2 to 6"):
        draw_groups({"p": ["a", "b"]}, size, 0)


def listed(folder: Path, **row: object) -> Path:
    save_image(torch.zeros(3, 8, 8), folder / "0.png")
    file = folder / "a.jsonl"
    file.write_text(json.dumps({"prompt": "p", "image": "0.png", **row}) + "\n")
    return file


def test_answers_of_a_list_are_asked_about_as_they_stand(tmp_path: Path) -> None:
    _, (task,) = read_questions(listed(tmp_path, answer=" a  dog\n"), "segments")
    assert task.text == " a  dog\n" and task.kind == "segments"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, r"a.jsonl:1 has no answer, --mode segments takes .*: give a text to mark"),
        ({"answer": "  "}, "a.jsonl:1 has the answer '  ', --mode segments takes"),
        ({"answer": 3}, "has the answer 3, --mode segments takes"),
    ],
)
def test_segments_without_answers_are_one_line(tmp_path: Path, row: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_questions(listed(tmp_path, **row), "segments")


def test_segments_of_pairs_are_one_line(tmp_path: Path) -> None:
    file = listed(tmp_path)
    file.write_text(json.dumps({"prompt": "p", "image_0": "0.png", "image_1": "0.png", "answer": "x"}))
    with pytest.raises(UserError, match="a.jsonl:1 has a pair, --mode segments takes"):
        read_questions(file, "segments")


@pytest.mark.parametrize("mode", ["likert", "segments", "points"])
def test_an_empty_list_is_one_line(tmp_path: Path, mode: Mode) -> None:
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(UserError, match="nothing to ask in .*a.jsonl: give pictures"):
        read_questions(tmp_path / "a.jsonl", mode)
