"""The forward processes against diffusers' schedulers, and back to the sample from a perfect answer."""

import pytest
import torch
from diffusers import DDPMScheduler

from diffusion.forward import ForwardProcess, RectifiedFlow, VariancePreserving
from mmrlhf.seeding import seeded

CLEAN = torch.randn(6, 4, 2, 2, generator=seeded(0))
NOISE = torch.randn(6, 4, 2, 2, generator=seeded(1))


def processes() -> list[ForwardProcess]:
    kinds = [DDPMScheduler(prediction_type=kind).config for kind in ("epsilon", "v_prediction")]
    return [*(VariancePreserving(config) for config in kinds), RectifiedFlow(1000)]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_noised_samples_and_targets_are_those_of_diffusers(kind: str) -> None:
    scheduler = DDPMScheduler(prediction_type=kind)
    process, times = VariancePreserving(scheduler.config), torch.tensor([0, 1, 250, 500, 900, 999])
    torch.testing.assert_close(
        process.noised(CLEAN, NOISE, times.float()), scheduler.add_noise(CLEAN, NOISE, times), atol=1e-5, rtol=1e-4
    )
    expected = NOISE if kind == "epsilon" else scheduler.get_velocity(CLEAN, NOISE, times)
    torch.testing.assert_close(process.target(CLEAN, NOISE, times.float()), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("process", processes())
def test_a_perfect_answer_gives_the_sample_back(process: ForwardProcess) -> None:
    times = torch.tensor([1.0, 10.0, 250.0, 500.0, 800.0, 900.0])
    noised = process.noised(CLEAN, NOISE, times)
    answer = process.target(CLEAN, NOISE, times)
    torch.testing.assert_close(process.clean(answer, noised, times), CLEAN, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("process", processes())
def test_times_are_within_the_training_steps(process: ForwardProcess) -> None:
    times = process.draw(10_000, seeded(0))
    assert times.min() >= 0 and times.max() <= 1000 and times.std() > 150
    assert process.draw(5, seeded(3)).equal(process.draw(5, seeded(3)))
    assert 480 < float(times.mean()) < 520
