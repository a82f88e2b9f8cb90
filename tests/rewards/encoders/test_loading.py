"""Batches come decoded ahead, in order, as one by one, and whatever was wrong with a file is told."""

from pathlib import Path

import pytest
import torch

from mmrlhf.errors import UserError
from mmrlhf.images import load_image, save_image
from mmrlhf.rewards.encoders.clip import CLIPBackbone
from mmrlhf.rewards.encoders.loading import ahead, preprocessed


@pytest.mark.parametrize("count", [0, 1, 5])
def test_batches_come_in_order(count: int) -> None:
    batches = [[Path(str(number))] * (number + 1) for number in range(count)]
    found = list(ahead(lambda paths: torch.tensor([float(str(path)) for path in paths]), batches))
    assert [values.tolist() for values in found] == [[float(number)] * (number + 1) for number in range(count)]


def test_at_most_one_batch_is_ahead() -> None:
    asked: list[int] = []

    def load(paths: object) -> torch.Tensor:
        asked.append(len(asked))
        return torch.zeros(1)

    for number, _ in enumerate(ahead(load, [[Path("x")]] * 6)):
        assert len(asked) <= number + 2


def test_files_are_resized_as_the_reward_would(tmp_path: Path) -> None:
    backbone = CLIPBackbone.load("tiny-clip")
    generator = torch.Generator().manual_seed(0)
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for number, path in enumerate(paths):
        save_image(torch.rand(3, 40 + 9 * number, 70, generator=generator), path)
    expected = torch.cat([backbone.preprocess(load_image(path).unsqueeze(0)) for path in paths])
    torch.testing.assert_close(
        torch.cat(list(preprocessed(backbone, [paths[:3], paths[3:]]))), expected, rtol=0, atol=0
    )


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="broken.png is not a readable image"):
        list(preprocessed(CLIPBackbone.load("tiny-clip"), [[tmp_path / "broken.png"]]))
