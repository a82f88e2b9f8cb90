"""The world of tiny-llava: scenes, their pictures, what is said of them, and what an annotator who sees all marks."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mmrlhf.errors import UserError
from mmrlhf.images import load_image
from mmrlhf.segments import corrected
from mmrlhf.tiny.scene_files import read_scenes, write_scenes
from mmrlhf.tiny.scene_text import (
    COUNTS,
    PARTNERS,
    WHERE,
    Marker,
    describe,
    is_there,
    mentioned,
    plural,
    pointing,
    question,
)
from mmrlhf.tiny.scenes import (
    BACKGROUNDS,
    CELL,
    DRAWINGS,
    KINDS,
    PLACES,
    Scene,
    Thing,
    art_sheets,
    random_scene,
    render,
)

SCENE = Scene("farm", "green", (Thing("cow", "", 0), Thing("book", "red", 4), Thing("pig", "", 7), Thing("pig", "", 8)))


def test_scenes_have_two_to_six_objects_of_which_most_belong_together() -> None:
    generator = np.random.default_rng(0)
    scenes = [random_scene(generator) for _ in range(1000)]
    assert {len(scene.things) for scene in scenes} == {2, 3, 4, 5, 6}
    own = [thing.kind in PLACES[scene.place] for scene in scenes for thing in scene.things]
    assert 0.8 < np.mean(own) < 0.88
    for scene in scenes:
        cells = [thing.cell for thing in scene.things]
        assert cells == sorted(set(cells)) and 0 <= cells[0] and cells[-1] < 9
        colours = {(thing.kind, thing.colour) for thing in scene.things}
        assert len(colours) == len(scene.kinds), "one colour a kind"


def test_a_picture_shows_its_objects_in_their_cells() -> None:
    (image,) = render([SCENE], np.random.default_rng(0))
    background = torch.tensor(BACKGROUNDS["green"])[:, None, None]
    assert 0 <= float(image.min()) and float(image.max()) <= 1
    for cell in range(9):
        row, column = divmod(cell, 3)
        part = image[:, row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
        drawn = ((part - background).abs().amax(0) > 0.05).float().mean()
        assert (drawn > 0.1) == (cell in {0, 4, 7, 8}), cell


def test_there_is_art_for_every_drawing() -> None:
    for size, sheet in art_sheets().items():
        assert sheet.shape == (len(DRAWINGS), 4, size, size)
        assert (sheet[:, 3].flatten(1).mean(1) > 0.15).all() and (sheet[:, :3] <= sheet[:, 3:] + 1e-5).all()
    flat = art_sheets()[62].flatten(1)
    assert torch.cdist(flat, flat).fill_diagonal_(99).min() > 1, "no two are the same"


def test_what_is_said_without_imagination_is_true() -> None:
    generator = np.random.default_rng(1)
    for _ in range(300):
        scene = random_scene(generator)
        told = describe(scene, generator)
        assert sorted(mentioned(told)) == sorted(scene.kinds)
        assert {label.tag for label in Marker(scene).mark(told, "")} == {"correct"}


def test_imagined_objects_are_likely_ones_and_as_many_as_is_stated() -> None:
    generator = np.random.default_rng(2)
    absent = total = 0
    for _ in range(2000):
        scene = random_scene(generator)
        kinds = mentioned(describe(scene, generator, imagined=True))
        imagined = [kind for kind in kinds if kind not in scene.kinds]
        assert set(imagined) <= {PARTNERS[kind] for kind in kinds} | set(PLACES[scene.place])
        absent, total = absent + len(imagined), total + len(kinds)
    assert 0.17 < absent / total < 0.23


def test_what_an_annotator_marks_of_every_kind_of_mistake() -> None:
    answer = "A cow is at the top. There is a blue book in the middle. There are three pigs. A cow is here. A tractor is there."
    labels = Marker(SCENE).mark(answer, "item")
    said = [(answer[each.start : each.end], each.tag, each.correction) for each in labels]
    assert said == [
        ("A cow is ", "correct", None), ("at the top", "misleading", "at the top left"),
        ("There is a ", "correct", None), ("blue", "misleading", "red"), (" book in the middle.", "correct", None),
        ("There are ", "correct", None), ("three", "misleading", "two"), (" pigs.", "correct", None),
        (" A cow is here.", "irrelevant", ""), ("A tractor is there.", "misleading", ""),
    ]  # fmt: skip
    right = corrected(answer, labels)
    assert right == "A cow is at the top left. There is a red book in the middle. There are two pigs."
    assert {label.tag for label in Marker(SCENE).mark(right, "")} == {"correct"}
    (wrong,) = [each for each in Marker(SCENE).mark("The background is pink.", "") if each.tag == "misleading"]
    assert wrong.correction == "green"
    assert Marker(SCENE).mark("", "") == []
    for told, wanted in (
        ("There is an orange book in the middle.", ["there is a red book in the middle."]),
        ("There are three cows.", ["a cow", "at the top left"]),
        ("A pig is at the top left.", ["two pigs"]),
    ):
        assert all(word in corrected(told, Marker(SCENE).mark(told, "")).lower() for word in wanted)
    forgetful = "A tractor is on the left. A cow is at the top left. A bus is here. A sheep is here."
    righted = corrected(forgetful, Marker(SCENE).mark(forgetful, ""))
    assert sorted(mentioned(righted)) == ["book", "cow", "pig"] and righted.count(".") == 3
    assert {label.tag for label in Marker(SCENE).mark(righted, "")} == {"correct"}
    both = Marker(SCENE).mark("A cow and a book are at the top.", "")
    assert [(each.start, each.end) for each in both] == [(0, 21), (21, 31)]
    empty = Marker(SCENE).mark("The background is green. What a day! The background is green.", "")
    assert [each.tag for each in empty] == ["correct", "irrelevant", "irrelevant"]


def test_corrections_of_imagined_descriptions_leave_the_truth() -> None:
    generator = np.random.default_rng(3)
    for _ in range(300):
        scene = random_scene(generator)
        told = describe(scene, generator, imagined=True)
        labels = Marker(scene).mark(told, "")
        starts = [(label.start, label.end) for label in labels]
        assert all(a[1] <= b[0] for a, b in zip(starts, starts[1:], strict=False)) and starts[-1][1] <= len(told)
        right = corrected(told, labels)
        assert sorted(mentioned(right)) == sorted(scene.kinds)
        assert {label.tag for label in Marker(scene).mark(right, "")} == {"correct"}


def test_questions_are_answered_by_the_truth_unless_imagined() -> None:
    generator = np.random.default_rng(4)
    wrong = 0
    for _ in range(500):
        scene = random_scene(generator)
        asked, answer = question(scene, generator)
        for kind in KINDS:
            if asked == is_there(kind):
                assert answer == ("Yes." if kind in scene.kinds else "No.")
            if asked == f"How many {plural(kind)} are there?":
                assert COUNTS.index(answer.lower().strip(".")) == sum(thing.kind == kind for thing in scene.things)
        asked, answer = question(scene, generator, imagined=True)
        wrong += any(asked == is_there(kind) and answer == "Yes." for kind in KINDS if kind not in scene.kinds)
    assert 10 < wrong < 60
    assert len(WHERE) == 9


def test_where_things_are_said_to_be_they_are_unless_imagined() -> None:
    generator = np.random.default_rng(5)
    said = {"present": 0, "absent": 0, "imagined": 0}
    for _ in range(600):
        scene = random_scene(generator)
        asked, answer = pointing(scene, generator)
        kind = next(kind for kind in KINDS if asked in (is_there(kind), f"Where is the {kind}?"))
        cells = {thing.cell for thing in scene.things}
        if kind in scene.kinds:
            own = [WHERE[thing.cell] for thing in scene.things if thing.kind == kind]
            assert answer.removeprefix("Yes, ").rstrip(".").lower() in own
            said["present"] += 1
        elif answer == "No.":
            said["absent"] += 1
        else:  # where there is nothing
            assert WHERE.index(answer.removeprefix("Yes, ").rstrip(".")) not in cells
            said["imagined"] += 1
    assert 250 < said["present"] < 350 and 20 < said["imagined"] < said["absent"]


def test_files_keep_pictures_and_truth(tmp_path: Path) -> None:
    file = write_scenes(tmp_path / "a", 5, seed=1)
    again = write_scenes(tmp_path / "b", 5, seed=1)
    assert file.read_text() == again.read_text() != write_scenes(tmp_path / "c", 5, seed=2).read_text()
    scenes = read_scenes(file)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [sorted(scene.kinds) for scene in scenes.values()] == [row["objects"] for row in rows]
    assert load_image(next(iter(scenes))).shape == (3, 192, 192)
    (tmp_path / "bad.jsonl").write_text('{"image": "x.png"}\n')
    with pytest.raises(UserError, match="bad.jsonl line 1 holds no scene"):
        read_scenes(tmp_path / "bad.jsonl")
