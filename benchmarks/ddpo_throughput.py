"""How fast DDPO samples and trains, and what each shortcut is worth: ratios measured in one run.

python benchmarks/ddpo_throughput.py --model tiny-sd --batch 32 --num-steps 10
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from diffusion.ddpo import step_loss
from diffusion.ddpo_config import DDPOConfig
from diffusion.families.family import rows_of
from diffusion.policy import DiffusionPolicy
from diffusion.rollouts import sample_epoch, single_steps
from mmrlhf.seeding import seeded


def seconds(works: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median time of each work, taken in turns so that a busy machine hits all alike, after a round that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats + 1):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(measured[1:]) for name, measured in times.items()}


class TwoPasses(DiffusionPolicy):
    """Guidance as two forward passes, to measure what one pass of both saves."""

    def predict(self, latents, times, context):
        if rows_of(context) == len(latents):
            return super().predict(latents, times, context)
        halves = ({name: values.chunk(2)[half] for name, values in context.items()} for half in range(2))
        without, with_text = (super(TwoPasses, self).predict(latents, times, half) for half in halves)
        return without + self.guidance_scale * (with_text - without)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny-sd")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--num-steps", type=int, default=10)
    parser.add_argument("--guidance-scale", type=float, default=5.0)
    parser.add_argument("--lora-rank", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()

    shared = {"num_steps": given.num_steps, "guidance_scale": given.guidance_scale, "device": given.device}
    policy = DiffusionPolicy.load(given.model, lora_rank=given.lora_rank, **shared)
    prompts = [f"picture {i % 8}" for i in range(given.batch)]
    rollout = sample_epoch(policy, prompts, given.batch, seeded(0))
    config = DDPOConfig(model=given.model, prompts="", reward="", out="")  # type: ignore[arg-type]
    advantages = torch.linspace(-1, 1, given.batch)[:, None]
    first = single_steps(rollout, torch.arange(given.batch), torch.zeros(given.batch, dtype=torch.long))

    def sample() -> None:
        policy.sample(prompts, seeded(0))

    def encode_each_time() -> None:
        for prompt in prompts:  # what a loop over prompts without a memory costs
            policy.embeddings.clear()
            policy.embed([prompt])
        sample()

    def train_step() -> None:
        step_loss(policy, first, advantages, config)[0].backward()

    def two_passes() -> None:
        policy.__class__ = TwoPasses
        sample()
        policy.__class__ = DiffusionPolicy

    def no_lora() -> None:
        with policy.reference():
            sample()

    def no_guidance() -> None:
        policy.guidance_scale = 1.0
        sample()
        policy.guidance_scale = given.guidance_scale

    def diffusers() -> None:  # the same weights, LoRA included
        steps = {"num_inference_steps": given.num_steps, "guidance_scale": given.guidance_scale}
        policy.pipeline(prompts, output_type="pt", **steps)

    works = [sample, encode_each_time, train_step, two_passes, no_lora, no_guidance, diffusers]
    took = seconds({work.__name__: work for work in works}, given.repeats)
    once = took["sample"]
    print(
        f"model {given.model}, batch {given.batch}, {given.num_steps} steps, guidance {given.guidance_scale}, {policy.device}"
    )
    print(f"sampling                {given.batch / once:10.1f} images/s")
    print(f"training                {given.batch / took['train_step']:10.1f} sample steps/s (forward and backward)")
    print(f"an image's whole update {given.batch / (once + given.num_steps * took['train_step']):10.2f} images/s")
    print(f"speed, prompts remembered : encoded   {took['encode_each_time'] / once:6.2f} x")
    print(f"speed, guidance in one pass : in two  {took['two_passes'] / once:6.2f} x")
    print(f"speed, no guidance : guidance         {once / took['no_guidance']:6.2f} x")
    print(f"speed, without LoRA : with it         {once / took['no_lora']:6.2f} x")
    print(f"speed, ours : diffusers' pipeline     {took['diffusers'] / once:6.2f} x")


if __name__ == "__main__":
    main()
