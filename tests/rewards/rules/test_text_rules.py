"""Rewards of answers: counted by hand, and words in their forms."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.errors import UserError
from mmrlhf.rewards.rules.text_rules import AnswerReward, Length, PromptCoverage, content_words, stem, words


def test_words_of_a_text() -> None:
    assert words("The CAT’s hat, don't re-read 3 émus_x!") == [
        "the",
        "cat's",
        "hat",
        "don't",
        "re",
        "read",
        "3",
        "émus",
        "x",
    ]
    assert content_words("A cat and the other Cat's hat; a CAT") == ["cat", "cat's", "hat"]


@pytest.mark.parametrize(
    "forms",
    ["cat cats cat's cats'", "dance dances danced dancing", "run runs running", "puppy puppies", "carry carries carried",
     "stop stops stopped stopping", "kiss kisses kissed", "box boxes", "watch watches watching", "fall falls falling",
     "glass glasses", "bus buses", "horse horses", "see sees seeing", "bleed bleeds bleeding", "die dies died",
     "tree trees", "play playing played"],
)  # fmt: skip
def test_forms_of_a_word_share_a_stem(forms: str) -> None:
    assert len({stem(form) for form in forms.split()}) == 1


def test_different_words_keep_different_stems() -> None:
    different = "cat car king ring sing bring red bed his this glass gas wing thing bus bee star sheep"
    assert len({stem(word) for word in different.split()}) == len(different.split())


def test_length() -> None:
    answers = ["Two dogs.", "", "one two three, four"]
    assert Length()([""] * 3, answers).tolist() == [2, 0, 4]
    assert Length("characters")([""] * 3, answers).tolist() == [9, 0, 19]
    assert Length(target=4)([""] * 3, answers).tolist() == [-0.5, -1, 0]
    with pytest.raises(UserError, match="target of a length got 0, allowed is 1 or more"):
        Length(target=0)


def test_coverage_by_hand() -> None:
    prompts = ["Describe two red cats running", "Describe two red cats running", "what is it", "a cat"]
    answers = ["A red cat runs.", "Nothing here.", "a cat", "CATS!"]
    scores = PromptCoverage()(prompts, answers).tolist()
    assert scores[:2] == pytest.approx([3 / 5, 0]) and scores[2] != scores[2] and scores[3] == 1


@given(st.lists(st.sampled_from("cat dogs the red running of".split()), min_size=1), st.text(max_size=30))
def test_coverage_is_a_share_and_grows_with_the_answer(asked: list[str], answer: str) -> None:
    prompt = " ".join(asked)
    alone, repeated = PromptCoverage()([prompt, prompt], [answer, f"{answer} {prompt}"]).tolist()
    if content_words(prompt):
        assert 0 <= alone <= repeated == 1
    else:
        assert alone != alone


@pytest.mark.parametrize("reward", [Length("characters", 5), PromptCoverage()])
def test_it_is_a_picklable_answer_reward(reward: AnswerReward) -> None:
    assert isinstance(reward, AnswerReward)
    again = pickle.loads(pickle.dumps(reward))
    assert again(["a cat"], ["cats"]).tolist() == reward(["a cat"], ["cats"]).tolist()
