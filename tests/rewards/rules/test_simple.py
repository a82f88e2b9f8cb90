"""Rewards without training: known cases, finite differences, and the dict they are found in."""

import io
import pickle
from pathlib import Path

import pytest
import torch
from PIL import Image

from mmrlhf.errors import UserError
from mmrlhf.rewards import REWARDS, load_reward
from mmrlhf.rewards.clip import CLIPReward
from mmrlhf.rewards.rules.simple import Brightness, Colourfulness, JpegSize, Redness, Warmth
from mmrlhf.taste import colourfulness
from mmrlhf.types import Reward

SIMPLE = ["jpeg-size", "jpeg-compressibility", "brightness", "colourfulness", "redness", "warmth"]


def plain(*colours: tuple[float, float, float]) -> torch.Tensor:
    return torch.tensor(colours).view(-1, 3, 1, 1).expand(-1, 3, 8, 8).clone()


def noise(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_known_colours() -> None:
    images = plain((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0))
    prompts = [""] * 4
    assert Brightness()(images, prompts).tolist() == pytest.approx([0, 1, 0.299, 0.114])
    assert Redness()(images, prompts).tolist() == pytest.approx([0, 0, 1, -0.5])
    assert Warmth()(images, prompts).tolist() == pytest.approx([0, 0, 1, -1])
    # plain red: opponents (1, 0.5) without spread
    assert Colourfulness()(images, prompts).tolist() == pytest.approx([0, 0, 0.3 * 1.25**0.5, 0.3], abs=1e-6)


def test_colourfulness_is_that_of_the_other_implementation() -> None:
    torch.testing.assert_close(Colourfulness()(noise(5), [""] * 5), colourfulness(noise(5)), atol=1e-5, rtol=1e-4)


def test_jpeg_size_is_the_files() -> None:
    detail, flat = (noise(1)[0] * 255).round() / 255, plain((0.5, 0.5, 0.5))[0]
    file = io.BytesIO()
    Image.fromarray((detail * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()).save(file, "JPEG", quality=95)
    sizes = JpegSize()(torch.stack([detail, flat, flat * float("nan")]), [""] * 3)
    assert float(sizes[0]) == pytest.approx(len(file.getvalue()) / 1000)
    assert sizes[0] > sizes[1] > 0 and sizes[2].isnan()
    assert float(JpegSize(sign=-1)(detail.unsqueeze(0), [""])) == -float(sizes[0])


@pytest.mark.parametrize("name", SIMPLE)
def test_rows_alone_and_together_and_pickled(name: str) -> None:
    reward = load_reward(name)
    together = reward(noise(4), ["a"] * 4)
    assert together.shape == (4,) and len(set(together.tolist())) > 1
    alone = torch.cat([reward(image.unsqueeze(0), ["a"]) for image in noise(4)])
    torch.testing.assert_close(alone, together)
    torch.testing.assert_close(pickle.loads(pickle.dumps(reward))(noise(4), ["a"] * 4), together)


@pytest.mark.parametrize("name", [name for name in SIMPLE if not name.startswith("jpeg")])
def test_gradients_where_promised(name: str) -> None:
    reward = load_reward(name)
    assert reward.differentiable
    images = noise(2).double().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: reward(x, ["a", "b"]), images)
    grey = plain((0.5, 0.5, 0.5)).requires_grad_(True)
    reward(grey, ["a"]).sum().backward()
    assert grey.grad is not None and grey.grad.isfinite().all()
    assert not load_reward("jpeg-size").differentiable


def test_every_name_is_a_reward() -> None:
    assert set(SIMPLE) < set(REWARDS)
    for name in SIMPLE:
        assert isinstance(load_reward(name), Reward)


def test_folders_and_what_is_neither(clip_folder: Path, headed: CLIPReward, tmp_path: Path) -> None:
    headed.save(tmp_path / "reward")
    images = noise(2)
    trained, plain_score = load_reward(str(tmp_path / "reward")), load_reward(clip_folder)
    torch.testing.assert_close(trained(images, ["a", "b"]), headed(images, ["a", "b"]))
    torch.testing.assert_close(plain_score(images, ["a", "b"]), CLIPReward(headed.backbone)(images, ["a", "b"]))
    (tmp_path / "file").write_text("")
    for name, what in [("brightnes", "is neither a name nor a folder"), (str(tmp_path), "holds no reward"),
                       (str(tmp_path / "file"), "is a file")]:  # fmt: skip
        with pytest.raises(UserError, match=f"{what}: allowed are jpeg-size, .*pickscore, a folder"):
            load_reward(name)
