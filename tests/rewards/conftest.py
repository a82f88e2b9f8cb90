"""Models and pairs that the tests of the rewards share; none of them is changed by a test."""

from pathlib import Path

import pytest

from mmrlhf.rewards.clip import CLIPReward
from mmrlhf.rewards.encoders.clip import CLIPBackbone
from mmrlhf.rewards.head import HeadEnsemble
from tests.small_clip import small_clip, warm_pairs


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_clip(tmp_path_factory.mktemp("small-clip"))


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return warm_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture
def backbone(clip_folder: Path) -> CLIPBackbone:
    return CLIPBackbone.load(clip_folder)


@pytest.fixture
def headed(backbone: CLIPBackbone) -> CLIPReward:
    """A fresh head, temperature 2."""
    import torch

    head = HeadEnsemble(
        backbone.feature_width + backbone.embedding_width, members=3, generator=torch.Generator().manual_seed(0)
    )
    return CLIPReward(backbone, head, temperature=2.0)
