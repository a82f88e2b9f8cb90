"""Train tiny-clip: a small `transformers` CLIPModel that learns from the EfficientNet-Lite0 + MiniLM pair."""

from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextModelWithProjection, CLIPVisionConfig

from mmrlhf.checkpoint import load_checkpoint, save_checkpoint
from mmrlhf.precision import fast_autocast
from mmrlhf.schedule import ema_decay, set_learning_rate
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


def random_affine(
    art: Float[Tensor, "b 4 64 64"], generator: torch.Generator, *, turn: float, zoom: tuple[float, float], shift: float
) -> Float[Tensor, "b 4 64 64"]:
    """Each drawing turned by up to `turn` radians, zoomed, stretched by up to a fifth and moved (transparent outside)."""
    count = len(art)
    angle = turn * (2 * torch.rand(count, generator=generator) - 1)
    scale = 1 / (zoom[0] + (zoom[1] - zoom[0]) * torch.rand(count, 2, generator=generator).mean(dim=1))
    stretch = 1 + 0.2 * (2 * torch.rand(count, generator=generator) - 1)
    theta = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(-1, 2, 2)
    theta = theta * scale[:, None, None] * torch.stack([stretch, 1 / stretch], dim=1)[:, :, None]
    offset = 2 * shift * (2 * torch.rand(count, 2, 1, generator=generator) - 1) * scale[:, None, None]
    grid = F.affine_grid(torch.cat([theta, offset], dim=2), list(art.shape), align_corners=False)
    return F.grid_sample(art, grid, align_corners=False)


def recolour(art: Float[Tensor, "b 4 64 64"], generator: torch.Generator) -> Float[Tensor, "b 4 64 64"]:
    """Each drawing's red, green and blue mixed by a random matrix near the identity, or near a permutation for a third."""
    count = len(art)
    order = torch.rand(count, 3, generator=generator).argsort(dim=1)
    order = torch.where(torch.rand(count, 1, generator=generator) < 1 / 3, order, torch.arange(3))
    mix = F.one_hot(order, 3) + 0.15 * torch.randn(count, 3, 3, generator=generator)
    colours = torch.einsum("bij,bjhw->bihw", mix / mix.sum(dim=2, keepdim=True), art[:, :3])
    return torch.cat([colours.clamp_min(0).minimum(art[:, 3:]), art[:, 3:]], dim=1)


def render_scenes(art: UInt8[Tensor, "n 4 64 64"], count: int, seed: int = 0) -> UInt8[Tensor, "count 3 64 64"]:
    """`count` pictures of one or two drawings each, turned, stretched and recoloured, over plain colours.

    Nobody has a name for most of them. The teacher says what they look like, and there are as many as one likes.
    """
    generator = torch.Generator().manual_seed(seed)
    scenes = []
    for start in range(0, count, 512):
        size = min(512, count - start)
        back, front = (art[torch.randint(len(art), (size,), generator=generator)].float() / 255 for _ in range(2))
        back = recolour(random_affine(back, generator, turn=0.6, zoom=(0.6, 1.4), shift=0.15), generator)
        front = recolour(random_affine(front, generator, turn=0.6, zoom=(0.4, 0.9), shift=0.3), generator)
        front = front * (torch.rand(size, 1, 1, 1, generator=generator) < 0.5)
        layers = ((front + (1 - front[:, 3:]) * back) * 255).round().clamp(0, 255).to(torch.uint8)
        scenes.append((composite(layers, random_backgrounds(size, generator)) * 255).round().to(torch.uint8))
    return torch.cat(scenes)


def train_vision_tower(
    model: CLIPModel,
    images: UInt8[Tensor, "n 3 64 64"],
    features: Float[Tensor, "n 1280"],
    heads: JointHeads,
    texts: Float[Tensor, "m 128"],
    out: Path,
    *,
    steps: int = 4000,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> CLIPModel:
    """Distil the teacher's embedding of a picture, its features, and its likeness to each of `m` texts.

    The model ends with the moving average of the weights. Resumes from `out/vision.pt`.
    """
    torch.manual_seed(seed)
    auxiliary = nn.Linear(model.config.vision_config.hidden_size, IMAGE_DIM)
    student = nn.ModuleDict(
        {"vision_model": model.vision_model, "projection": model.visual_projection, "auxiliary": auxiliary}
    )
    optimizer = torch.optim.AdamW(student.parameters(), lr=learning_rate, weight_decay=0.05)
    average = AveragedModel(student, avg_fn=moving_average)
    start = 0
    if state := load_checkpoint(out / "vision.pt"):
        student.load_state_dict(state["student"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    bar = tqdm(range(start, steps), desc="tiny-clip vision tower", initial=start, total=steps)
    for step in bar:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        row = torch.randint(len(images), (batch_size,), generator=generator)
        pixels = (jitter(images[row], generator).float() / 255 - PIXEL_MEAN) / PIXEL_STD
        with fast_autocast("cpu"):
            pooled = model.vision_model(pixel_values=pixels).pooler_output
            projected, guessed = model.visual_projection(pooled), auxiliary(pooled)
        loss = distillation_loss(projected.float(), guessed.float(), features[row].float(), heads, texts)
        optimizer.zero_grad()
        loss.backward()
        set_learning_rate(optimizer, learning_rate, step, steps)
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(student)
        bar.set_postfix(loss=f"{loss.item():.3f}")
        if (step + 1) % 200 == 0 or step + 1 == steps:
            state = {"student": student.state_dict(), "average": average.state_dict()}
            save_checkpoint(state | {"optimizer": optimizer.state_dict(), "step": step + 1}, out / "vision.pt")
    student.load_state_dict(average.module.state_dict())
    return model.eval()


def moving_average(mean: Tensor, value: Tensor, count: Tensor | int) -> Tensor:
    """One step of the exponential moving average of the weights, as `AveragedModel` calls it."""
    return mean.lerp(value, 1 - ema_decay(int(count)))


def distillation_loss(
    projected: Float[Tensor, "b 128"],
    guessed: Float[Tensor, "b 1280"],
    features: Float[Tensor, "b 1280"],
    heads: JointHeads,
    texts: Float[Tensor, "m 128"],
) -> Float[Tensor, ""]:
    """Cosine distances to the teacher's embedding and features, and cross-entropy to its softmax over the texts."""
    embedded, taught = F.normalize(projected, dim=-1), heads.embed_images(features)
    standard = (features - heads.image_mean) / heads.image_std
    return (
        2 * (1 - (embedded * taught).sum(-1).mean())
        + 0.5 * (1 - F.cosine_similarity(guessed, standard).mean())
        + 0.2 * F.cross_entropy(20 * embedded @ texts.T, (20 * taught @ texts.T).softmax(-1))
    )


def image_processor() -> CLIPImageProcessor:
    """The preprocessing that goes with the vision tower."""
    return CLIPImageProcessor(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[PIXEL_MEAN] * 3,
        image_std=[PIXEL_STD] * 3,
    )
