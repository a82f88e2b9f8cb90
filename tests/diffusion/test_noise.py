import torch

from diffusion.noise import gaussian
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


def test_noise_is_standard_normal() -> None:
    noise = gaussian((16, 4, 32, 32), seeded(0), CPU)
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
