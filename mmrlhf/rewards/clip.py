"""The CLIP reward: PickScore's score exp(logit_scale)·⟨E_text, E_image⟩, or a trained head on frozen towers."""

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmrlhf.data import write_text
from mmrlhf.errors import UserError
from mmrlhf.rewards.backbone import CLIPBackbone
from mmrlhf.rewards.head import HeadEnsemble
from mmrlhf.types import Images

SETTINGS, HEAD = "reward.json", "head.safetensors"
FORMAT = 1


class CLIPReward:
    """Scores images for prompts; higher is better. Row-independent, differentiable in the images, picklable.

    Without a head the score is exp(logit_scale)·cosine (Kirstain et al. 2023), with one the mean of its members; either is
    divided by `temperature`, so that σ(difference) is the probability of being preferred. A pair counts as a tie where
    |2p − 1| ≤ `tie_threshold`.
    """

    differentiable = True

    def __init__(
        self,
        backbone: CLIPBackbone,
        head: HeadEnsemble | None = None,
        *,
        temperature: float = 1.0,
        tie_threshold: float = 0.0,
    ) -> None:
        self.backbone = backbone
        self.head = None if head is None else head.eval().requires_grad_(False)
        self.temperature, self.tie_threshold = temperature, tie_threshold

    @classmethod
    def from_pretrained(cls, model: str | Path) -> "CLIPReward":
        """The plain score of a CLIP model: tiny-clip, a folder, or a hub id such as yuvalkirstain/PickScore_v1."""
        return cls(CLIPBackbone.load(model))

    def __call__(self, images: Images, prompts: Sequence[str]) -> Float[Tensor, " b"]:
        return self.members(images, prompts).mean(dim=0)

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
            return clip_score.unsqueeze(0) / self.temperature
        return self.head(torch.cat([seen, texts], dim=-1), clip_score) / self.temperature

    def with_temperature(self, temperature: float, tie_threshold: float | None = None) -> "CLIPReward":
        """The same reward (weights shared) at another temperature."""
        if not 0 < temperature < float("inf"):
            raise UserError(f"temperature got {temperature}, allowed is a finite number above 0")
        other = copy.copy(self)
        other.temperature = float(temperature)
        other.tie_threshold = self.tie_threshold if tie_threshold is None else float(tie_threshold)
        return other

    def to(self, device: torch.device | str) -> "CLIPReward":
        """Move the weights; returns itself."""
        self.backbone.to(device)
        if self.head is not None:
            self.head.to(device)
        return self

    def settings(self) -> dict[str, Any]:
        """What reward.json holds."""
        shape = None if self.head is None else {"members": self.head.members, "hidden": self.head.first.shape[-1]}
        return {"format": FORMAT, "kind": "clip", "temperature": self.temperature, "tie_threshold": self.tie_threshold,
                "head": shape}  # fmt: skip

    def save(self, folder: Path) -> None:
        """Write the CLIPModel (as `save_pretrained` does), head.safetensors and reward.json; other files there stay.

        reward.json goes first and comes back last: a folder with it is whole.
        """
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".reward-", suffix=".tmp") as temporary:
            self.backbone.save(Path(temporary))
            if self.head is not None:
                state = {name: value.contiguous().cpu() for name, value in self.head.state_dict().items()}
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
        file = folder / SETTINGS
        if not file.is_file():
            raise UserError(
                f"no reward in {folder} ({SETTINGS} is missing): give a folder that `mmrlhf reward train` wrote"
            )
        try:
            settings = json.loads(file.read_text(encoding="utf-8"))
            if settings["format"] != FORMAT or settings["kind"] != "clip":
                raise UserError(
                    f"{file} has format {settings['format']} of kind {settings['kind']}, allowed is format {FORMAT} of kind "
                    "clip: train the reward again with this version"
                )
            temperature, tie_threshold = float(settings["temperature"]), float(settings["tie_threshold"])
            backbone, head = CLIPBackbone.load(folder), None
            if shape := settings["head"]:
                features = backbone.feature_width + backbone.embedding_width
                head = HeadEnsemble(features, members=shape["members"], hidden=shape["hidden"])
                head.load_state_dict(load_file(folder / HEAD))
        except (ValueError, KeyError, TypeError, OSError, RuntimeError, SafetensorError) as error:
            reason = str(error).strip().split("\n")[0][:200]
            raise UserError(
                f"the reward in {folder} is broken ({reason}): train it again or restore its files"
            ) from error
        return cls(backbone, head, tie_threshold=tie_threshold).with_temperature(temperature)
