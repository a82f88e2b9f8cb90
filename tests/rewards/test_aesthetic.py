"""LAION's aesthetic heads: the published network layer by layer, and the towers under it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import CLIPImageProcessor, CLIPModel

from mmrlhf.errors import UserError
from mmrlhf.rewards.aesthetic import AestheticReward, towers_of
from mmrlhf.rewards.published import load_published
from tests.rewards.encoders.test_siglip import files_of, images_of
from tests.rewards.test_clip import PROMPTS, pictures
from tests.small_towers import TEXT, VISION, aesthetic_head, clip_of_width, small_open_clip, write_aesthetic


@pytest.fixture(scope="module")
def clip_768(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip_of_width(tmp_path_factory.mktemp("clip-768"), 768)


@pytest.fixture(scope="module")
def deep_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_aesthetic(tmp_path_factory.mktemp("aesthetic"))


def test_the_aesthetic_network_is_computed_layer_by_layer(deep_file: Path, clip_768: Path) -> None:
    reward = load_published(deep_file, clip_768)
    assert isinstance(reward, AestheticReward)
    model, files = CLIPModel.from_pretrained(clip_768).eval(), files_of(4, (32, 32))
    pixels = CLIPImageProcessor.from_pretrained(clip_768)(files, return_tensors="pt")
    with torch.no_grad():
        seen = model.get_image_features(**pixels).pooler_output
        expected = aesthetic_head()(seen / seen.norm(dim=-1, keepdim=True))[:, 0]
    torch.testing.assert_close(reward(images_of(files), ["dog"] * 4), expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.01
    assert torch.equal(reward(images_of(files), ["dog"] * 4), reward(images_of(files), ["a red cat", "", "b", "c"]))


@pytest.mark.parametrize("width", [512, 768])
def test_linear_aesthetic_heads(tmp_path: Path, width: int) -> None:
    """The folder form: the head beside the CLIPModel that it was trained on."""
    folder = clip_of_width(tmp_path, width)
    linear = nn.Linear(width, 1)
    file = folder / {768: "sa_0_4_vit_l_14_linear.pth", 512: "sa_0_4_vit_b_32_linear.pth"}[width]
    torch.save(linear.state_dict(), file)
    reward = load_published(folder)
    assert isinstance(reward, AestheticReward)
    with torch.no_grad():
        expected = linear(reward.backbone.embed_images(pictures(3)))[:, 0]
    torch.testing.assert_close(reward(pictures(3), PROMPTS), expected)
    torch.testing.assert_close(load_published(file, folder)(pictures(3), PROMPTS), expected)


def test_an_open_clip_folder_under_an_aesthetic_head(deep_file: Path, tmp_path: Path) -> None:
    folder = small_open_clip(tmp_path, {"embed_dim": 768, "vision_cfg": VISION, "text_cfg": TEXT})
    reward: Any = load_published(deep_file, folder)
    with torch.no_grad():
        expected = aesthetic_head()(reward.backbone.embed_images(pictures(3)))[:, 0]
    torch.testing.assert_close(reward(pictures(3), PROMPTS), expected, rtol=1e-4, atol=1e-4)


def test_which_towers_a_head_was_trained_on() -> None:
    assert towers_of(Path("sac+logos+ava1-l14-linearMSE.pth"), 768) == "openai/clip-vit-large-patch14"
    assert towers_of(Path("renamed.pth"), 768) == "openai/clip-vit-large-patch14"
    assert towers_of(Path("sa_0_4_vit_b_32_linear.pth"), 512) == "openai/clip-vit-base-patch32"
    assert towers_of(Path("sa_0_4_vit_b_16_linear.pth"), 512) == "openai/clip-vit-base-patch16"
    for name, width in (("renamed.pth", 512), ("sa_0_4_vit_l_14_linear.pth", 640)):
        with pytest.raises(UserError, match=f"embeddings of {width} numbers and its name does not say whose"):
            towers_of(Path(name), width)
