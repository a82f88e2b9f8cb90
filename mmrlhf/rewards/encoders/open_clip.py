"""Models of `open_clip` as backbones of rewards: a folder in its own layout, or a hub id written hf-hub:owner/name."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mmrlhf.data import write_text
from mmrlhf.errors import UserError
from mmrlhf.models import resolve_model
from mmrlhf.rewards.encoders.dual_encoder import embed_distinct, explain_loading, in_chunks, patch_features
from mmrlhf.rewards.encoders.resizing import normalise, resize, to_long_side, to_short_side
from mmrlhf.types import Images

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
HUB = "hf-hub:"


def is_open_clip(where: str) -> bool:
    """Whether a model's place is one of open_clip. A folder that holds transformers' config.json too is left to that."""
    folder = Path(where)
    return where.startswith(HUB) or ((folder / CONFIG).is_file() and not (folder / "config.json").is_file())


class OpenClipBackbone:
    """An open_clip model in float32 with its tokenizer; picklable.

    `architecture` is what open_clip calls model_cfg; the preprocessing is what it keeps as `visual.preprocess_cfg`. Images are
    square. Text goes in at full length, as the library does.
    """

    def __init__(self, model: Any, tokenizer: Any, architecture: dict[str, Any]) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.architecture = architecture

    @classmethod
    def load(cls, model: str | Path) -> "OpenClipBackbone":
        """A folder with open_clip_config.json and weights, or hf-hub:owner/name. UserError where it is neither.

        Nothing is unpickled: a weights file that is no safetensors is read with `weights_only`.
        """
        where = resolve_model(str(model))
        wanted = f"a folder with {CONFIG} and {WEIGHTS}, or {HUB}owner/name where the hub can be reached"
        with explain_loading("open_clip", model, wanted):
            import open_clip

            name = where if where.startswith(HUB) else f"local-dir:{where}"
            architecture = open_clip.get_model_config(name)
            towers = open_clip.create_model_from_pretrained(name, precision="fp32", return_transform=False)
            backbone = cls(towers, open_clip.get_tokenizer(name), architecture)
            height, width = square_of(backbone.preprocessing["size"])
            if height != width:
                raise UserError(f"model {model} takes images of {height}×{width}, allowed are square ones")
            return backbone

    def save(self, folder: Path) -> None:
        """Write open_clip's layout: config, safetensors and, where it is not the one built in, the tokenizer."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        settings = {"model_cfg": self.architecture, "preprocess_cfg": self.preprocessing}
        write_text(json.dumps(settings, indent=2) + "\n", folder / CONFIG)
        weights = {name: value.contiguous().cpu() for name, value in self.model.state_dict().items()}
        save_file(weights, folder / WEIGHTS)
        if hasattr(self.tokenizer, "save_pretrained"):
            self.tokenizer.save_pretrained(folder)

    @property
    def preprocessing(self) -> dict[str, Any]:
        """size, mean, std, interpolation, resize_mode, fill_color."""
        return self.model.visual.preprocess_cfg

    @property
    def image_size(self) -> int:
        return square_of(self.preprocessing["size"])[0]

    @property
    def device(self) -> torch.device:
        return self.model.logit_scale.device

    @property
    def scale(self) -> Float[Tensor, ""]:
        """What a cosine is multiplied by: the inverse of the temperature that the model was trained with."""
        return self.model.logit_scale.exp().reshape(())

    @property
    def bias(self) -> Float[Tensor, ""]:
        """What is added then; 0 for models trained with a softmax."""
        bias = self.model.logit_bias
        return torch.zeros((), device=self.device) if bias is None else bias.reshape(())

    @property
    def embedding_width(self) -> int:
        return self.architecture["embed_dim"]

    @property
    def feature_width(self) -> int:
        """Columns of `image_features`."""
        return self.embedding_width + 4 * patch_width(self.model.visual)

    @property
    def vision_blocks(self) -> Any:
        visual = self.model.visual
        return visual.trunk.blocks if is_timm_transformer(visual) else blocks_of(visual)

    @property
    def text_blocks(self) -> Any:
        return blocks_of(getattr(self.model, "text", self.model))

    @property
    def lora_targets(self) -> tuple[str, ...]:
        """The layers of the perceptrons: queries, keys and values are one matrix that PEFT's plain LoRA cannot wrap, except in
        timm's transformers.
        """
        native = ("mlp.c_fc", "mlp.c_proj")
        return (*native, "attn.qkv", "attn.proj") if is_timm_transformer(self.model.visual) else native

    def preprocess(self, images: Images) -> Float[Tensor, "b 3 size size"]:
        """To the model's square in the model's own way (shortest, squash or longest), still in [0, 1]: open_clip's steps."""
        settings, size = self.preprocessing, self.image_size
        mode = "bilinear" if settings["interpolation"] == "bilinear" else "bicubic"  # `random` is for training only
        if settings["resize_mode"] == "squash":
            return resize(images, (size, size), mode)
        if settings["resize_mode"] == "longest":
            return to_long_side(images, size, mode, settings["fill_color"] / 255)
        return to_short_side(images, size, mode, rounded=True)

    def pixels(self, images: Images) -> Float[Tensor, "b 3 size size"]:
        """What the vision tower takes: preprocessed and normalised, on the model's device."""
        images = self.preprocess(images.to(self.device, torch.float32))
        return normalise(images, tuple(self.preprocessing["mean"]), tuple(self.preprocessing["std"]), self.device)

    def embed_images(self, images: Images) -> Float[Tensor, "b p"]:
        """Unit image embeddings."""
        return in_chunks(images, lambda part: self.model.encode_image(self.pixels(part), normalize=True))

    def image_features(self, images: Images) -> Float[Tensor, "b f"]:
        """What a head sees of each image; see `patch_features`. A tower without patches gives the unit embedding only."""
        return in_chunks(images, self.chunk_features) if patch_width(self.model.visual) else self.embed_images(images)

    def chunk_features(self, images: Images) -> Float[Tensor, "b f"]:
        """`image_features` of a few images, in one pass."""
        pixels = self.pixels(images)
        out = self.model.visual.forward_intermediates(pixels, indices=1, output_fmt="NLC")
        first = first_patches(self.model.visual, pixels)
        return patch_features(F.normalize(out["image_features"], dim=-1), out["image_intermediates"][0], first)

    def embed_prompts(self, prompts: Sequence[str]) -> Float[Tensor, "b p"]:
        """Unit text embeddings; each different prompt is encoded once; one that is too long is cut."""
        return embed_distinct(prompts, self.encode_prompts)

    def encode_prompts(self, prompts: list[str]) -> Float[Tensor, "q p"]:
        """The same of prompts that are all different."""
        tokens = self.tokenizer(prompts, context_length=self.max_tokens)
        return self.model.encode_text(tokens.to(self.device), normalize=True)

    @property
    def max_tokens(self) -> int:
        return self.model.context_length

    def count_truncated(self, prompts: Sequence[str]) -> int:
        """How many of the different prompts are too long for the text tower."""
        return sum(token_count(self.tokenizer, prompt) > self.max_tokens for prompt in set(prompts))

    def to(self, device: torch.device | str) -> "OpenClipBackbone":
        """Move the weights; returns itself."""
        self.model.to(device)
        return self


