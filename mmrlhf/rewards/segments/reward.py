"""A dense reward from labels on spans: features of tokens, denoising steps or skills in, a reward for each of them out."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load, save
from torch import Tensor

from mmrlhf.data import replacing, write_text
from mmrlhf.errors import UserError
from mmrlhf.rewards.saved import saved_settings
from mmrlhf.rewards.segments.head import Pooling, SegmentHead, pool_spans

SETTINGS, HEAD = "segment.json", "segment.safetensors"
FORMAT = 1
Spans = Int[Tensor, "n 3"] | Sequence[tuple[int, int, int]]


class SegmentReward:
    """`(features, mask) -> Float[Tensor, "b t"]`: the reward of each position, 0 where the mask has none.

    Higher is better; row-independent, differentiable in the features, picklable; NaN features give NaN at their position. The
    unit, and what 0 means, are those of `SegmentHead`. `fit_segments` makes one.
    """

    differentiable = True

    def __init__(self, head: SegmentHead) -> None:
        self.head = head.eval().requires_grad_(False)

    @property
    def features(self) -> int:
        """How wide the features of a position are."""
        return len(self.head.scorer.mean)

    def __call__(
        self, features: Float[Tensor, "b t f"], mask: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b t"]:
        return self.members(features, mask).mean(dim=0)

    def members(
        self, features: Float[Tensor, "b t f"], mask: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "k b t"]:
        """The rewards by each member of the ensemble; their spread tells how sure it is."""
        if features.shape[-1] != self.features:
            raise UserError(
                f"features got a width of {features.shape[-1]}, allowed is {self.features}, what this reward learnt from"
            )
        mask = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device) if mask is None else mask
        return self.head(features, mask)

    def segment_rewards(
        self, features: Float[Tensor, "b t f"], spans: Spans, mask: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, " n"]:
        """The reward of each span (row, start, end): the mean, or sum, of those of its positions; see `segment_members`."""
        return self.segment_members(features, spans, mask).mean(dim=0)

    def segment_members(
        self, features: Float[Tensor, "b t f"], spans: Spans, mask: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "k n"]:
        """The same by each member. UserError for a span that is empty or outside the features."""
        rewards = self.members(features, mask)
        mask = torch.ones_like(rewards[0], dtype=torch.bool) if mask is None else mask
        wanted = torch.as_tensor(spans, dtype=torch.long, device=rewards.device).reshape(-1, 3)
        row, start, end = wanted.unbind(1)
        count, length = mask.shape
        right = (row >= 0) & (row < count) & (start >= 0) & (start < end) & (end <= length)
        if not right.all():
            raise UserError(
                f"spans got {tuple(wanted[~right][0].tolist())}, allowed are (row, start, end) with rows from 0 to "
                f"{count - 1} and 0 <= start < end <= {length}"
            )
        return pool_spans(rewards, mask, wanted, self.head.pooling)

    def tag_probabilities(
        self, features: Float[Tensor, "b t f"], spans: Spans, mask: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "n 3"]:
        """P(misleading), P(irrelevant), P(correct) of each span, the members' mean; irrelevant is 0 if none was seen."""
        head = self.head
        values = self.segment_members(features, spans, mask) / head.unit
        logits = head.log_tag_scale.exp() * (values - head.centre)
        above = torch.sigmoid(logits.unsqueeze(-1) - head.scorer.thresholds)  # P(tag > misleading), …, falling
        return torch.stack([1 - above[..., 0], above[..., 0] - above[..., -1], above[..., -1]], dim=-1).mean(dim=0)

    def to(self, device: torch.device | str) -> "SegmentReward":
        """Move the weights; returns itself."""
        self.head.to(device)
        return self

    def save(self, folder: Path) -> None:
        """Write segment.safetensors and segment.json; other files there stay. A folder with segment.json is whole."""
        if folder.is_file():
            raise UserError(f"{folder} is a file: give a folder to save the segment reward to")
        scorer = self.head.scorer
        shape = {"features": self.features, "members": scorer.members, "hidden": scorer.first.shape[-1],
                 "levels": scorer.levels, "pooling": self.head.pooling}  # fmt: skip
        state = {name: value.contiguous().cpu() for name, value in self.head.state_dict().items()}
        (folder / SETTINGS).unlink(missing_ok=True)
        with replacing(folder / HEAD) as file:
            file.write_bytes(save(state))
        write_text(json.dumps({"format": FORMAT, "kind": "segment", "head": shape}, indent=2) + "\n", folder / SETTINGS)

    @classmethod
    def load(cls, folder: Path | str) -> "SegmentReward":
        """What `save` wrote. UserError where the folder holds no whole segment reward."""
        with saved_settings(
            Path(folder) / SETTINGS, FORMAT, "segment", what="segment reward", writer="its `save`"
        ) as settings:
            shape = settings["head"]
            if shape["pooling"] not in get_args(Pooling):
                raise ValueError(f"pooling is {shape['pooling']!r}")
            head = SegmentHead(
                shape["features"], members=shape["members"], hidden=shape["hidden"], levels=shape["levels"],
                pooling=shape["pooling"],
            )  # fmt: skip
            head.load_state_dict(load((Path(folder) / HEAD).read_bytes()))
            if not all(bool(value.isfinite().all()) for value in head.state_dict().values()):
                raise ValueError(f"{HEAD} holds values that are not finite")
        return cls(head)
