"""An image-text similarity that no tiny model was trained on: EfficientNet-Lite0 and MiniLM, joined on other art.

Shipped with the text embeddings of tiny-sd's prompts, so that it needs no language model when it judges.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from mmrlhf.errors import UserError
from mmrlhf.models import TINY_FOLDER
from mmrlhf.tiny.teacher import efficientnet_features, recall_at
from mmrlhf.types import Images

MODEL_NAME = "tf_efficientnet_lite0"


class Judge:
    """Cosine similarity between a picture and its prompt, in [-1, 1]; not differentiable, row-independent.

    Knows the prompts of its table only; any other gets NaN (it abstains).
    """

    differentiable = False

    def __init__(self, backbone: nn.Module, head: dict[str, Tensor], prompts: Sequence[str]) -> None:
        self.backbone = backbone.eval().to(memory_format=torch.channels_last)
        self.head = head
        self.rows = {prompt: i for i, prompt in enumerate(prompts)}

    @classmethod
    def load(cls, folder: Path = TINY_FOLDER / "tiny-judge") -> "Judge":
        """The shipped judge, or one written by `save`."""
        if not (folder / "judge.safetensors").exists():
            raise UserError(f"no judge in {folder}: run 'mmrlhf tiny train', or reinstall mmrlhf")
        tensors = {name: value.float() for name, value in load_file(folder / "judge.safetensors").items()}
        head = {name.removeprefix("head."): value for name, value in tensors.items() if name.startswith("head.")}
        backbone = timm.create_model(MODEL_NAME, num_classes=0)
        backbone.load_state_dict(
            {name.removeprefix("backbone."): value for name, value in tensors.items() if name.startswith("backbone.")}
        )
        return cls(backbone, head, json.loads((folder / "prompts.json").read_text()))

    def save(self, folder: Path) -> None:
        """Write half-precision safetensors and the list of prompts."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"backbone.{name}": value for name, value in self.backbone.state_dict().items()}
        tensors |= {f"head.{name}": value for name, value in self.head.items()}
        save_file({name: value.half().contiguous() for name, value in tensors.items()}, folder / "judge.safetensors")
        (folder / "prompts.json").write_text(json.dumps(list(self.rows), ensure_ascii=False, indent=0))

    @torch.no_grad()
    def embed(self, images: Images) -> Float[Tensor, "b d"]:
        """Unit vectors of pictures in the joint space."""
        embedded = []
        for batch in images.split(64):
            features = (efficientnet_features(self.backbone, batch) - self.head["mean"]) / self.head["std"]
            embedded.append(F.normalize(features @ self.head["weight"].T + self.head["bias"], dim=-1))
        return torch.cat(embedded)

    def text(self, prompts: Sequence[str]) -> Float[Tensor, "b d"]:
        """Unit vectors of known prompts; NaN rows for the others."""
        unknown = torch.full((self.head["texts"].shape[1],), torch.nan)
        rows = [self.head["texts"][self.rows[prompt]] if prompt in self.rows else unknown for prompt in prompts]
        return torch.stack(rows)

    def __call__(self, images: Images, prompts: Sequence[str]) -> Float[Tensor, " b"]:
        return (self.embed(images) * self.text(prompts)).sum(dim=-1)

    def recall_at(self, k: int, images: Images, prompts: Sequence[str]) -> float:
        """Share of pictures whose own prompt is among the `k` most similar of all the prompts given."""
        return recall_at(k, self.embed(images), self.text(prompts))
