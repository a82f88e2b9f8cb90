"""HPS v2: open_clip's own cosine from files of the published layout, and the architecture from shapes."""

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2

from mmrlhf.errors import UserError
from mmrlhf.rewards.encoders.clip import load_backbone
from mmrlhf.rewards.hps import HPSReward, architecture_of
from mmrlhf.rewards.published import load_published
from tests.rewards.encoders.test_siglip import files_of, images_of
from tests.rewards.test_clip import PROMPTS, pictures
from tests.small_towers import SMALL_HPS, TEXT, VISION, hps_model, write_hps


@pytest.fixture(scope="module")
def hps_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hps(tmp_path_factory.mktemp("hps"))


@pytest.mark.parametrize("shape", [(32, 32), (48, 80), (90, 37)])
def test_hps_is_the_cosine_of_open_clip(hps_file: Path, shape: tuple[int, int]) -> None:
    """The library's encoders on what the authors' transform makes of the files: longer side to size, black bars."""
    files = files_of(3, shape)
    model = hps_model(SMALL_HPS)
    model.load_state_dict(torch.load(hps_file, weights_only=True)["state_dict"])
    transform = image_transform_v2(PreprocessCfg(size=32, resize_mode="longest"), is_train=False)
    tokens = open_clip.SimpleTokenizer(context_length=24)(PROMPTS)
    with torch.no_grad():
        seen = model.encode_image(torch.stack([transform(file) for file in files]), normalize=True)
        expected = (seen @ model.encode_text(tokens, normalize=True).T).diag()
    reward = load_published(hps_file)
    assert isinstance(reward, HPSReward)
    exact = shape == (32, 32)  # the transform rounds a resized picture to 256 levels
    torch.testing.assert_close(reward(images_of(files), PROMPTS), expected, rtol=0, atol=1e-5 if exact else 2e-3)
    assert expected.std() > 0.02
    assert {part.dtype for part in reward.backbone.model.parameters()} == {torch.float32}


def test_the_real_hps_layout_is_vit_h_14() -> None:
    """Every tensor of open_clip's ViT-H-14, without its memory: the shapes give back the library's own configuration."""
    config = open_clip.get_model_config("ViT-H-14")
    with torch.device("meta"):
        state = open_clip.CLIP(**config).state_dict()
    found = architecture_of(state)
    assert {found["vision_cfg"].pop("mlp_ratio"), found["text_cfg"].pop("mlp_ratio")} == {4.0}
    assert found == config


@pytest.mark.parametrize("ratio", [4.0, 4.3637, 3.7362, 2.6667])
def test_any_mlp_ratio_comes_back(ratio: float) -> None:
    vision = VISION | {"width": 192, "head_width": 64, "mlp_ratio": ratio}
    with torch.device("meta"):
        state = open_clip.CLIP(16, vision, TEXT | {"width": 64}).state_dict()
        again = open_clip.CLIP(**architecture_of(state)).state_dict()
    assert {name: part.shape for name, part in again.items()} == {name: part.shape for name, part in state.items()}


def test_heads_can_be_given(tmp_path: Path) -> None:
    """Shapes tell no heads: with those of the model it is the same, with others it is not."""
    architecture = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT}  # 2 heads of 32 and 2 of 16
    model, file = hps_model(architecture), tmp_path / "mine.pt"
    torch.save({"state_dict": {f"module.{name}": part for name, part in model.state_dict().items()}}, file)
    reward: Any = load_published(file, heads=(2, 2))
    with torch.no_grad():
        pixels = reward.backbone.pixels(pictures(1))
        expected = (model.encode_image(pixels, normalize=True) * reward.backbone.embed_prompts(["dog"])).sum()
    torch.testing.assert_close(reward(pictures(1), ["dog"]), expected[None], rtol=0, atol=1e-6)
    assert abs(float(load_published(file, heads=(1, 2))(pictures(1), ["dog"]) - expected)) > 1e-4
    with pytest.raises(UserError, match=r"0 heads in the text tower, which is 32 wide: give heads=\(image, text\)"):
        load_published(file)
    with pytest.raises(UserError, match="3 heads in the image tower, which is 64 wide"):
        load_published(file, heads=(3, 2))


def test_the_towers_of_hps_can_be_trained_further(hps_file: Path, tmp_path: Path) -> None:
    """Saved in open_clip's layout they are a backbone like any other."""
    reward: Any = load_published(hps_file)
    reward.backbone.save(tmp_path)
    again = HPSReward(load_backbone(tmp_path))
    assert torch.equal(again(pictures(3, 48), PROMPTS), reward(pictures(3, 48), PROMPTS))
    assert reward.backbone.model.state_dict().keys() == hps_model(SMALL_HPS).state_dict().keys()


def test_counts_of_images_and_prompts(hps_file: Path) -> None:
    with pytest.raises(UserError, match="got 2 images and 1 prompts"):
        load_published(hps_file)(pictures(2), ["dog"])
