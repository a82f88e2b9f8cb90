"""Dialogues as text and as messages, and back."""

from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf.datasets.dialogues import joined, messages_of, parted, split

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\n"), min_size=1).filter(lambda t: not t[0].isspace())


@settings(max_examples=50, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=7), st.booleans(), TEXT)
def test_messages_to_text_and_back(texts: list[str], with_system: bool, answer: str) -> None:
    roles = ["system"] * with_system + ["user", "assistant"] * 4
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    prompt, answers = joined(messages, [answer])
    assert parted(prompt, answers) == (messages, [answer])


def test_a_longer_dialogue_is_in_anthropic_s_notation() -> None:
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hi"}]},
    ]
    prompt, (answer,) = joined(messages_of(messages, "prompt"), ["Hello"])
    assert prompt == "\n\nSystem: Be kind.\n\nHuman: Hi\n\nAssistant:" and answer == " Hello"
    assert split(prompt + answer) == (prompt, answer)
    assert joined([{"role": "user", "content": "Hi"}], ["Hello"]) == ("Hi", ["Hello"])
