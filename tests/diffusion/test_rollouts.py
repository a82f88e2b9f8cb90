import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion.policy import DiffusionPolicy
from diffusion.rollouts import draw_prompts, rate, sample_and_rate, sample_epoch, select
from mmrlhf.errors import UserError
from mmrlhf.seeding import seeded
from mmrlhf.types import Rollout


def test_prompts_come_in_turn_each_repeated() -> None:
    prompts = [str(i) for i in range(5)]
    drawn = draw_prompts(prompts, 12, 2, seeded(0))
    assert drawn[::2] == drawn[1::2] and set(drawn[:10]) == set(prompts) and len(drawn) == 12
    assert set(Counter(draw_prompts(prompts, 15, 1, seeded(0))).values()) == {3}
    assert draw_prompts(prompts, 12, 2, seeded(1)) != drawn
    assert len(draw_prompts(prompts, 3, 2, seeded(0))) == 3


def test_an_epoch_is_its_batches_and_can_be_taken_apart(model: Path) -> None:
    policy = DiffusionPolicy.load(str(model), num_steps=2, guidance_scale=1.0, device="cpu")
    generator = seeded(0)
    first, second = policy.sample(["a cat", "a dog"], generator), policy.sample(["red"], generator)
    whole = sample_epoch(policy, ["a cat", "a dog", "red"], 2, seeded(0))
    assert whole.prompts == ("a cat", "a dog", "red")
    assert whole.images[:2].equal(first.images) and whole.next_latents[2:].equal(second.next_latents)
    part = select(whole, torch.tensor([2, 0]))
    assert part.prompts == ("red", "a cat") and part.log_probs.equal(whole.log_probs[[2, 0]])
    assert rate(lengths, whole, 2).tolist() == [5.0, 5.0, 3.0]
    with pytest.raises(UserError, match=r"the reward gave shape \(1,\) for 2 images, allowed is one number an image"):
        rate(lambda images, prompts: torch.zeros(1), whole, 2)


def lengths(images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
    return torch.tensor([float(len(prompt)) for prompt in prompts])


def test_a_batch_is_judged_while_the_next_is_drawn(model: Path) -> None:
    """The reward of the first batch waits for the second one to be drawn, which it could not where they took turns."""
    policy = DiffusionPolicy.load(str(model), num_steps=2, guidance_scale=1.0, device="cpu")
    drawn, draw = [0], policy.sample
    second = threading.Event()

    def sample(*arguments: Any, **named: Any) -> Rollout:
        drawn[0] += 1
        if drawn[0] == 2:
            second.set()
        return draw(*arguments, **named)

    def reward(images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        assert second.wait(timeout=30)
        return lengths(images, prompts) + images.mean(dim=(1, 2, 3))

    policy.sample = sample  # type: ignore[method-assign]
    rollout, rewards = sample_and_rate(policy, reward, ["a cat", "a dog", "red"], 2, seeded(0))
    policy.sample = draw  # type: ignore[method-assign]
    assert rollout.images.equal(sample_epoch(policy, ["a cat", "a dog", "red"], 2, seeded(0)).images)
    assert rewards.tolist() == pytest.approx((torch.tensor([5.0, 5, 3]) + rollout.images.mean(dim=(1, 2, 3))).tolist())


def test_what_the_reward_raises_ends_the_sampling(model: Path) -> None:
    policy = DiffusionPolicy.load(str(model), num_steps=2, guidance_scale=1.0, device="cpu")

    def broken(images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        sample_and_rate(policy, broken, ["a cat", "a dog"], 1, seeded(0))


def test_a_model_on_the_cpu_judges_in_between(model: Path) -> None:
    policy = DiffusionPolicy.load(str(model), num_steps=2, guidance_scale=1.0, device="cpu")
    judging = list[str]()

    class Judge(torch.nn.Module):
        def forward(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
            judging.append(threading.current_thread().name)
            return lengths(images, prompts)

    _, rewards = sample_and_rate(policy, Judge(), ["a cat", "a dog", "red"], 2, seeded(0))
    assert rewards.tolist() == [5, 5, 3] and judging == [threading.current_thread().name] * 2
