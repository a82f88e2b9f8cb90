"""The segment-level hallucination reward: how likely each part of an answer is to mislead, by the features of a model that sees.

A vision-language model reads prompt, picture and answer, or an image-text model compares the parts with the picture; a small
ensemble on their features, learned from labels on spans (`mmrlhf.rewards.segments`), tells what each part is worth.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mmrlhf.data import write_text
from mmrlhf.errors import UserError
from mmrlhf.rewards.language.inputs import Row
from mmrlhf.rewards.saved import saved_settings
from mmrlhf.rewards.segments.reward import SegmentReward
from mmrlhf.rewards.segments.text import TextFeatures, token_spans
from vlm.answer_readers import AnswerReader, digest_of, open_reader, saved_source
from vlm.answer_rewards import AnswerReward, Judgement, SpanReward, named_reward
from vlm.spans import Parts, spans_of

SETTINGS, FORMAT, KIND = "reward.json", 1, "vlm-segment"


class HallucinationReward:
    """Judges the parts of answers. A part is worth P(correct) − P(misleading), between −1 and 1.

    So what says nothing false is worth more than silence, a part that is likely wrong costs as much as a right one earns, and
    what tells nothing new (irrelevant) earns nothing: a policy that follows it neither falls silent nor repeats itself.
    Row-independent up to rounding. `source` names the model that reads, see `vlm.answer_readers`. `vlm.reward.train` makes one.
    """

    def __init__(
        self, reader: AnswerReader, head: SegmentReward, *, source: dict[str, Any], parts: Parts = "sentence",
        temperature: float = 1.0,
    ) -> None:  # fmt: skip
        self.reader, self.head, self.source = reader, head, source
        self.parts, self.temperature = parts, temperature

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
        texts = self.reader.read([rows[i] for i in kept], self.parts, progress=progress)
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
        self.reader.to(device)
        return self

    def save(self, folder: Path) -> None:
        """Write the head and reward.json; the model that reads is named in it, with a digest of its files."""
        self.head.save(folder)
        own = {"format": FORMAT, "kind": KIND, "parts": self.parts, "temperature": self.temperature}
        write_text(json.dumps(own | self.source, indent=2) + "\n", folder / SETTINGS)

    @classmethod
    def load(cls, folder: Path | str, *, device: str = "auto") -> "HallucinationReward":
        """What `save` wrote. UserError where the folder holds no whole reward, or the model that reads is another now."""
        with saved_settings(
            Path(folder) / SETTINGS, FORMAT, KIND, what="hallucination reward", writer="vlm reward"
        ) as own:
            source = saved_source(own)
            how = {name: own[name] for name in ("parts", "temperature")}
            head = SegmentReward.load(folder)
        if digest_of(source) != source["digest"]:
            raise UserError(
                f"the model {source['model']} is not the one that the reward {folder} learned from: give that one, or train anew"
            )
        return cls(open_reader(source, device), head, source=source, **how)


def load_answer_reward(name: str, device: str = "auto") -> AnswerReward:
    """The reward that `--reward` names: a folder that `vlm reward` wrote, module:function or file.py:function."""
    if (Path(name) / SETTINGS).is_file():
        return HallucinationReward.load(name, device=device)
    if ":" not in name:
        raise UserError(
            f"--reward got '{name}', allowed are a folder that mmrlhf vlm reward wrote, module:function and "
            "file.py:function"
        )
    return named_reward(name)
