"""The moving average is the formula's and that of diffusers, reads its checkpoints, and comes and goes without a trace."""

import torch
from diffusers.training_utils import EMAModel
from torch import nn

from mmrlhf.averaging import WeightAverage


class Weights:
    """Two tensors that are trained."""

    def __init__(self) -> None:
        self.own = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2, 2))]

    def parameters(self) -> list[nn.Parameter]:
        return self.own


def fill(policy: Weights, value: float) -> None:
    with torch.no_grad():
        for weight in policy.parameters():
            weight.fill_(value)


def averaged(average: WeightAverage) -> list[torch.Tensor]:
    with average.in_place():
        return [weight.detach().clone() for weight in average.policy.parameters()]


def test_it_is_the_formula() -> None:
    policy = Weights()
    average, expected = WeightAverage(policy, 0.5), 0.0
    for number, value in enumerate((1.0, 3.0, 2.0)):
        fill(policy, value)
        average.follow()
        decay = min(0.5, (1 + number) / (10 + number)) if number else 0.0
        expected = decay * expected + (1 - decay) * value
    assert all(torch.allclose(weight, torch.tensor(expected)) for weight in averaged(average))
    assert all((weight == 2.0).all() for weight in policy.parameters())


def test_it_is_that_of_diffusers_to_the_bit_and_goes_on_from_its_checkpoints() -> None:
    policy, generator = Weights(), torch.Generator().manual_seed(0)
    own, theirs = WeightAverage(policy, 0.3), EMAModel(policy.parameters(), decay=0.3)
    for update in range(12):
        for weight in policy.parameters():
            weight.data = torch.randn(weight.shape, generator=generator)
        if update == 6:
            own = WeightAverage(policy, 0.3)
            own.load_state_dict(theirs.state_dict())
        own.follow()
        theirs.step(policy.parameters())
        assert all(one.equal(other) for one, other in zip(averaged(own), theirs.shadow_params, strict=True))


def test_its_state_goes_on_as_if_never_stopped() -> None:
    policy = Weights()
    first, second = WeightAverage(policy, 0.9), WeightAverage(policy, 0.9)
    for value in (1.0, 5.0):
        fill(policy, value)
        first.follow()
    second.load_state_dict(first.state_dict())
    fill(policy, 2.0)
    for average in (first, second):
        average.follow()
    assert all(one.equal(other) for one, other in zip(averaged(first), averaged(second), strict=True))


def test_a_decay_of_0_keeps_nothing() -> None:
    policy = Weights()
    average = WeightAverage(policy, 0.0)
    fill(policy, 1.0)
    average.follow()
    assert all((weight == 1.0).all() for weight in averaged(average))
    assert average.state_dict() == {}