def square_of(size: Any) -> tuple[int, int]:
    """open_clip's image size, a number or two, as (height, width)."""
    return (int(size[0]), int(size[1])) if isinstance(size, Sequence) else (int(size), int(size))


def token_count(tokenizer: Any, prompt: str) -> int:
    """Tokens of a prompt with those at its ends: of open_clip's own tokenizer, or of the one of transformers inside it."""
    inner = getattr(tokenizer, "tokenizer", None)
    if inner is None:
        return len(tokenizer.encode(prompt)) + 2
    return len(inner(tokenizer.clean_fn(prompt)).input_ids)


def is_native(visual: nn.Module) -> bool:
    """Whether an image tower is open_clip's own vision transformer."""
    from open_clip.transformer import VisionTransformer

    return isinstance(visual, VisionTransformer)


def is_timm_transformer(visual: nn.Module) -> bool:
    """Whether an image tower is a plain vision transformer of timm, as SigLIP's are."""
    from open_clip.timm_model import TimmModel
    from timm.models.vision_transformer import VisionTransformer

    return isinstance(visual, TimmModel) and isinstance(visual.trunk, VisionTransformer)


def patch_width(visual: Any) -> int:
    """Width of an image tower's patches; 0 for one without, as a ResNet."""
    if is_native(visual):
        return visual.conv1.out_channels
    return visual.trunk.embed_dim if is_timm_transformer(visual) else 0


def first_patches(visual: Any, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n d"]:
    """The embedding layer: projected patches with their positions, without the class token."""
    if is_native(visual):
        patches, positions = visual.conv1(pixels).flatten(2).transpose(1, 2), visual.positional_embedding[None]
    else:
        patches, positions = visual.trunk.patch_embed(pixels).flatten(1, -2), visual.trunk.pos_embed
    return patches + positions[:, -patches.shape[1] :]


def blocks_of(tower: Any) -> Any:
    """The blocks of a transformer of open_clip; none for a tower of another kind."""
    return getattr(getattr(tower, "transformer", None), "resblocks", nn.ModuleList())
