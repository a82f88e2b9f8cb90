"""Prompts, pictures and answers as the tokens that a vision-language model learns from, and where the answer's characters are."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmrlhf.errors import UserError
from mmrlhf.rewards.language.inputs import Reader, Row, picture, tokenizer_of

Offsets = tuple[tuple[int, int], ...]


class Tokens(NamedTuple):
    """An answer's tokens, and the characters [start, end) of the answer that each stands for (the end mark: none)."""

    ids: tuple[int, ...]
    offsets: Offsets


class Encoded(NamedTuple):
    """Rows as a batch. `inputs` is what the model reads, padded on the right; the answer begins at `starts`.

    `answers` and `mask` are the answer's tokens alone, from its first on. With `prompts`, `inputs` is every prompt once, without
    an answer, and that of row i is number `prompts[i]`.
    """

    inputs: dict[str, Tensor]
    starts: Int[Tensor, " b"]
    answers: Int[Tensor, "b t"]
    mask: Bool[Tensor, "b t"]
    prompts: Int[Tensor, " b"] | None = None

    def to(self, device: torch.device, dtype: torch.dtype) -> "Encoded":
        """On a device; pictures in `dtype`."""
        starts, answers, mask = (each.to(device) for each in (self.starts, self.answers, self.mask))
        prompts = None if self.prompts is None else self.prompts.to(device)
        return Encoded(moved(self.inputs, device, dtype), starts, answers, mask, prompts)


def moved(inputs: dict[str, Tensor], device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """What a model reads on its device; pictures in `dtype`."""
    return {name: value.to(device, dtype if value.is_floating_point() else None) for name, value in inputs.items()}


def at_answers(
    hidden: Float[Tensor, "b l d"], starts: Int[Tensor, " b"], mask: Bool[Tensor, "b t"]
) -> Float[Tensor, "b t d"]:
    """The states at the places from `starts` on, one for each token of an answer; 0 outside `mask`."""
    places = starts.unsqueeze(1) + torch.arange(mask.shape[1], device=hidden.device)
    rows = torch.arange(len(hidden), device=hidden.device).unsqueeze(1)
    return hidden[rows, places.clamp(max=hidden.shape[1] - 1)] * mask.unsqueeze(-1)


def answer_tokens(reader: Reader, row: Row, ends: Sequence[int]) -> Tokens:
    """The tokens of a row's answer as they follow its prompt in the model's template, with the mark that ends it.

    What the template adds after the answer stays where it is one of the tokens that end an answer (`ends`), else the first of
    `ends` is added. UserError where the template puts the answer anywhere but after the prompt.
    """
    assert row.answer is not None
    before, whole = reader.text(row._replace(answer=None)), reader.text(row)
    first = whole.find(row.answer.strip(), len(before)) if whole.startswith(before) else -1
    if first < 0:
        raise UserError(
            "the model's chat template does not put the answer after the prompt as it stands: give --template with {prompt} and "
            "{answer} in it"
        )
    found = tokenizer_of(reader.processor)(whole, add_special_tokens=False, return_offsets_mapping=True)
    pairs = zip(found["input_ids"], found["offset_mapping"], strict=True)
    own = [(token, start - first, end - first) for token, (start, end) in pairs if end > len(before)]
    length = len(row.answer.strip())
    while own and own[-1][0] not in ends and own[-1][1] >= length:
        own.pop()  # white space, or whatever else a template puts behind
    if not own or own[-1][0] not in ends:
        own.append((ends[0], length, length))
    # characters of the answer as it was given, white space at its beginning included
    shift = len(row.answer) - len(row.answer.lstrip())
    clipped = [(min(max(start, 0), length) + shift, min(max(end, 0), length) + shift) for _, start, end in own]
    return Tokens(tuple(token for token, _, _ in own), tuple(clipped))


def encode_prompts(reader: Reader, rows: Sequence[Row], side: str) -> dict[str, Tensor]:
    """Prompts with their pictures, ready to be answered, padded on the given side."""
    asked = [row._replace(answer=None) for row in rows]
    texts = [reader.text(row) for row in asked]
    pictures = [picture(row.image) for row in asked if row.image is not None]
    return reader.process(texts, pictures, padding=True, padding_side=side, return_tensors="pt")


def encode(
    reader: Reader, rows: Sequence[Row], answers: Sequence[Sequence[int]], padding: int, *, share: bool = False
) -> Encoded:
    """The rows' prompts, each followed by the tokens of its answer (as `answer_tokens` or a policy gives them).

    With `share`, prompts that occur several times are kept apart from the answers. UserError for a row of more tokens than
    `reader.max_length`: nothing is cut off.
    """
    numbers = repeated([(row.prompt, row.image) for row in rows])
    shared = share and len(set(numbers)) < len(rows)
    prompts = encode_prompts(
        reader, [rows[numbers.index(n)] for n in range(max(numbers) + 1)] if shared else rows, "right"
    )
    lengths = prompts["attention_mask"].sum(dim=1)
    starts = lengths[numbers] if shared else lengths
    totals = [int(length) + len(answer) for length, answer in zip(starts, answers, strict=True)]
    if max(totals) > reader.max_length:
        longest = totals.index(max(totals))
        raise UserError(
            f"the answer {tokenizer_of(reader.processor).decode(answers[longest])!r:.60} has with its prompt {max(totals)} "
            f"tokens, allowed are {reader.max_length}: shorten it, or leave it out with --too-long drop"
        )
    tokens = torch.full((len(rows), max(map(len, answers))), padding)
    mask = torch.zeros(tokens.shape, dtype=torch.bool)
    for i, answer in enumerate(answers):
        tokens[i, : len(answer)] = torch.tensor(list(answer), dtype=torch.long)
        mask[i, : len(answer)] = True
    if shared:
        return Encoded(prompts, starts, tokens, mask, torch.tensor(numbers))
    return Encoded(with_answers(prompts, answers, padding), starts, tokens, mask)


def repeated(keys: Sequence[tuple[str, Any]]) -> list[int]:
    """The number of each key among the different ones, in the order in which they first come; tensors are the same or not."""
    found: dict[Any, int] = {}
    marks = [(prompt, id(image) if isinstance(image, Tensor) else image) for prompt, image in keys]
    return [found.setdefault(mark, len(found)) for mark in marks]


def with_answers(prompts: dict[str, Tensor], answers: Sequence[Sequence[int]], padding: int) -> dict[str, Tensor]:
    """What a model reads of prompts that are padded on the right, each followed by the tokens of its answer."""
    lengths = prompts["attention_mask"].sum(dim=1).tolist()
    totals = [length + len(answer) for length, answer in zip(lengths, answers, strict=True)]
    inputs: dict[str, Tensor] = {}
    for name, value in prompts.items():
        if value.shape[:2] != prompts["input_ids"].shape:
            inputs[name] = value  # pictures and their sizes
            continue
        grown = value.new_full((len(answers), max(totals)), padding if name == "input_ids" else 0)
        for i, (length, answer) in enumerate(zip(lengths, answers, strict=True)):
            grown[i, :length] = value[i, :length]
            if name == "input_ids":
                grown[i, length : totals[i]] = torch.tensor(answer, dtype=value.dtype)
            elif name == "attention_mask":
                grown[i, length : totals[i]] = 1
        inputs[name] = grown
    return inputs
