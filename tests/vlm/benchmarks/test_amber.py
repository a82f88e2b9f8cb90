import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmrlhf.errors import UserError
from tests.vlm.benchmarks.files import json_list, responses
from vlm.benchmarks import amber

REAL = Path(__file__).parents[4] / "shared" / "data" / "hallucination" / "amber"
RELATION = {"dog": ["puppy"], "cat": [], "forest": ["tree"], "tree": ["forest"], "sky": [], "sun": [], "shoe": []}
ANNOTATIONS = [
    {"id": 1, "type": "generative", "truth": ["dog", "forest"], "hallu": ["cat", "sun"]},
    {"id": 2, "type": "generative", "truth": ["sky", "tree", "sky"], "hallu": ["dog"]},
    {"id": 3, "type": "discriminative-hallucination", "truth": "no"},
    {"id": 4, "type": "discriminative-attribute-state", "truth": "yes"},
    {"id": 5, "type": "discriminative-attribute-number", "truth": "no"},
    {"id": 6, "type": "relation", "truth": "no"},
]
RIGHT = {1: "A dog in a forest.", 2: "The sky above trees.", 3: "No", 4: "Yes", 5: "No", 6: "No"}


def folder(path: Path) -> Path:
    """AMBER's folder, small."""
    json_list(path / "annotations.json", ANNOTATIONS)
    (path / "relation.json").write_text(json.dumps(RELATION))
    (path / "safe_words.txt").write_text("shoe\n")
    json_list(path / "query_discriminative.json", [{"id": n, "image": f"{n % 2}.jpg"} for n in (3, 4, 5, 6)])
    return path


def score(path: Path, texts: Mapping[int, str], **options: Any) -> dict[str, Any]:
    return amber.score(json_list(path / "answers.json", responses(texts)), folder(path), **options)


def test_by_hand(tmp_path: Path) -> None:
    """1: dog, cat, tree, shoe (safe) and cat: 2 of 5 false; both objects, one imagined. 2: puppies alone, false."""
    found = score(tmp_path, {1: "A dog, a cat, a tree, a shoe; the cat.", 2: "Puppies."})
    assert found["chair"] == pytest.approx(300 / 6) and found["hal"] == 100
    assert found["cover"] == pytest.approx(200 / 5) and found["cog"] == pytest.approx(200 / 3)
    assert found["chair_per_answer"] == pytest.approx(100 * (2 / 5 + 1) / 2)
    assert found["cover_per_answer"] == pytest.approx(100 * (1 + 0) / 2)
    assert found["cog_per_answer"] == pytest.approx(100 * (2 / 5 + 1) / 2)
    assert found["n"] == found["generative_n"] == 2 and found["missing"] == 0
    assert "accuracy" not in found and "score" not in found
    assert any("word vectors" in note for note in found["notes"]) and any("tagger" in note for note in found["notes"])
    low, high = found["chair_ci95"]
    assert low == pytest.approx(40) and high == 100


def test_one_credit_a_noun(tmp_path: Path) -> None:
    """A tree stands for forest and for tree; with one credit for the first that it is associated with only."""
    relation = {"forest": ["tree"], "tree": ["forest"]}
    assert amber.named(["tree"], ["forest", "tree"], relation) == 2
    assert amber.named_one_credit(["tree"], ["forest", "tree"], relation) == 1
    assert amber.named_one_credit(["tree", "forest"], ["forest", "tree"], relation) == 2
    assert amber.named_one_credit(["tree"], ["dog"], relation) == 0
    found = score(tmp_path, {1: "dog, forest", 2: "sky, tree"})
    assert found["cover"] == 100 and found["cover_one_credit"] == pytest.approx(80)


def test_true_answers(tmp_path: Path) -> None:
    found = score(tmp_path, RIGHT)
    assert [found[name] for name in ("chair", "cover", "hal", "cog")] == [0, 100, 0, 0]
    assert [found[name] for name in ("accuracy", "precision", "recall", "f1", "score")] == [100] * 5


def test_false_answers(tmp_path: Path) -> None:
    found = score(tmp_path, {1: "Cats and the sun.", 2: "A puppy", 3: "Yes", 4: "No", 5: "Yes", 6: "yes."})
    assert [found[name] for name in ("chair", "cover", "hal", "cog")] == [100, 0, 100, 100]
    assert [found[name] for name in ("accuracy", "precision", "recall", "f1", "score")] == [0] * 5


