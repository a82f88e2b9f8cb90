"""A real CLIPModel folder with random weights, small enough to be made in the tests, and a folder of pictures."""

from pathlib import Path

import pytest
import torch

from mmrlhf.images import save_image


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `save_pretrained` writes for a CLIPModel and its CLIPImageProcessor."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=tower | {"vocab_size": 60, "max_position_embeddings": 24},
        vision_config=tower | {"image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    folder = tmp_path_factory.mktemp("clip")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.25] * 3
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Twelve pictures of several sizes; the last is a copy of the first."""
    generator = torch.Generator().manual_seed(0)
    folder = tmp_path / "pictures"
    for number in range(11):
        colour = torch.rand(3, 1, 1, generator=generator)
        noise = torch.rand(3, 32 + 4 * (number % 3), 32, generator=generator)
        save_image(0.7 * colour + 0.3 * noise, folder / f"{number:02}.png")
    (folder / "11.png").write_bytes((folder / "00.png").read_bytes())
    return folder
