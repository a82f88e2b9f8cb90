"""Train tiny-clip: a small `transformers` CLIPModel that learns from the EfficientNet-Lite0 + MiniLM pair."""

from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextModelWithProjection, CLIPVisionConfig

from mmrlhf.checkpoint import load_checkpoint, save_checkpoint
from mmrlhf.schedule import set_learning_rate
from mmrlhf.tiny.emoji import SIZE, composite, random_backgrounds, shift_scale
from mmrlhf.tiny.teacher import IMAGE_DIM, JOINT_DIM, JointHeads

PIXEL_MEAN, PIXEL_STD = 0.5, 0.5


def vision_config() -> CLIPVisionConfig:
    """Sizes of the vision tower: 64 patches of 8×8 pixels, about 2.7 M weights."""
    return CLIPVisionConfig(
        hidden_size=192,
        intermediate_size=576,
        num_hidden_layers=6,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=8,
        projection_dim=JOINT_DIM,
    )


def build_clip(text: CLIPTextModelWithProjection, heads: JointHeads) -> CLIPModel:
    """A CLIPModel with a fresh vision tower and the trained text tower, whose projection goes on into the joint space."""
    config = CLIPConfig(
        text_config=text.config.to_dict() | {"projection_dim": JOINT_DIM},
        vision_config=vision_config().to_dict(),
        projection_dim=JOINT_DIM,
        logit_scale_init_value=2.9957,
    )
    model = CLIPModel(config)
    inner = {f"text_model.{name}": value for name, value in text.text_model.state_dict().items()}
    unexpected = model.load_state_dict(inner, strict=False).unexpected_keys
    if unexpected:
        raise ValueError(f"the text tower holds {unexpected}, which CLIPModel does not know")
    model.text_projection.weight.data = heads.text.weight.data @ text.text_projection.weight.data
    return model


def render_views(art: UInt8[Tensor, "n 4 64 64"], views: int, seed: int = 0) -> UInt8[Tensor, "views n 3 64 64"]:
    """`views` pictures of each drawing: the first over white and untouched, the others moved, scaled and tinted."""
    generator = torch.Generator().manual_seed(seed)
    rendered = []
    for view in range(views):
        layers, colours = art, torch.ones(len(art), 3)
        if view > 0:
            layers = shift_scale(art.float(), generator, shift=0.06, scale=0.2).clamp(0, 255).to(torch.uint8)
            colours = random_backgrounds(len(art), generator)
        rendered.append((composite(layers, colours) * 255).round().to(torch.uint8))
    return torch.stack(rendered)


def jitter(images: UInt8[Tensor, "b 3 64 64"], generator: torch.Generator) -> UInt8[Tensor, "b 3 64 64"]:
    """Every other picture mirrored, all moved by up to 3 pixels together: changes that the teacher hardly sees."""
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    padded = F.pad(images.float(), (3, 3, 3, 3), mode="replicate").to(torch.uint8)
    top, left = torch.randint(7, (2,), generator=generator).tolist()
    return padded[..., top : top + SIZE, left : left + SIZE]


def train_vision_tower(
    model: CLIPModel,
    images: UInt8[Tensor, "k n 3 64 64"],
    features: Float[Tensor, "k n 1280"],
    heads: JointHeads,
    texts: Float[Tensor, "n 128"],
    out: Path,
    *,
    steps: int = 4000,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> CLIPModel:
    """Distil the teacher's picture embedding and features, and match pictures with texts; resumes from `out/vision.pt`."""
    torch.manual_seed(seed)
    auxiliary = nn.Linear(model.config.vision_config.hidden_size, IMAGE_DIM)
    parameters = [*model.vision_model.parameters(), *model.visual_projection.parameters(), *auxiliary.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.05)
    start = 0
    if state := load_checkpoint(out / "vision.pt"):
        model.load_state_dict(state["model"])
        auxiliary.load_state_dict(state["auxiliary"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    views, count = images.shape[:2]
    bar = tqdm(range(start, steps), desc="tiny-clip vision tower", initial=start, total=steps)
    for step in bar:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        view = torch.randint(views, (batch_size,), generator=generator)
        row = torch.randint(count, (batch_size,), generator=generator)
        pixels = (jitter(images[view, row], generator).float() / 255 - PIXEL_MEAN) / PIXEL_STD
        target = features[view, row]
        with torch.autocast("cpu", torch.bfloat16):
            pooled = model.vision_model(pixel_values=pixels).pooler_output
            projected = model.visual_projection(pooled)
            guessed = auxiliary(pooled)
        embedded = F.normalize(projected.float(), dim=-1)
        taught = heads.embed_images(target)
        standard = (target - heads.image_mean) / heads.image_std
        similar = embedded @ texts[row].T
        loss = (
            2 * (1 - (embedded * taught).sum(-1).mean())
            + 0.5 * (1 - F.cosine_similarity(guessed.float(), standard).mean())
            + 0.2 * F.cross_entropy(20 * similar, (20 * taught @ texts[row].T).softmax(-1))
        )
        optimizer.zero_grad()
        loss.backward()
        set_learning_rate(optimizer, learning_rate, step, steps)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
        if (step + 1) % 200 == 0 or step + 1 == steps:
            state = {"model": model.state_dict(), "auxiliary": auxiliary.state_dict()}
            save_checkpoint(state | {"optimizer": optimizer.state_dict(), "step": step + 1}, out / "vision.pt")
    return model.eval()


def image_processor() -> CLIPImageProcessor:
    """The preprocessing that goes with the vision tower."""
    return CLIPImageProcessor(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[PIXEL_MEAN] * 3,
        image_std=[PIXEL_STD] * 3,
    )