def test_no_is_the_positive(tmp_path: Path) -> None:
    """Said no: 3 (true) and 4 (false). No is true of 3, 5, 6; what is neither yes nor no is wrong, and no positive."""
    found = score(tmp_path, RIGHT | {3: "No, it is not.", 4: "no", 5: "Perhaps", 6: "No"})
    assert found["accuracy"] == 50 and found["unread"] == 1
    assert found["precision"] == pytest.approx(200 / 3) and found["recall"] == pytest.approx(200 / 3)
    assert found["score"] == pytest.approx((100 - 0 + found["f1"]) / 2)
    assert found["by_type"]["attribute"]["n"] == 2 and found["by_type"]["attribute"]["accuracy"] == 0
    assert found["by_type"]["existence"]["f1"] == found["by_type"]["relation"]["f1"] == 100
    assert found["by_type"]["state"]["precision"] == 0 and found["by_type"]["number"]["recall"] == 0
    assert any("1 of 4 answers begin with neither" in note for note in found["notes"])


def test_answers_that_name_nothing_have_no_chair(tmp_path: Path) -> None:
    found = score(tmp_path, RIGHT | {1: "Nothing.", 2: "Nothing."})
    assert found["chair"] is found["chair_ci95"] is found["chair_per_answer"] is found["score"] is None
    assert found["cover"] == found["hal"] == 0


def test_a_dimension_that_is_begun_must_be_whole(tmp_path: Path) -> None:
    assert score(tmp_path, {1: "dog", 2: "sky"})["missing"] == 0
    assert score(tmp_path, {6: "No"})["missing"] == 0
    with pytest.raises(UserError, match=r"2 of 4 answers are missing \(ids 2, 5\): give them all, or --partial"):
        score(tmp_path, {1: "dog", 4: "No"})
    found = score(tmp_path, {1: "dog", 4: "No"}, partial=True)
    assert found["missing"] == 2 and "2 of 4 answers are missing: figures are of those there" in found["notes"]
    assert any("nothing of existence, relation is answered" in note for note in found["notes"])


def test_unknown_ids_and_other_data(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"has the unknown id 99 \(1 such of 1\): allowed are those of the data, 1, 2, 3"
    ):
        score(tmp_path, {99: "dog"}, partial=True)
    file = json_list(tmp_path / "answers.json", responses({1: "dog"}))
    with pytest.raises(UserError, match="cannot read .*annotations.json .*give AMBER's folder"):
        amber.score(file, tmp_path / "nowhere")
    for entry, message in [
        ({"id": 1, "type": "new"}, "has the type 'new', allowed are generative"),
        ({"id": 1, "type": "relation", "truth": "maybe"}, "has 'maybe' for truth, allowed are yes and no"),
        ({"id": 1, "type": "generative", "truth": "dog"}, "has 'dog' for truth, allowed is a list of texts"),
    ]:
        json_list(tmp_path / "annotations.json", [entry])
        with pytest.raises(UserError, match=message):
            amber.score(file, tmp_path)
    json_list(tmp_path / "annotations.json", [ANNOTATIONS[0]] * 2)
    with pytest.raises(UserError, match="has the id 1 a second time: give each question once"):
        amber.score(file, tmp_path)


WORDS = [*RELATION, "puppies", "trees", "nothing"]


SAID = st.lists(st.sampled_from(WORDS), min_size=1)
YES_NO = st.lists(st.sampled_from(["Yes", "No", "?"]), min_size=4, max_size=4)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=12, deadline=None)
@given(st.tuples(SAID, SAID), YES_NO)
def test_order_does_not_matter_and_figures_are_percentages(
    tmp_path: Path, said: tuple[list[str], list[str]], answers: list[str]
) -> None:
    texts = {number: ", ".join(words) for number, words in enumerate(said, start=1)}
    texts |= dict(enumerate(answers, start=3))
    found = score(tmp_path, texts)
    assert found == score(tmp_path, dict(reversed(texts.items())))
    for name in ("chair", "cover", "hal", "cog", "accuracy", "precision", "recall", "f1", "score", "cog_per_answer"):
        assert found[name] is None or 0 <= found[name] <= 100
        bounds = found[f"{name}_ci95"]
        assert bounds is None or 0 <= bounds[0] <= bounds[1] <= 100


