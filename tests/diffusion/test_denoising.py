"""Denoising errors against diffusers' own training target, and the start's errors beside those of the moved weights."""

from pathlib import Path

import torch
from diffusers import DDPMScheduler

from diffusion.denoising import denoising_errors, reference_errors
from mmrlhf.seeding import seeded
from tests.diffusion.test_policy import disturb, load


def test_errors_are_those_of_the_usual_training_step(model: Path) -> None:
    policy = load(model)
    disturb(policy)
    clean, noise = (torch.randn(3, 4, 8, 8, generator=seeded(i)) for i in range(2))
    times, conditions = torch.tensor([10, 500, 990]), policy.embed(["a cat", "a dog", "red"])
    scheduler = DDPMScheduler.from_config(policy.pipeline.scheduler.config)
    noised = scheduler.add_noise(clean, noise, times)
    with torch.no_grad():
        predicted = policy.network(noised, times, encoder_hidden_states=conditions["text"], return_dict=False)[0]
    expected = (predicted - noise).square().mean(dim=(1, 2, 3))
    errors = denoising_errors(policy, clean, noise, times.float(), conditions)
    torch.testing.assert_close(errors.detach(), expected, atol=1e-4, rtol=1e-4)
    errors.sum().backward()
    assert any(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in policy.parameters())
    start = reference_errors(policy, clean, noise, times.float(), conditions)
    torch.testing.assert_close(start, denoising_errors(load(model), clean, noise, times.float(), conditions).detach())
    assert (start - expected).abs().max() > 1e-4
