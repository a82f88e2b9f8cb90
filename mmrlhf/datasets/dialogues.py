"""Dialogues as one text, in Anthropic's notation ("\\n\\nHuman: …\\n\\nAssistant: …"), and as lists of messages; and back.

The prompt of an `AnswerPair` is all that came before the answer. One message of a user is just its text; a longer dialogue, or
one with a system message, is in Anthropic's notation and ends with "\\n\\nAssistant:"; its answers then begin with a space, so
that prompt + answer is the whole dialogue.
"""

import re
from collections.abc import Sequence
from typing import Any

from mmrlhf.datasets.rows import BadRow

ANSWER = "\n\nAssistant:"
NAMES = {"system": "System", "user": "Human", "assistant": "Assistant"}
TURN = re.compile(r"\n\n(Human|Assistant|System): ?")

Message = dict[str, str]


def split(dialogue: str) -> tuple[str, str]:
    """(all up to the last "\\n\\nAssistant:" and that, the answer after it)."""
    before, mark, answer = dialogue.rpartition(ANSWER)
    if not mark:
        raise BadRow(f"has no turn of the assistant in {dialogue!r:.80}: write \\n\\nHuman: … \\n\\nAssistant: …")
    return before + mark, answer


def messages_of(value: Any, name: str) -> list[Message]:
    """A column that must be a list of messages, their texts joined where they come in parts; images are passed over."""
    if not isinstance(value, list) or not value or not all(isinstance(message, dict) for message in value):
        raise BadRow(f"{name} got {value!r:.80}, allowed is a list of messages")
    return [message_of(message, name) for message in value]


def message_of(message: dict[str, Any], name: str) -> Message:
    """One message as its role and text."""
    role, content = message.get("role"), message.get("content")
    if role not in NAMES:
        raise BadRow(f"{name} has the role {role!r}, allowed are {', '.join(NAMES)}")
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        content = "".join(part.get("text") or "" for part in content if part.get("type") == "text")
    if not isinstance(content, str):
        raise BadRow(f"{name} has the content {content!r:.80}, allowed is a text, or a list of parts")
    return {"role": role, "content": content}


def joined(messages: Sequence[Message], answers: Sequence[str]) -> tuple[str, list[str]]:
    """(the prompt, the answers) as texts."""
    if len(messages) == 1 and messages[0]["role"] == "user":
        return messages[0]["content"], list(answers)
    turns = [f"\n\n{NAMES[message['role']]}: {message['content']}" for message in messages]
    return "".join(turns) + ANSWER, [f" {answer}" for answer in answers]


def parted(prompt: str, answers: Sequence[str]) -> tuple[list[Message], list[str]]:
    """The inverse of `joined`: (messages, the answers without the space that joined them)."""
    if not TURN.match(prompt) or not prompt.endswith(ANSWER):
        return [{"role": "user", "content": prompt}], list(answers)
    roles = {name: role for role, name in NAMES.items()}
    _, *parts = TURN.split(prompt.removesuffix(ANSWER))
    messages = [{"role": roles[name], "content": text} for name, text in zip(parts[::2], parts[1::2], strict=True)]
    return messages, [answer.removeprefix(" ") for answer in answers]
