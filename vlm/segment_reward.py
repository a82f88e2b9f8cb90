"""The segment-level hallucination reward: how likely each part of an answer is to mislead, from the states of a model that sees.

A vision-language model reads prompt, picture and answer; a small ensemble on its states at the answer's tokens, learned from
labels on spans (`mmrlhf.rewards.segments`), tells what each part is worth.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from mmrlhf.data import write_text
from mmrlhf.errors import UserError
from mmrlhf.rewards.language.inputs import Row
from mmrlhf.rewards.saved import saved_settings
from mmrlhf.rewards.segments.reward import SegmentReward
from mmrlhf.rewards.segments.text import TextFeatures, token_spans
from mmrlhf.runs import CONTENT, content_digest
from vlm.answer_rewards import AnswerReward, Judgement, SpanReward, named_reward
from vlm.encoding import at_answers
from vlm.policy import VisionLanguagePolicy
from vlm.spans import Parts, spans_of

SETTINGS, FORMAT, KIND = "reward.json", 1, "vlm-segment"
Layers = Literal["last", "middle", "both"]


class HallucinationReward:
    """Judges the parts of answers. A part is worth P(correct) − P(misleading), between −1 and 1.

    So what says nothing false is worth more than silence, a part that is likely wrong costs as much as a right one earns, and
    what tells nothing new (irrelevant) earns nothing: a policy that follows it neither falls silent nor repeats itself.
    Row-independent up to rounding. `make` and `load` give one.
    """

    def __init__(
        self, policy: VisionLanguagePolicy, head: SegmentReward, *, source: dict[str, Any], layers: Layers = "last",
        parts: Parts = "sentence", temperature: float = 1.0,
    ) -> None:  # fmt: skip
        self.policy, self.head, self.source = policy, head, source
        self.layers, self.parts, self.temperature = layers, parts, temperature

    def __call__(self, rows: Sequence[Row]) -> list[Judgement]:
        spans = [spans_of(row.answer or "", self.parts) for row in rows]
        return [
            Judgement(tuple(SpanReward(*span, float(p[2] - p[0])) for span, p in zip(own, found, strict=True)))
            for own, found in zip(spans, self.probabilities(rows, spans), strict=True)
        ]

    @torch.no_grad()
    def probabilities(
        self, rows: Sequence[Row], spans: Sequence[Sequence[tuple[int, int]]] | None = None, *, progress: bool = False
    ) -> list[Float[Tensor, "n 3"]]:
        """P(misleading), P(irrelevant), P(correct) of each span of each row's answer; by default of its parts."""
        spans = [spans_of(row.answer or "", self.parts) for row in rows] if spans is None else spans
        kept = [i for i, own in enumerate(spans) if own]
        found = [torch.zeros(0, 3) for _ in rows]
        if not kept:
            return found
        texts = read_answers(self.policy, [rows[i] for i in kept], self.layers, progress=progress)
        wanted = [
            (place, *span)
            for place, i in enumerate(kept)
            for span in token_spans(texts.offsets[place], spans[i], rows[i].answer or "")
        ]
        every = self.tempered(texts, wanted).split([len(spans[i]) for i in kept])
        for i, own in zip(kept, every, strict=True):
            found[i] = own
        return found

    def tempered(self, texts: TextFeatures, spans: Sequence[tuple[int, int, int]]) -> Float[Tensor, "n 3"]:
        """The head's probabilities at the calibrated temperature: of the odds of misleading, and those of the rest alike."""
        raw = self.head.tag_probabilities(texts.features, spans, texts.mask)
        misleading = torch.sigmoid(torch.logit(raw[:, 0].clamp(1e-6, 1 - 1e-6)) / self.temperature)
        rest = raw[:, 1:] / raw[:, 1:].sum(1, keepdim=True).clamp_min(1e-9)
        return torch.cat([misleading.unsqueeze(1), (1 - misleading).unsqueeze(1) * rest], dim=1)

    def to(self, device: torch.device | str) -> "HallucinationReward":
        """Move the model that reads; returns itself."""
        self.policy.model.to(device)
        return self

    def save(self, folder: Path) -> None:
        """Write the head and reward.json; the model that reads is named in it, with a digest of its files."""
        self.head.save(folder)
        settings = {"format": FORMAT, "kind": KIND, "layers": self.layers, "parts": self.parts,
                    "temperature": self.temperature} | self.source  # fmt: skip
        write_text(json.dumps(settings, indent=2) + "\n", folder / SETTINGS)

    @classmethod
    def load(cls, folder: Path | str, *, device: str = "auto") -> "HallucinationReward":
        """What `save` wrote. UserError where the folder holds no whole reward, or the model that reads is another now."""
        with saved_settings(
            Path(folder) / SETTINGS, FORMAT, KIND, what="hallucination reward", writer="vlm reward"
        ) as own:
            source = {name: own[name] for name in ("model", "adapter", "digest")}
            how = {name: own[name] for name in ("layers", "parts", "temperature")}
            head = SegmentReward.load(folder)
        if digest_of(source["model"], source["adapter"]) != source["digest"]:
            raise UserError(
                f"the model {source['model']} is not the one that the reward {folder} learned from: give that one, or train anew"
            )
        return cls(open_reader(source, device), head, source=source, **how)


def source_of(model: str, adapter: Path | None) -> dict[str, Any]:
    """What names the model that reads."""
    name = None if adapter is None else str(adapter)
    return {"model": model, "adapter": name, "digest": digest_of(model, name)}


def digest_of(model: str, adapter: str | None) -> str:
    """A digest of the files of a model's folder and adapter; of a hub id, its name."""
    from mmrlhf.models import resolve_model

    where = Path(resolve_model(model))
    own = content_digest(where, ("config.json", "*.safetensors")) if where.is_dir() else model
    return own + (content_digest(Path(adapter), CONTENT["adapter"]) if adapter else "")


def open_reader(source: dict[str, Any], device: str) -> VisionLanguagePolicy:
    """The model that reads."""
    adapter = None if source["adapter"] is None else Path(source["adapter"])
    return VisionLanguagePolicy.load(source["model"], adapter=adapter, device=device)


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


def load_answer_reward(name: str, device: str = "auto") -> AnswerReward:
    """The reward that `--reward` names: a folder that `vlm reward` wrote, or module:function."""
    if (Path(name) / SETTINGS).is_file():
        return HallucinationReward.load(name, device=device)
    if ":" not in name:
        raise UserError(f"--reward got '{name}', allowed are a folder that mmrlhf vlm reward wrote, or module:function")
    return named_reward(name)
