"""The DINOv2 backbone: transformers' own embeddings and preprocessing, its patches, and its folder."""

import pickle
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModel, BitImageProcessor

from mmrlhf.errors import UserError
from mmrlhf.rewards.clip import CLIPReward
from mmrlhf.rewards.encoders.clip import load_backbone
from mmrlhf.rewards.encoders.dinov2 import Dinov2Backbone
from mmrlhf.rewards.encoders.dual_encoder import DualEncoder
from mmrlhf.rewards.train import TrainConfig, train
from tests.rewards.encoders.test_siglip import files_of, images_of
from tests.small_towers import small_dinov2


@pytest.fixture(scope="module", params=[False, True])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Published as DINOv2 is: learnt at a larger size than its processor makes; without registers and with."""
    return small_dinov2(tmp_path_factory.mktemp("small-dinov2"), registers=request.param)


@pytest.mark.parametrize("shape", [(48, 48), (90, 61), (64, 150), (42, 42)])
def test_embeddings_are_those_of_transformers(folder: Path, shape: tuple[int, int]) -> None:
    backbone = load_backbone(folder)
    assert isinstance(backbone, Dinov2Backbone) and isinstance(backbone, DualEncoder)
    files = files_of(3, shape)
    given = dict(do_resize=False, do_center_crop=False) if shape == (42, 42) else {}  # it goes in whole
    pixels = BitImageProcessor.from_pretrained(folder)(files, return_tensors="pt", **given).pixel_values
    with torch.no_grad():
        out = AutoModel.from_pretrained(folder).eval()(pixel_values=pixels)
    expected = F.normalize(out.pooler_output, dim=-1)
    images = images_of(files)
    found = backbone.embed_images(images)
    exact = shape in ((48, 48), (42, 42))  # the processor rounds a resized picture to 256 levels
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 if exact else 0.02)
    assert torch.pdist(expected).min() > 0.05  # so that the tolerance means something
    square = backbone.preprocess(images)
    assert square.shape[-2:] == (42, 42) and torch.equal(backbone.preprocess(square), square)
    features = backbone.image_features(images)
    assert features.shape == (3, backbone.feature_width) == (3, 5 * 32)
    torch.testing.assert_close(features[:, :32], found)
    torch.testing.assert_close(features[:, 32:64], out.last_hidden_state[:, -9:].mean(dim=1), rtol=0, atol=0.02)


def test_it_is_saved_and_pickled_and_reads_no_prompt(folder: Path, tmp_path: Path) -> None:
    backbone, images = load_backbone(folder), images_of(files_of(2, (60, 50)))
    backbone.save(tmp_path)
    for other in (load_backbone(tmp_path), pickle.loads(pickle.dumps(backbone))):
        assert torch.equal(other.embed_images(images), backbone.embed_images(images))
    assert not backbone.embed_prompts(["a", "b"]).any() and backbone.count_truncated(["a"]) == 0
    with pytest.raises(UserError, match="reads no prompt and scores nothing by itself"):
        CLIPReward.from_pretrained(folder)


def test_a_head_on_it_learns(folder: Path, pairs_file: Path, tmp_path: Path) -> None:
    result = train(TrainConfig(data=pairs_file, out=tmp_path / "reward", model=str(folder), validation=0.3))
    assert max(line["held_out_agreement"] for line in result.metrics if "held_out_agreement" in line) > 0.75


def test_what_cannot_be_loaded_is_told(folder: Path, clip_folder: Path, tmp_path: Path) -> None:
    small_dinov2(tmp_path / "other", resample=2)
    with pytest.raises(UserError, match="resizes otherwise than DINOv2, allowed is bicubic"):
        load_backbone(tmp_path / "other")
    small_dinov2(tmp_path / "cut")
    (tmp_path / "cut" / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="cannot load the DINOv2 model"):
        load_backbone(tmp_path / "cut")
    with pytest.raises(UserError, match="is a clip, allowed are dinov2 and dinov2_with_registers"):
        Dinov2Backbone.load(clip_folder)
