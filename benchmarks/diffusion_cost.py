"""What fine-tuning a text-to-image model takes: memory against the rows at once, time and operations against steps and size.

python benchmarks/diffusion_cost.py --model tiny-sd --micro-batches 1 2 4 8 --num-steps 5 10 20

Memory is the peak of one training step of DDPO (forward and backward, no optimizer) over what is held before it, each in a
process of its own: resident memory on the CPU, what torch allocates on a GPU. Where the system does not let a process forget
its peak so far (Linux does), what stays below the peak of loading counts as nothing. Time is that of sampling with the LoRA, of
prompts that are encoded already. The lines are least-squares fits: the fixed part of sampling is mostly decoding.
"""

import argparse
import gc
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from ddpo_throughput import seconds
from ddpo_work import flops
from trl_side import memory

from diffusion.ddpo import step_loss
from diffusion.ddpo_config import DDPOConfig
from diffusion.noise import gaussian
from diffusion.policy import DiffusionPolicy
from diffusion.rollouts import single_steps
from mmrlhf.errors import UserError
from mmrlhf.seeding import seeded
from mmrlhf.types import Rollout

RESULT = "peak of the step, MiB: "


def load(given: argparse.Namespace, checkpointing: bool = False) -> DiffusionPolicy:
    """The model with a fresh LoRA, or all weights to be trained."""
    shared = {name: getattr(given, name) for name in ("lora_rank", "guidance_scale", "device", "dtype", "size")}
    return DiffusionPolicy.load(given.model, gradient_checkpointing=checkpointing, **shared)


def held_and_peak(device: torch.device) -> tuple[float, float]:
    """MiB that this process holds now, and the most so far; where the system tells the peak only, that is both."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 2**20, torch.cuda.max_memory_allocated(device) / 2**20
    now, peak = memory()
    return (peak if math.isnan(now) else now), peak


def forget_peak(device: torch.device) -> None:
    """From here on the peak counts anew, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif (reset := Path("/proc/self/clear_refs")).exists():
        reset.write_text("5")


def states(policy: DiffusionPolicy, count: int) -> Rollout:
    """First steps of `count` samples made of noise: what a training step is given, without the memory that sampling takes."""
    noise = gaussian((2, count, 1, *policy.latent_shape), seeded(0), policy.device)
    prompts = tuple(f"picture {i % 8}" for i in range(count))
    times = policy.sampler.timesteps[:1].to(policy.device).expand(count, 1)
    images = torch.zeros(count, 3, 1, 1, device=policy.device)
    return Rollout(prompts, noise[0], noise[1], times, images[:, :1, 0, 0], images, noise[0, :, 0])


def measure_step(given: argparse.Namespace, rows: int, checkpointing: bool) -> float:
    """MiB that one training step on so many rows adds at its peak."""
    policy = load(given, checkpointing)
    batch = single_steps(states(policy, rows), torch.arange(rows), torch.zeros(rows, dtype=torch.long))
    config = DDPOConfig(model=given.model, prompts=Path(), reward="", out=Path())
    policy.context(batch.prompts)  # encodes the prompts
    gc.collect()
    forget_peak(policy.device)
    held, _ = held_and_peak(policy.device)
    step_loss(policy, batch, torch.linspace(-1, 1, rows)[:, None], config)[0].backward()
    return held_and_peak(policy.device)[1] - held


def memory_of(rows: int, checkpointing: bool) -> float:
    """`measure_step` in a fresh process; NaN where the GPU's memory does not suffice. UserError where it fails otherwise."""
    command = [sys.executable, __file__, *sys.argv[1:], "--step-of", str(rows), *["--checkpointing"] * checkpointing]
    give_back = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # so that what is freed does not count as held
    done = subprocess.run(command, env=os.environ | give_back, capture_output=True, text=True)
    if done.returncode and "OutOfMemoryError" in done.stderr:
        return math.nan
    if done.returncode or RESULT not in done.stdout:
        raise UserError(f"measuring {rows} rows ended with status {done.returncode}:\n{done.stderr[-3000:]}")
    return float(done.stdout.rpartition(RESULT)[2])


