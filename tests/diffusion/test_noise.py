import pytest
import torch

from diffusion.noise import gaussian, own_share
from mmrlhf.seeding import seeded

CPU = torch.device("cpu")


def draw(*numbers: int) -> list[float]:
    return torch.randn(4, generator=seeded(*numbers)).tolist()


def test_the_same_numbers_give_the_same_noise_and_others_another() -> None:
    keys = [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 1), (-1,), (2**40, 3)]
    assert all(draw(*key) == draw(*key) for key in keys)
    assert len({tuple(draw(*key)) for key in keys}) == len(keys)


def test_a_generator_a_sample_makes_its_noise_independent_of_the_others() -> None:
    together = gaussian((3, 4, 8, 8), [seeded(0, i) for i in range(3)], CPU)
    alone = gaussian((1, 4, 8, 8), [seeded(0, 2)], CPU)
    assert together[2].equal(alone[0])
    assert not together[0].equal(together[1])


@pytest.mark.parametrize("part", [range(0, 2), range(2, 3), range(3, 3)])
def test_a_share_is_a_part_of_the_whole_or_a_row_for_nothing(monkeypatch: pytest.MonkeyPatch, part: range) -> None:
    monkeypatch.setattr("diffusion.noise.own_part", lambda count: part)
    alone, shared = seeded(0), seeded(0)
    whole, share = gaussian((3, 4, 8, 8), alone, CPU), own_share(shared, 3)
    rows = part or range(1)
    assert gaussian((len(rows), 4, 8, 8), share, CPU).equal(whole[rows.start : rows.stop])
    assert torch.randn(1, generator=shared).equal(torch.randn(1, generator=alone))


def test_noise_is_standard_normal() -> None:
    noise = gaussian((16, 4, 32, 32), seeded(0), CPU)
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
