"""The moving average is the formula's, comes and goes without a trace, and is what a run writes."""

from pathlib import Path

import torch

from diffusion.averaging import WeightAverage
from diffusion.policy import DiffusionPolicy


def load(model: Path) -> DiffusionPolicy:
    return DiffusionPolicy.load(str(model), lora_rank=2, device="cpu")


def fill(policy: DiffusionPolicy, value: float) -> None:
    with torch.no_grad():
        for weight in policy.parameters():
            weight.fill_(value)


def test_it_is_the_formula(model: Path) -> None:
    policy = load(model)
    fill(policy, 0.0)
    average, expected = WeightAverage(policy, 0.5), 0.0
    for number, value in enumerate((1.0, 3.0, 2.0)):
        fill(policy, value)
        average.follow()
        decay = min(0.5, (1 + number) / (10 + number)) if number else 0.0
        expected = decay * expected + (1 - decay) * value
    with average.in_place():
        assert all(torch.allclose(weight, torch.tensor(expected)) for weight in policy.parameters())
    assert all((weight == 2.0).all() for weight in policy.parameters())


def test_its_state_goes_on_as_if_never_stopped(model: Path) -> None:
    policy = load(model)
    first, second = WeightAverage(policy, 0.9), WeightAverage(policy, 0.9)
    for value in (1.0, 5.0):
        fill(policy, value)
        first.follow()
    second.load_state_dict(first.state_dict())
    fill(policy, 2.0)
    for average in (first, second):
        average.follow()
    with first.in_place():
        kept = [weight.clone() for weight in policy.parameters()]
    with second.in_place():
        assert all(weight.equal(other) for weight, other in zip(policy.parameters(), kept, strict=True))


def test_a_decay_of_0_keeps_nothing(model: Path) -> None:
    policy = load(model)
    average = WeightAverage(policy, 0.0)
    fill(policy, 1.0)
    average.follow()
    with average.in_place():
        assert all((weight == 1.0).all() for weight in policy.parameters())
    assert average.state_dict() == {}
