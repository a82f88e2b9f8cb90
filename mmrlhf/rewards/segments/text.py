"""Segment rewards on text: spans of characters as spans of tokens, and a language model's hidden states as their features."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModel, AutoTokenizer

from mmrlhf.errors import UserError
from mmrlhf.models import quiet_loading, resolve_model
from mmrlhf.rewards.segments.labels import SpanLabel
from mmrlhf.segments import SegmentedItem, SegmentScore

Offsets = Sequence[tuple[int, int]]


class TextFeatures(NamedTuple):
    """Hidden states of `b` texts of up to `t` tokens; `mask` has the tokens of the answers, `offsets` their characters there."""

    features: Float[Tensor, "b t f"]
    mask: Bool[Tensor, "b t"]
    offsets: list[list[tuple[int, int]]]


class TextEncoder:
    """What one layer of a language model of `transformers` makes of texts: 0 is its embeddings, -1 the last layer's output."""

    def __init__(self, model: Any, tokenizer: Any, *, layer: int = -1) -> None:
        if model.config.is_encoder_decoder:
            raise UserError(
                f"{type(model).__name__} reads with an encoder and answers with a decoder: give a model that is one of the two"
            )
        layers = model.config.get_text_config().num_hidden_layers
        if not -layers - 1 <= layer <= layers:
            raise UserError(
                f"layer got {layer}, allowed is {-layers - 1} to {layers}: the model has {layers}, 0 its embeddings"
            )
        if not tokenizer.is_fast:
            raise UserError(
                f"{type(tokenizer).__name__} tells no offsets of its tokens: give a model with a fast tokenizer"
            )
        self.model, self.tokenizer, self.layer = model.eval().requires_grad_(False), tokenizer, layer

    @classmethod
    def load(cls, model: str | Path, *, layer: int = -1, device: str = "cpu") -> "TextEncoder":
        """From a folder or hub id that AutoModel and AutoTokenizer take (a causal model's too), in float32."""
        source = resolve_model(str(model))
        try:
            with quiet_loading():
                tokenizer = AutoTokenizer.from_pretrained(source)
                network = AutoModel.from_pretrained(source, dtype=torch.float32)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            reason = str(error).strip().split("\n")[0][:200]
            raise UserError(
                f"no language model in {model} ({reason}): give the folder of one with its tokenizer"
            ) from error
        network.config.use_cache = False  # of keys and values, which nothing would read again
        return cls(network.to(device), tokenizer, layer=layer)

    def encode(
        self,
        answers: Sequence[str],
        prompts: Sequence[str] | None = None,
        *,
        batch_size: int = 16,
        progress: bool = False,
    ) -> TextFeatures:
        """Features of the tokens of each answer, read after its prompt as it stands (put a template around it before).

        On the CPU in float32; offsets are positions in the answer, so those of a prompt are below 0. UserError for a text of
        more tokens than the model reads: nothing is cut off.
        """
        prompts = [""] * len(answers) if prompts is None else list(prompts)
        if len(prompts) != len(answers):
            raise UserError(f"got {len(prompts)} prompts for {len(answers)} answers: give one an answer")
        texts = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
        ids, offsets = self.tokens(texts) if texts else ([], [])
        own = [[(first - len(p), last - len(p)) for first, last in o] for o, p in zip(offsets, prompts, strict=True)]
        width = max(map(len, ids), default=0)
        features = torch.zeros(len(ids), width, self.model.config.get_text_config().hidden_size)
        mask = torch.zeros(len(ids), width, dtype=torch.bool)
        for i, places in enumerate(own):  # special tokens are empty, those of the prompt end before 0
            mask[i, : len(places)] = torch.tensor([last > max(first, 0) for first, last in places], dtype=torch.bool)
        order = sorted((i for i in range(len(ids)) if ids[i]), key=lambda i: len(ids[i]))  # like lengths together
        for start in tqdm(range(0, len(order), batch_size), desc="read", unit="batch", disable=not progress):
            rows = order[start : start + batch_size]
            hidden = self.hidden_states([ids[i] for i in rows])
            features[rows, : hidden.shape[1]] = hidden
        return TextFeatures(features * mask.unsqueeze(-1), mask, own)

    def tokens(self, texts: Sequence[str]) -> tuple[list[list[int]], list[list[tuple[int, int]]]]:
        """(token ids, their characters) of each text. UserError for one that is longer than the model reads."""
        read = self.tokenizer(list(texts), return_offsets_mapping=True, truncation=False, verbose=False)
        lengths = list(map(len, read["input_ids"]))
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if limit and max(lengths) > limit:
            longest = lengths.index(max(lengths))
            raise UserError(
                f"text {longest} has {max(lengths)} tokens, allowed are the {limit} that the model reads: shorten it"
            )
        return read["input_ids"], read["offset_mapping"]

    @torch.no_grad()
    def hidden_states(self, ids: Sequence[Sequence[int]]) -> Float[Tensor, "b t f"]:
        """The layer's output for some texts, padded on the right."""
        width = max(map(len, ids))
        tokens = torch.tensor([[*own, *[0] * (width - len(own))] for own in ids], device=self.model.device)
        there = torch.tensor([[1] * len(own) + [0] * (width - len(own)) for own in ids], device=self.model.device)
        found = self.model(input_ids=tokens, attention_mask=there, output_hidden_states=True)
        return found.hidden_states[self.layer].float().cpu()


def token_spans(offsets: Offsets, segments: Sequence[tuple[int, int]], text: str) -> list[tuple[int, int]]:
    """For each span [start, end) of the characters of `text` the span of the tokens that hold any of it.

    `offsets` are the characters [start, end) of each token, as a fast tokenizer's `offset_mapping` has them; those of special
    tokens are empty. The space that byte-level and SentencePiece tokens begin with is not theirs, unless they are nothing else:
    "two" of "one two" is not in a span that ends after "one ". UserError for a span in which there is no token.
    """
    held = [trimmed(first, last, text) for first, last in offsets]
    found = []
    for start, end in segments:
        inside = [i for i, (first, last) in enumerate(held) if first < min(last, end) and start < last]
        if not inside:
            raise UserError(
                f"the characters {start} to {end} ({text[start:end]!r:.60}) are in no token: leave that segment out"
            )
        found.append((inside[0], inside[-1] + 1))
    return found


def trimmed(first: int, last: int, text: str) -> tuple[int, int]:
    """The characters of a token without white space at its ends, or as they are where it is white space alone."""
    piece = text[max(first, 0) : max(last, 0)]
    if not piece.strip():
        return first, last
    return max(first, 0) + len(piece) - len(piece.lstrip()), last - len(piece) + len(piece.rstrip())


def span_labels(items: Sequence[SegmentedItem], texts: TextFeatures | None = None) -> list[SpanLabel]:
    """The segments of some items as labels on the rows of `texts` (of the answers, in the same order), or on steps."""
    found = []
    for row, item in enumerate(items):
        places = [(segment.start, segment.end) for segment in item.segments]
        if item.answer is not None:
            if texts is None or len(texts.offsets) != len(items):
                got = 0 if texts is None else len(texts.offsets)
                raise UserError(f"got {got} encoded texts for {len(items)} items: encode the answer of each")
            places = token_spans(texts.offsets[row], places, item.answer)
        for (start, end), segment in zip(places, item.segments, strict=True):
            value = segment.score if isinstance(segment, SegmentScore) else segment.tag
            found.append(SpanLabel(row, start, end, value))
    return found
