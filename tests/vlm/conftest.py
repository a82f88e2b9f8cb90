from pathlib import Path

import pytest

from tests.rewards.small_vlm import small_vlm
from tests.vlm.small_qwen import small_qwen


@pytest.fixture(scope="session")
def small_llava(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a small LlavaForConditionalGeneration with random weights."""
    return str(small_vlm(tmp_path_factory.mktemp("llava")))


@pytest.fixture(scope="session")
def small_qwen_vl(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a small Qwen2_5_VLForConditionalGeneration with random weights."""
    return str(small_qwen(tmp_path_factory.mktemp("qwen")))


@pytest.fixture(params=["llava", "qwen"])
def model(request: pytest.FixtureRequest, small_llava: str, small_qwen_vl: str) -> str:
    """Each of the two."""
    return {"llava": small_llava, "qwen": small_qwen_vl}[request.param]


@pytest.fixture
def picture_file(tmp_path: Path) -> Path:
    """A picture of 40 by 56 pixels."""
    import torch

    from mmrlhf.images import save_image

    save_image(torch.rand(3, 40, 56, generator=torch.Generator().manual_seed(0)), tmp_path / "picture.png")
    return tmp_path / "picture.png"
