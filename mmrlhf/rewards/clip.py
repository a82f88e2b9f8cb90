"""The CLIP reward: PickScore's score exp(logit_scale)·⟨E_text, E_image⟩, or a trained head on frozen towers."""

import copy
import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmrlhf.data import write_text
from mmrlhf.errors import UserError
from mmrlhf.rewards.encoders.clip import load_backbone
from mmrlhf.rewards.encoders.dual_encoder import DualEncoder
from mmrlhf.rewards.head import HeadEnsemble
from mmrlhf.rewards.saved import saved_settings
from mmrlhf.types import Images

SETTINGS, HEAD = "reward.json", "head.safetensors"
FORMAT = 2


class CLIPReward:
    """Scores images for prompts; higher is better. Row-independent, differentiable in the images, picklable.

    Without a head the score is exp(logit_scale)·cosine (Kirstain et al. 2023; plus SigLIP's bias), with one the mean of its
    members less `pessimism` times their standard deviation; either is divided by `temperature`, so that σ(difference) is the
    probability of being preferred. A pair counts as a tie where |2p − 1| ≤ `tie_threshold`. Where the members' standard
    deviation is above `abstain_above`, the reward abstains (NaN). `heads` holds one a criterion; `criterion` says which scores,
    by default the one that asks which is better overall ("").
    """

    differentiable = True

    def __init__(
        self,
        backbone: DualEncoder,
        heads: HeadEnsemble | Mapping[str, HeadEnsemble] | None = None,
        *,
        temperature: float = 1.0,
        tie_threshold: float = 0.0,
        pessimism: float = 0.0,
        abstain_above: float = math.inf,
        criterion: str | None = None,
    ) -> None:
        self.backbone = backbone
        given = {"": heads} if isinstance(heads, HeadEnsemble) else dict(heads or {})
        self.heads = {name: head.eval().requires_grad_(False) for name, head in given.items()}
        self.criterion = min(given, default="") if criterion is None else criterion
        if given and self.criterion not in given:
            raise UserError(f"criterion got '{criterion}', allowed is {', '.join(map(repr, sorted(given)))}")
        self.temperature, self.tie_threshold = temperature, tie_threshold
        self.pessimism, self.abstain_above = pessimism, abstain_above

    @property
    def head(self) -> HeadEnsemble | None:
        """The one that scores."""
        return self.heads.get(self.criterion)

    @classmethod
    def from_pretrained(cls, model: str | Path) -> "CLIPReward":
        """The plain score of a CLIP model: tiny-clip, a folder, or a hub id such as yuvalkirstain/PickScore_v1.

        UserError for a backbone that reads no prompt, whose plain score would be the same for all.
        """
        backbone = load_backbone(model)
        if not backbone.max_tokens:
            raise UserError(
                f"the backbone {model} reads no prompt and scores nothing by itself: train a head on it (`mmrlhf reward train`)"
            )
        return cls(backbone)

    def __call__(self, images: Images, prompts: Sequence[str]) -> Float[Tensor, " b"]:
        members = self.members(images, prompts)
        score = members.mean(dim=0)
        if self.pessimism == 0 and self.abstain_above == math.inf:
            return score
        spread = (members.var(dim=0, correction=0) + 1e-12).sqrt()  # the root of 0 has no gradient
        return torch.where(spread > self.abstain_above, math.nan, score - self.pessimism * spread)

    def members(self, images: Images, prompts: Sequence[str]) -> Float[Tensor, "k b"]:
        """The score of each member of the ensemble (one without a head), on the device of `images`."""
        if len(images) != len(prompts):
            raise UserError(f"got {len(images)} images and {len(prompts)} prompts: give a prompt an image")
        if not prompts:
            return images.new_zeros(1 if self.head is None else self.head.members, 0)
        backbone = self.backbone
        seen = backbone.embed_images(images) if self.head is None else backbone.image_features(images)
        return self.members_of_features(seen, backbone.embed_prompts(prompts)).to(images.device)

    def members_of_features(self, seen: Float[Tensor, "b f"], texts: Float[Tensor, "b p"]) -> Float[Tensor, "k b"]:
        """The same from cached features: `image_features` (or, without a head, embeddings) and text embeddings."""
        clip_score = self.backbone.scale * (seen[:, : texts.shape[1]] * texts).sum(dim=-1)
        if self.head is None:
            return (clip_score + self.backbone.bias).unsqueeze(0) / self.temperature
        return self.head(torch.cat([seen, texts], dim=-1), clip_score) / self.temperature

    def with_temperature(self, temperature: float, tie_threshold: float | None = None) -> "CLIPReward":
        """The same reward (weights shared) at another temperature."""
        changes = {} if tie_threshold is None else {"tie_threshold": float(tie_threshold)}
        return self.but(temperature=float(temperature), **changes)

    def but(self, **changes: Any) -> "CLIPReward":
        """The same reward (weights shared) with another temperature, tie_threshold, pessimism, abstain_above or criterion."""
        temperature = changes.get("temperature", self.temperature)
        if not 0 < temperature < math.inf:
            raise UserError(f"temperature got {temperature}, allowed is a finite number above 0")
        for name in ("pessimism", "abstain_above"):
            if not changes.get(name, 0.0) >= 0:
                raise UserError(f"{name} got {changes[name]}, allowed is a number, 0 or more")
        if "criterion" in changes and changes["criterion"] not in (set(self.heads) or {""}):
            names = ", ".join(map(repr, sorted(self.heads))) or "'' only"
            raise UserError(
                f"criterion got '{changes['criterion']}', allowed is {names}: what the reward was trained on"
            )
        other = copy.copy(self)
        for name, value in changes.items():
            setattr(other, name, value)
        return other

    def to(self, device: torch.device | str) -> "CLIPReward":
        """Move the weights; returns itself."""
        self.backbone.to(device)
        for head in self.heads.values():
            head.to(device)
        return self

    def settings(self) -> dict[str, Any]:
        """What reward.json holds."""
        heads = {
            name: {"members": head.members, "hidden": head.first.shape[-1], "levels": head.levels}
            for name, head in self.heads.items()
        }
        numbers = {"temperature": self.temperature, "tie_threshold": self.tie_threshold, "pessimism": self.pessimism}
        abstain = None if self.abstain_above == math.inf else self.abstain_above
        return {
            "format": FORMAT,
            "kind": "clip",
            **numbers,
            "abstain_above": abstain,
            "criterion": self.criterion,
            "heads": heads,
        }

    def save(self, folder: Path) -> None:
        """Write the CLIPModel (as `save_pretrained` does), head.safetensors and reward.json; other files there stay.

        reward.json goes first and comes back last: a folder with it is whole.
        """
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".reward-", suffix=".tmp") as temporary:
            self.backbone.save(Path(temporary))
            if self.heads:
                state = {f"{criterion}/{name}": value.contiguous().cpu() for criterion, head in self.heads.items()
                         for name, value in head.state_dict().items()}  # fmt: skip
                save_file(state, Path(temporary) / HEAD)
            (folder / SETTINGS).unlink(missing_ok=True)
            for file in Path(temporary).iterdir():
                if (folder / file.name).is_dir():
                    shutil.rmtree(folder / file.name)
                os.replace(file, folder / file.name)
        self.save_settings(folder)

    def save_settings(self, folder: Path) -> None:
        """Rewrite reward.json only (temperature and tie threshold)."""
        write_text(json.dumps(self.settings(), indent=2) + "\n", folder / SETTINGS)

    @classmethod
    def load(cls, folder: Path | str) -> "CLIPReward":
        """What `save` wrote. UserError where the folder holds no whole reward."""
        folder = Path(folder)
        with saved_settings(folder / SETTINGS, FORMAT, "clip") as settings:
            names = ("temperature", "tie_threshold", "pessimism")
            changes = {name: float(settings[name]) for name in names} | {"criterion": settings["criterion"]}
            changes["abstain_above"] = (
                math.inf if settings["abstain_above"] is None else float(settings["abstain_above"])
            )
            backbone = load_backbone(folder)
            heads = read_heads(settings["heads"], folder / HEAD, backbone.feature_width + backbone.embedding_width)
            return cls(backbone, heads).but(**changes)


def read_heads(shapes: dict[str, Any], file: Path, features: int) -> dict[str, HeadEnsemble]:
    """The heads that `CLIPReward.save` wrote, by criterion."""
    state = load_file(file) if shapes else {}
    heads = {}
    for criterion, shape in shapes.items():
        members, hidden, levels = (int(shape[name]) for name in ("members", "hidden", "levels"))
        heads[criterion] = HeadEnsemble(features, members=members, hidden=hidden, levels=levels)
        start = f"{criterion}/"
        heads[criterion].load_state_dict(
            {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}
        )
    return heads
