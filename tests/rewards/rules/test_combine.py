"""Weighted sums and vetoes: by hand, gradients, and the scales that are measured beforehand."""

import math
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.data import Item
from mmrlhf.errors import UserError
from mmrlhf.rewards.clip import CLIPReward
from mmrlhf.rewards.rules.combine import Combination, Constraint, Part, measure
from mmrlhf.rewards.rules.simple import Brightness, JpegSize, Redness, Warmth
from mmrlhf.types import Reward
from tests.small_clip import noisy_colour

NAN = math.nan


@dataclass(frozen=True)
class Channel:
    """The image's first pixel in one channel; 7 abstains."""

    channel: int
    differentiable: bool = True

    def __call__(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        values = images[:, self.channel, 0, 0]
        return torch.where(values == 7, NAN, values)


def pixels(*rows: tuple[float, float, float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32).view(-1, 3, 1, 1)


def scores(combination: Combination, images: torch.Tensor) -> list[float]:
    return combination(images, [""] * len(images)).tolist()


def test_weights_means_and_deviations_by_hand() -> None:
    combination = Combination((Part(Channel(0), 2.0, mean=1.0, std=4.0), Part(Channel(1), -0.5)))
    assert scores(combination, pixels((3, 4, 0), (1, 0, 0))) == [2 * (3 - 1) / 4 - 2, 0]


def test_who_abstains() -> None:
    images = pixels((7, 1, 0), (1, 7, 0))
    both = Combination((Part(Channel(0)), Part(Channel(1))))
    assert all(math.isnan(value) for value in scores(both, images))
    unweighted = scores(Combination((Part(Channel(0)), Part(Channel(1), 0.0))), images)
    assert math.isnan(unweighted[0]) and unweighted[1] == 1


def test_the_veto_comes_first() -> None:
    limits = (Constraint(Channel(1), at_least=0.5), Constraint(Channel(2), at_most=0.0))
    images = pixels((9, 0.5, 0), (9, 0.4, 0), (9, 1, 0.1), (7, 0, 0), (9, 7, 0), (9, 7, 1), (-99, 1, -1), (7, 1, 0))
    found = scores(Combination((Part(Channel(0)),), limits, veto_score=-5.0), images)
    # passes, breaks one, breaks the other, vetoed whatever the part says, unsure, vetoed by the other, floored, unsure
    assert found[:4] == [9, -5, -5, -5] and found[5:7] == [-5, -5]
    assert math.isnan(found[4]) and math.isnan(found[7])
    abstains = scores(Combination((Part(Channel(0)),), limits), images)
    assert abstains[0] == 9 and abstains[6] == -99
    assert [math.isnan(value) for value in abstains] == [False, True, True, True, True, True, False, True]


@given(st.lists(st.tuples(*[st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 7.0])] * 3), min_size=1, max_size=6))
def test_rows_are_independent_and_no_vetoed_row_is_above_one_that_passes(
    rows: list[tuple[float, float, float]],
) -> None:
    combination = Combination((Part(Channel(0)), Part(Channel(1), -2.0)), (Constraint(Channel(2), 0.0, 1.0),), -1.5)
    images = pixels(*rows)
    together = combination(images, [""] * len(rows))
    alone = torch.cat([combination(image.unsqueeze(0), [""]) for image in images])
    torch.testing.assert_close(together, alone, equal_nan=True)
    for row, value in zip(rows, together.tolist(), strict=True):
        assert math.isnan(value) or value >= -1.5
        if not 0 <= row[2] <= 1 and row[2] != 7:
            assert value == -1.5


def test_gradients_through_every_part_and_past_no_constraint() -> None:
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    smooth = Combination((Part(Brightness(), 2.0), Part(Redness(), -1.0, 0.1, 0.5), Part(JpegSize(), 0.0)))
    assert isinstance(smooth, Reward) and smooth.differentiable
    assert torch.autograd.gradcheck(lambda x: smooth(x, ["a", "b"]), images)
    vetoing = Combination(smooth.parts, (Constraint(Warmth(), at_least=-1.0),), -9.0)
    rough = Combination((Part(Brightness()), Part(JpegSize())))
    for combination in (vetoing, rough):
        assert not combination.differentiable and not combination(images, ["a", "b"]).requires_grad
    torch.testing.assert_close(vetoing(images, ["a", "b"]), smooth(images, ["a", "b"]).detach())


def test_it_is_picklable_and_moves_its_models(headed: CLIPReward) -> None:
    combination = Combination((Part(headed), Part(Brightness())), (Constraint(headed, at_least=-1e3),), -1e4)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = headed(images, ["a", "b"]) + Brightness()(images, ["a", "b"])
    for other in (pickle.loads(pickle.dumps(combination)), combination.to("cpu")):
        torch.testing.assert_close(other(images, ["a", "b"]), expected)


def test_scales_are_measured(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    colours = [(0.9, 0.2, 0.2), (0.2, 0.2, 0.9), (0.5, 0.5, 0.5)]
    items = [Item("p", noisy_colour(tmp_path / f"{i}.png", c, generator)) for i, c in enumerate(colours)]
    (part,) = measure([Part(Warmth(), 3.0)], items)
    assert part.weight == 3
    from mmrlhf.images import load_image

    standardised = Combination((Part(part.reward, 1.0, part.mean, part.std),))(
        torch.stack([load_image(item.image) for item in items]), ["p"] * 3
    )
    assert float(standardised.mean()) == pytest.approx(0, abs=1e-5)
    assert float(standardised.std(correction=0)) == pytest.approx(1, abs=1e-5)
    with pytest.raises(UserError, match="cannot standardise a reward by 1 scores without spread"):
        measure([Part(Warmth())], items[:1])
