from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf.errors import UserError
from tests.vlm.benchmarks.files import json_lines, json_list, responses
from vlm.benchmarks import chair, object_halbench

TRUTH = [
    {"id": 1, "objects": ["dog", "sofa"]},
    {"id": 2, "objects": ["hot dog", "person"]},
    {"id": 3, "objects": ["cat"]},
]
SYNONYMS = "person, man, woman\nsofa, couch\ndog, puppy\nhot dog\ncup, mug\n"


def folder(path: Path) -> Path:
    json_lines(path / "objects.jsonl", TRUTH)
    (path / "synonyms.txt").write_text(SYNONYMS)
    return path


SAID = {1: "A puppy, a dog and a mug on a couch.", 2: "Two women.", 3: "It is late."}


def test_by_hand() -> None:
    """3 of 7 mentions false, in 2 of 3 answers; 2 of 4 true objects named."""
    mentions = [["a", "x", "x", "a", "b"], ["y", "a"], []]
    found = chair.chair(mentions, [{"a", "b"}, {"a", "c"}, {"d"}], [10, 5, 0])
    assert found.chair_i == pytest.approx(300 / 7, abs=1e-5) and found.chair_s == pytest.approx(200 / 3, abs=1e-5)
    assert found.coverage == pytest.approx(60) and found.length == 5
    assert chair.chair(mentions, [["a", "b"], ["a", "c"], ["d"]]) == found._replace(length=None)


def test_perfect_worst_and_silent() -> None:
    assert chair.chair([["a"], ["b", "b"]], [{"a"}, {"b"}], [1, 2]) == (0, 0, 100, 1.5)
    assert chair.chair([["x"]], [{"a"}]) == (100, 100, 0, None)
    assert chair.chair([[]], [{"a"}]) == (None, 0, 0, None)
    assert chair.chair([["x"]], [set()]) == (100, 100, None, None)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.lists(st.sampled_from("abcd")), st.sets(st.sampled_from("abcd"))), min_size=1, max_size=9))
def test_percentages_in_any_order(answers: list[tuple[list[str], set[str]]]) -> None:
    mentions, truths = map(list, zip(*answers, strict=True))
    found = chair.chair(mentions, truths)
    assert found == chair.chair(mentions[::-1], truths[::-1])
    assert all(value is None or 0 <= value <= 100 for value in found)
    false = [name for said, truth in answers for name in said if name not in truth]
    total = sum(len(said) for said in mentions)
    assert found.chair_i == (pytest.approx(100 * len(false) / total, abs=1e-5) if total else None)


def test_lists_of_other_lengths() -> None:
    with pytest.raises(UserError, match="CHAIR got 1 answers, 2 truths and 1 lengths: give as many"):
        chair.chair([["a"]], [{"a"}, {"b"}])
    with pytest.raises(UserError, match="CHAIR got 0 answers"):
        chair.chair([], [])


def test_a_file_of_answers(tmp_path: Path) -> None:
    """Named: dog, dog, cup (false), sofa; person; nothing. 1 of 5 mentions, 1 of 3 answers; 3 of 5 objects."""
    found = chair.score(json_list(tmp_path / "a.json", responses(SAID)), folder(tmp_path))
    assert found["chair_i"] == 20 and found["chair_s"] == pytest.approx(100 / 3, abs=1e-5)
    assert found["coverage"] == 60 and found["length"] == pytest.approx((10 + 2 + 3) / 3, abs=1e-5)
    assert found["n"] == 3 and len(found["chair_i_ci95"]) == 2 and "chair_s_naming" not in found
    true = {1: "dog, sofa", 2: "hot dog, man", 3: "cats"}
    found = chair.score(json_list(tmp_path / "a.json", responses(true)), tmp_path)
    assert [found[name] for name in ("chair_i", "chair_s", "coverage")] == [0, 0, 100]


def test_synonyms_as_a_table_and_none(tmp_path: Path) -> None:
    answers = json_list(tmp_path / "a.json", responses(SAID))
    file = json_list(tmp_path / "truth.json", [{"image": row["id"], "objects": row["objects"]} for row in TRUTH])
    assert chair.score(answers, file)["chair_i"] == 0  # nothing known but the true objects: one dog
    (tmp_path / "synonyms.json").write_text(
        '{"person": ["woman"], "Sofa": ["couch"], "dog": ["puppy"], "cup": ["mug"]}'
    )
    assert chair.score(answers, file)["chair_i"] == 20


def test_object_halbench_divides_by_answers_that_name_something(tmp_path: Path) -> None:
    answers = json_list(tmp_path / "a.json", responses(SAID))
    found = object_halbench.score(answers, folder(tmp_path))
    assert found["response_rate"] == 50 and found["mention_rate"] == 20 and found["coverage"] == 60
    assert "the data have 3 images, the published benchmark 300" in found["notes"]
    assert any("ChatGPT" in note for note in found["notes"])


@pytest.mark.parametrize("score", [chair.score, object_halbench.score])
def test_bad_input(tmp_path: Path, score: object) -> None:
    assert callable(score)
    some = json_list(tmp_path / "a.json", responses({1: "dog"}))
    with pytest.raises(UserError, match="has no objects.jsonl or objects.json"):
        score(some, tmp_path)
    with pytest.raises(UserError, match=r"2 of 3 answers are missing \(ids 2, 3\)"):
        score(some, folder(tmp_path))
    found = score(some, tmp_path, partial=True)
    assert found["missing"] == 2 and found["n"] == 1 and "2 of 3 answers are missing" in found["notes"][0]
    with pytest.raises(UserError, match="has the unknown id 4"):
        score(json_list(tmp_path / "a.json", responses({4: "dog"})), tmp_path, partial=True)
    json_lines(tmp_path / "objects.jsonl", [TRUTH[0]] * 2)
    with pytest.raises(UserError, match="has the id 1 a second time: give each image once"):
        score(some, tmp_path)
    (tmp_path / "synonyms.json").write_text('{"dog": "puppy"}')
    json_lines(tmp_path / "objects.jsonl", TRUTH)
    with pytest.raises(UserError, match="has 'puppy' for dog, allowed is a list of texts"):
        score(some, tmp_path)