def naive(
    annotations: list[dict], relation: dict[str, list[str]], safe: set[str], said: Mapping[int, list[str]]
) -> dict:
    """AMBER's pooled figures, loop by loop, from the words that were put into the answers."""
    false = total = covered = there = imagined = imaginable = wrong = described = 0
    for entry in annotations:
        if entry["type"] != "generative":
            continue
        described += 1
        bad = []
        for noun in said[entry["id"]]:
            total += 1
            is_true = noun in safe
            for thing in entry["truth"]:
                if noun == thing or noun in relation[thing]:
                    is_true = True
            if not is_true:
                bad.append(noun)
        false += len(bad)
        wrong += len(bad) > 0
        for thing in entry["truth"]:
            there += 1
            covered += any(noun == thing or noun in relation[thing] for noun in said[entry["id"]])
        for thing in entry["hallu"]:
            imaginable += 1
            imagined += any(noun == thing or noun in relation[thing] for noun in bad)
    pairs = {
        "chair": (false, total),
        "cover": (covered, there),
        "hal": (wrong, described),
        "cog": (imagined, imaginable),
    }
    return {name: 100 * part / whole for name, (part, whole) in pairs.items()}


def real(name: str) -> Any:
    if not REAL.exists():
        pytest.skip("shared/data/hallucination/amber is not there")
    return json.loads((REAL / name).read_text())


def test_real_data_by_brute_force(tmp_path: Path) -> None:
    """Random words, true, likely imagined and others; every sixth yes/no question, answered at random."""
    annotations, relation = real("annotations.json"), real("relation.json")
    safe = set((REAL / "safe_words.txt").read_text().split())
    vocabulary = sorted({word for name, words in relation.items() for word in (name, *words)} - {"TV"})
    generator = random.Random(0)
    said, rows, asked, right, no, true_no, both = {}, [], 0, 0, 0, 0, 0
    for entry in annotations:
        if entry["type"] == "generative":
            pool = entry["truth"] * 2 + entry["hallu"] + generator.sample(vocabulary, 3)
            said[entry["id"]] = generator.choices(pool, k=6)
            text = "It shows " + ", ".join(said[entry["id"]]) + "."
        elif entry["id"] % 6:
            continue
        else:
            asked += 1
            text = generator.choice(["Yes", "No", entry["truth"].title()])
            right += text.lower() == entry["truth"]
            no += text == "No"
            true_no += entry["truth"] == "no"
            both += text == "No" and entry["truth"] == "no"
        rows.append({"id": entry["id"], "response": text})
    found = amber.score(json_list(tmp_path / "answers.json", rows), REAL, partial=True)
    expected = naive(annotations, relation, safe, said)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    assert found["n"] == 1004 + asked and found["missing"] == 14216 - asked and asked > 2000
    assert found["accuracy"] == pytest.approx(100 * right / asked, abs=1e-5)
    precision, recall = both / no, both / true_no
    assert found["precision"] == pytest.approx(100 * precision, abs=1e-5)
    assert found["recall"] == pytest.approx(100 * recall, abs=1e-5)
    f1 = 200 * precision * recall / (precision + recall)
    assert found["score"] == pytest.approx((100 - expected["chair"] + f1) / 2, abs=1e-5)


def test_real_data_with_true_answers(tmp_path: Path) -> None:
    """The descriptions alone, in a folder of their own."""
    described = [entry for entry in real("annotations.json") if entry["type"] == "generative"]
    json_list(tmp_path / "annotations.json", described)
    for name in ("relation.json", "safe_words.txt"):
        (tmp_path / name).write_text((REAL / name).read_text())
    rows = [{"id": entry["id"], "response": ", ".join(entry["truth"])} for entry in described]
    found = amber.score(json_list(tmp_path / "answers.json", rows), tmp_path)
    assert [found[name] for name in ("n", "chair", "cover", "hal", "cog")] == [1004, 0, 100, 0, 0]
    assert 90 < found["cover_one_credit"] < 100


def test_images_are_resampled_where_the_authors_keep_their_queries(tmp_path: Path) -> None:
    """In query/; without any queries the answers are, and the note says so."""
    note = "intervals resample images"
    flat = score(tmp_path, {n: "No" for n in (3, 4, 5, 6)})
    queries = tmp_path / "query_discriminative.json"
    (tmp_path / "query").mkdir()
    queries.rename(tmp_path / "query" / queries.name)
    answers = tmp_path / "answers.json"
    theirs = amber.score(answers, tmp_path)
    assert theirs == flat and any(note in each for each in theirs["notes"])
    (tmp_path / "query" / queries.name).unlink()
    without = amber.score(answers, tmp_path)
    assert not any(note in each for each in without["notes"])
    assert any("intervals resample answers, as AMBER's queries" in each for each in without["notes"])


def test_answers_that_say_nothing_are_scored_and_told(tmp_path: Path) -> None:
    found = score(tmp_path, {1: "", 2: "sky"})
    assert found["n"] == 2 and found["cover"] < score(tmp_path, {1: "dog", 2: "sky"})["cover"]
    assert "1 of 2 answers are empty, and count as answers that name nothing" in found["notes"]
    assert score(tmp_path, {1: " ", 2: ""})["chair"] is None
