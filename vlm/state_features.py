"""The states of a vision-language model at the tokens of answers, which it reads after their prompt and picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from mmrlhf.rewards.language.inputs import Row
from mmrlhf.rewards.segments.text import TextFeatures
from vlm.encoding import at_answers
from vlm.policy import VisionLanguagePolicy
from vlm.preference_data import rows_that_fit
from vlm.spans import Parts

Layers = Literal["last", "middle", "both"]


class StateReader:
    """An `AnswerReader` whose pieces are tokens, and their features states."""

    def __init__(self, policy: VisionLanguagePolicy, layers: Layers = "last") -> None:
        self.policy, self.layers = policy, layers

    @classmethod
    def load(cls, settings: dict[str, Any], device: str) -> "StateReader":
        """The model that `settings` name: model, adapter and layers."""
        adapter = None if settings["adapter"] is None else Path(settings["adapter"])
        policy = VisionLanguagePolicy.load(settings["model"], adapter=adapter, device=device)
        return cls(policy, settings["layers"])

    def check(self, rows: Sequence[Row], parts: Parts) -> None:
        """UserError for an answer that is longer than the model reads."""
        rows_that_fit(self.policy, rows, "refuse", "leave them out of the file")

    def read(self, rows: Sequence[Row], parts: Parts, *, progress: bool = False) -> TextFeatures:
        """The states at each answer's tokens, which do not depend on what its parts are."""
        return read_answers(self.policy, rows, self.layers, progress=progress)

    def to(self, device: torch.device | str) -> "StateReader":
        """Move the model; returns itself."""
        self.policy.model.to(device)
        return self


@torch.no_grad()
def read_answers(
    policy: VisionLanguagePolicy, rows: Sequence[Row], layers: Layers, *, batch_size: int = 32, progress: bool = False
) -> TextFeatures:
    """The states at the tokens of each row's answer, each after the token was read; on the CPU in float32.

    `layers`: the last one, the one in the middle, or both side by side. Answers of like length are read together.
    """
    tokens = [policy.tokens(row) for row in rows]
    width = max(len(own.ids) for own in tokens)
    features: Tensor = torch.zeros(0)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    order = sorted(range(len(rows)), key=lambda i: len(tokens[i].ids))
    for first in tqdm(range(0, len(order), batch_size), desc="read", unit="batch", disable=not progress):
        part = order[first : first + batch_size]
        batch = policy.encode([rows[i] for i in part], [tokens[i].ids for i in part])
        hidden = policy.network.base_model(**batch.inputs, use_cache=False, output_hidden_states=True).hidden_states
        chosen = {"last": [-1], "middle": [len(hidden) // 2], "both": [len(hidden) // 2, -1]}[layers]
        states = torch.cat([hidden[layer] for layer in chosen], dim=-1)
        own = at_answers(states, batch.starts, batch.mask).float().cpu()
        if not features.numel():
            features = torch.zeros(len(rows), width, own.shape[-1])
        features[part, : own.shape[1]] = own
        mask[part, : own.shape[1]] = batch.mask.cpu()
    return TextFeatures(features, mask, [list(own.offsets) for own in tokens])