def line(counts: Sequence[float], values: Sequence[float], unit: str, each: str) -> str:
    """The fixed part of the values and what each one more adds, of those that are known."""
    known = [(count, value) for count, value in zip(counts, values, strict=True) if not math.isnan(value)]
    if len({count for count, _ in known}) < 2:
        return "too few for a line"
    slope, fixed = statistics.linear_regression(*zip(*known, strict=True))
    return f"{fixed:.3g} {unit} + {slope:.3g} a {each}"


def memory_table(given: argparse.Namespace) -> Iterator[str]:
    """Peaks of a step, without and with gradient checkpointing."""
    counts, first = given.micro_batches, given.micro_batches[0]
    plain, less = ([memory_of(rows, kind) for rows in counts] for kind in (False, True))
    yield f"| rows at once | MiB | : {first} | checkpointed, MiB | : {first} | checkpointed : not |"
    yield "| ---: | ---: | ---: | ---: | ---: | ---: |"
    for rows, one, two in zip(counts, plain, less, strict=True):
        yield f"| {rows} | {one:.1f} | {one / plain[0]:.2f} | {two:.1f} | {two / less[0]:.2f} | {two / one:.2f} |"
    yield f"\nwithout: {line(counts, plain, 'MiB', 'row')}; checkpointed: {line(counts, less, 'MiB', 'row')}\n"


def cost_table(given: argparse.Namespace) -> Iterator[str]:
    """Seconds and operations of drawing an image, for each size and number of steps."""
    loaded = load(given)
    prompts = [f"picture {i % 8}" for i in range(given.batch)]
    own = loaded.latent_shape[-1] * loaded.pipeline.vae_scale_factor
    policies = {
        (size, steps): DiffusionPolicy(loaded.pipeline, num_steps=steps, guidance_scale=given.guidance_scale, size=size)
        for size in given.sizes or [own, 2 * own]
        for steps in given.num_steps
    }
    works: dict[str, Callable[[], object]] = {
        f"{key}": partial(policy.sample, prompts, seeded(0)) for key, policy in policies.items()
    }
    each_took = seconds(works, given.repeats)
    took = {key: each_took[f"{key}"] / given.batch for key in policies}
    counted = {key: flops(partial(policy.sample, prompts[:1], seeded(0))) / 1e9 for key, policy in policies.items()}
    once, least = next(iter(took.values())), next(iter(counted.values()))
    yield "| size | steps | s an image | : first | GFLOP an image | : first |\n| ---: | ---: | ---: | ---: | ---: | ---: |"
    for (size, steps), each in took.items():
        work = counted[size, steps]
        yield f"| {size} | {steps} | {each:.4f} | {each / once:.2f} | {work:.2f} | {work / least:.2f} |"
    yield ""
    for size in dict.fromkeys(size for size, _ in policies):
        times, works_of = ([found[size, steps] for steps in given.num_steps] for found in (took, counted))
        steps = given.num_steps
        yield f"size {size}: {line(steps, times, 's', 'step')}; {line(steps, works_of, 'GFLOP', 'step')}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-sd")
    parser.add_argument("--micro-batches", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--size", type=int, help="pixels of the training step; none: the model's own")
    parser.add_argument("--num-steps", type=int, nargs="+", default=[5, 10, 20])
    parser.add_argument(
        "--sizes", type=int, nargs="+", help="pixels of sampling; none: the model's own, and twice that"
    )
    parser.add_argument("--batch", type=int, default=4, help="images drawn at a time")
    parser.add_argument("--guidance-scale", type=float, default=5.0)
    parser.add_argument("--lora-rank", type=int, default=4, help="0 trains all weights")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--step-of", type=int, help=argparse.SUPPRESS)  # what `memory_of` starts
    parser.add_argument("--checkpointing", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    try:
        if given.step_of is not None:
            print(f"{RESULT}{measure_step(given, given.step_of, given.checkpointing)}")
            return
        print(
            f"model {given.model}, guidance {given.guidance_scale:g}, LoRA of rank {given.lora_rank}, {given.dtype}\n"
        )
        for row in (*memory_table(given), *cost_table(given)):
            print(row)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
