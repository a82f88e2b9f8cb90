import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm.benchmarks.words import Vocabulary, singular_forms

AMBER = ["sky", "can", "hot", "watch", "light", "painting", "railing", "sailing", "knife", "leave", "TV", "chopsticks", "bus",
         "cherry", "people", "man", "woman", "child", "e-book", "bench", "tomato", "glass", "note", "goose", "duck", "water",
         "boat", "wall"]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The sky, the SKY and skies.", ["sky", "sky", "sky"]),
        (
            "Knives, leaves, cherries, benches, buses, tomatoes and geese",
            "knife leave cherry bench bus tomato goose".split(),
        ),
        ("men, women's hats and the child’s toy", ["man", "woman", "child"]),
        ("a TV, two tvs, an e-book and a chopstick", ["tv", "tv", "e-book", "chopsticks"]),
        ("glasses of glass", ["glass", "glass"]),
        ("skyline, canes, glassy", []),
        ("", []),
    ],
)
def test_nouns_in_singular_or_plural(text: str, found: list[str]) -> None:
    assert Vocabulary({word: () for word in AMBER}).mentions(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("You can see that a dog can be seen, and this can.", []),
        ("a can, trash cans, can", ["can", "can", "can"]),
        ("A hot meal looks hot.", []),
        ("sky, hot, can, watch.", ["sky", "hot", "can", "watch"]),
        ("They watch a film; to watch; a watch on the arm", ["watch"]),
        ("light blue wall under a light", ["wall", "light"]),
        ("She is painting a painting behind the railing", ["painting", "railing"]),
        ("boats sailing on water", ["boat", "water"]),
        ("It leaves the wall. Note that the leaves fall", ["wall", "leave"]),
    ],
)
def test_words_with_other_uses_count_only_as_nouns(text: str, found: list[str]) -> None:
    assert Vocabulary({word: () for word in AMBER}).mentions(text) == found


def test_several_words_and_synonyms_the_longest_wins() -> None:
    vocabulary = Vocabulary(
        {"hot dog": ["frankfurter"], "dog": ["puppy"], "dining table": ["table"], "person": ["dog walker"]}
    )
    text = "Two hot dogs, a dog and puppies at the dining table; Frankfurters on tables. A dog walker."
    named = ["hot dog", "dog", "dog", "dining table", "hot dog", "dining table", "person"]
    assert vocabulary.mentioned_objects(text) == named


def test_a_name_comes_before_a_synonym_and_the_first_object_before_others() -> None:
    vocabulary = Vocabulary({"cup": ["mug", "glass"], "glass": ["mug"]})
    assert vocabulary.mentioned_objects("glass, mug") == ["glass", "cup"]


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_text_names_only_words_of_the_vocabulary(text: str) -> None:
    assert {*Vocabulary({word: () for word in AMBER}).mentions(text)} <= {word.lower() for word in AMBER}


@settings(deadline=None)
@given(st.lists(st.sampled_from([word.lower() for word in AMBER]), min_size=1))
def test_a_list_of_nouns_is_read_back(words: list[str]) -> None:
    assert Vocabulary({word: () for word in AMBER}).mentions(", ".join(words) + ".") == words


def test_singular_forms() -> None:
    assert "knife" in singular_forms("knives") and "sky" in singular_forms("skies")
    assert singular_forms("fishermen") == ["fisherman"]
    assert singular_forms("hot dogs") == ["hot dog"]
    assert singular_forms("glass") == [] and "can" not in singular_forms("canes")
