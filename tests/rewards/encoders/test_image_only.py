"""A pretrained backbone under a reward's head: images alone decide, and what needs a text tower is refused."""

import pickle
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from mmrlhf.backbones import make_backbone, save_backbone
from mmrlhf.errors import UserError
from mmrlhf.rewards import load_reward
from mmrlhf.rewards.clip import CLIPReward
from mmrlhf.rewards.encoders.clip import load_backbone
from mmrlhf.rewards.encoders.dual_encoder import DualEncoder
from mmrlhf.rewards.encoders.image_only import ImageOnlyBackbone
from mmrlhf.rewards.train import TrainConfig, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh network, in a folder whose name says bert: transformers guesses what a model is from the name, too."""
    where = tmp_path_factory.mktemp("bert")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_backbone(make_backbone("test_resnet", 32), where)
    return where


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, 48, 40, generator=torch.Generator().manual_seed(seed))


def test_it_is_a_dual_encoder_that_reads_nothing(folder: Path, tmp_path: Path) -> None:
    backbone = load_backbone(folder)
    assert isinstance(backbone, ImageOnlyBackbone) and isinstance(backbone, DualEncoder)
    seen = backbone.embed_images(images(3))
    direct = F.normalize(backbone.backbone(backbone.preprocess(images(3))), dim=-1)
    torch.testing.assert_close(seen, direct)
    assert seen.shape == (3, backbone.feature_width) == (3, backbone.embedding_width)
    assert not backbone.embed_prompts(["a", "b"]).any() and backbone.count_truncated(["a"]) == 0
    backbone.save(tmp_path / "again")
    assert torch.equal(load_backbone(tmp_path / "again").embed_images(images(3)), seen)
    assert torch.equal(pickle.loads(pickle.dumps(backbone)).embed_images(images(3)), seen)


def test_a_head_on_it_learns_and_comes_back(folder: Path, pairs_file: Path, tmp_path: Path) -> None:
    result = train(TrainConfig(data=pairs_file, out=tmp_path / "reward", model=str(folder), validation=0.3))
    best = max(line["held_out_agreement"] for line in result.metrics if "held_out_agreement" in line)
    assert best > 0.75
    reward = load_reward(tmp_path / "reward")
    assert isinstance(reward, CLIPReward)
    batch = images(2, seed=1).requires_grad_()
    scores = reward(batch, ["a red cat", "a blue dog"])
    torch.testing.assert_close(scores, result.reward(batch, ["", "something else"]))
    scores.sum().backward()
    assert batch.grad is not None and batch.grad.abs().sum(dim=(1, 2, 3)).min() > 0


def test_what_needs_a_text_tower(folder: Path, pairs_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="reads no prompt and scores nothing by itself: train a head"):
        load_reward(folder)
    for tune in ("last", "lora", "full"):
        with pytest.raises(UserError, match=f"--train {tune} got a backbone that reads no prompt.*give --train head"):
            train(TrainConfig(data=pairs_file, out=tmp_path / tune, model=str(folder), train=tune))
        assert not (tmp_path / tune).exists()


def test_a_broken_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(UserError, match="the backbone in .* is broken"):
        load_backbone(tmp_path)
