"""HPS v2 and v2.1: the cosine of an open_clip ViT-H-14 fine-tuned on people's choices, from its published weights."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mmrlhf.errors import UserError
from mmrlhf.rewards.encoders.dual_encoder import DualEncoder
from mmrlhf.rewards.encoders.open_clip import OpenClipBackbone
from mmrlhf.types import Images

HEAD_WIDTHS = {1280: 80}  # ViT-H-14's image tower; all others of open_clip's that are known by their width have 64


class HPSReward:
    """The cosine of image and prompt; its benchmark's tables show it ×100. Row-independent, differentiable in the images,
    picklable. Source: Wu et al. 2023, and the authors' published scorer: no logit_scale, and images fitted by their longer
    side between black bars.
    """

    differentiable = True

    def __init__(self, backbone: DualEncoder) -> None:
        self.backbone = backbone

    def __call__(self, images: Images, prompts: Sequence[str]) -> Float[Tensor, " b"]:
        if len(images) != len(prompts):
            raise UserError(f"got {len(images)} images and {len(prompts)} prompts: give a prompt an image")
        if not prompts:
            return images.new_zeros(0)
        seen, texts = self.backbone.embed_images(images), self.backbone.embed_prompts(prompts)
        return (seen * texts).sum(dim=-1).to(images.device)

    def to(self, device: torch.device | str) -> "HPSReward":
        """Move the weights; returns itself."""
        self.backbone.to(device)
        return self


def hps_reward(path: Path, state: Mapping[str, Tensor], heads: tuple[int, int] | None = None) -> HPSReward:
    """The reward of a state dict read from `path`. UserError where tensors are missing or do not fit together.

    `heads` are those of the image and the text tower, which no shape tells: by default 16 for ViT-H-14's image tower (1280
    wide), and 64 wide each for other widths.
    """
    import open_clip
    from open_clip.model import set_model_preprocess_cfg
    from open_clip.transform import PreprocessCfg

    try:
        architecture = architecture_of(state, heads)
        with torch.device("meta"):  # random weights for ViT-H-14 would take ten seconds
            model = open_clip.CLIP(**architecture)
        model.to_empty(device="cpu").load_state_dict(dict(state))
    except KeyError as error:
        raise UserError(
            f"{path} lacks {error.args[0]}: give the whole HPS_v2_compressed.pt or HPS_v2.1_compressed.pt"
        ) from None
    except (RuntimeError, ValueError, AssertionError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"the tensors of {path} do not fit together ({reason}): download it again") from error
    text = architecture["text_cfg"]
    model.attn_mask = causal_mask(text["context_length"])  # the one tensor that the file does not hold
    tokenizer = open_clip.SimpleTokenizer(context_length=text["context_length"])
    if (words := text["vocab_size"]) < tokenizer.vocab_size:
        raise UserError(
            f"{path} knows {words} tokens, open_clip's tokenizer has {tokenizer.vocab_size}: give HPS's own file"
        )
    size = architecture["vision_cfg"]["image_size"]
    set_model_preprocess_cfg(model, vars(PreprocessCfg(size=size, resize_mode="longest")))
    return HPSReward(OpenClipBackbone(model, tokenizer, architecture))


def architecture_of(state: Mapping[str, Tensor], heads: tuple[int, int] | None = None) -> dict[str, Any]:
    """open_clip's model_cfg, from the shapes of a CLIP's tensors. KeyError or ValueError where they tell none."""
    width, _, patch, _ = state["visual.conv1.weight"].shape
    side = math.isqrt(len(state["visual.positional_embedding"]) - 1)
    words, text_width = state["token_embedding.weight"].shape
    vision_heads, text_heads = heads or (width // HEAD_WIDTHS.get(width, 64), text_width // 64)
    for name, wide, count in (("image", width, vision_heads), ("text", text_width, text_heads)):
        if count < 1 or wide % count:
            raise ValueError(f"{count} heads in the {name} tower, which is {wide} wide: give heads=(image, text)")
    return {
        "embed_dim": state["text_projection"].shape[1],
        "vision_cfg": {
            "image_size": side * patch,
            "layers": count_blocks(state, "visual.transformer.resblocks."),
            "width": width,
            "head_width": width // vision_heads,
            "patch_size": patch,
            "mlp_ratio": mlp_ratio(state, "visual.transformer.resblocks.0.mlp.c_fc.weight"),
        },
        "text_cfg": {
            "context_length": len(state["positional_embedding"]),
            "vocab_size": words,
            "width": text_width,
            "heads": text_heads,
            "layers": count_blocks(state, "transformer.resblocks."),
            "mlp_ratio": mlp_ratio(state, "transformer.resblocks.0.mlp.c_fc.weight"),
        },
    }


def causal_mask(tokens: int) -> Float[Tensor, "t t"]:
    """What is added to attention: −∞ where a token would see a later one."""
    return torch.full((tokens, tokens), float("-inf")).triu(1)


def count_blocks(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbers follow `prefix` in the names."""
    return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})


def mlp_ratio(state: Mapping[str, Tensor], name: str) -> float:
    """The hidden width over the width, such that open_clip, which rounds the product down, comes back to it."""
    hidden, width = state[name].shape
    return hidden / width if int(width * (hidden / width)) == hidden else (hidden + 0.5) / width
