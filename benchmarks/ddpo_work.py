"""The half of `ddpo_vs_trl.py` that runs in mmrlhf's environment, and the processes of both halves.

python benchmarks/ddpo_work.py mmrlhf|count|profile SETTINGS.json RESULTS.json
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from trl_side import TURN, Meter, described, matmul_rate, memory, red_minus_blue, size, wait_for_turn, worker

from diffusion import ddpo, rollouts, training
from diffusion.ddpo_config import DDPOConfig
from diffusion.policy import DiffusionPolicy
from diffusion.rollouts import sample_epoch, single_steps
from mmrlhf.errors import UserError
from mmrlhf.seeding import seeded

SIDES = ("mmrlhf", "TRL")
NUMBERS = {
    "samples_per_epoch": 64, "samples_per_prompt": 1, "sample_batch_size": 32, "train_batch_size": 32,
    "gradient_accumulation": 1, "num_steps": 10, "guidance_scale": 5.0, "eta": 1.0, "learning_rate": 3e-4,
    "max_grad_norm": 1.0, "clip_range": 1e-4, "advantage_clip": 5.0, "prompt_buffer_size": 16, "prompt_min_count": 16,
}  # fmt: skip
OF_THE_CONFIG = ("model", "seed", "epochs", "lora_rank", "lora_alpha", "micro_batch_size", *NUMBERS)


def ours(settings: dict[str, Any]) -> dict[str, Any]:
    """mmrlhf's DDPO on these settings, in this process."""
    meter, found, epochs, networks = Meter(), {}, [], []
    load = training.load_policy

    def load_and_describe(config: Any) -> DiffusionPolicy:
        policy = load(config)
        found.update(described(policy.pipeline, settings["prompts"][0][0]))
        meter.watch(policy.network)
        networks.append(policy.network)
        wait_for_turn()
        return policy

    def on_epoch(line: dict[str, Any]) -> None:
        epochs.append(meter.take() | {name: line[name] for name in ("seconds", "samples", "updates", "reward_mean")})
        found.update(peak=memory()[1], end=size(networks[0]))
        wait_for_turn()

    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        stack.enter_context(patch.object(ddpo, "path_kl", lambda policy, rollout: 0.0))
        stack.enter_context(patch.object(training, "load_policy", load_and_describe))
        stack.enter_context(patch.object(rollouts, "sample_epoch", meter.timed("sampling", rollouts.sample_epoch)))
        stack.enter_context(patch.object(ddpo, "improve", meter.timed("training", ddpo.improve)))
        prompts = Path(folder) / "prompts.txt"
        prompts.write_text("\n".join(settings["all_prompts"]) + "\n")
        config = DDPOConfig(
            **{name: settings[name] for name in OF_THE_CONFIG},
            prompts=prompts,
            reward="",
            out=Path(folder) / "run",
            lora_targets=settings["lora_layers"],
            kl_samples=1,
            embedder="",
            images_every=0,
            save_every=settings["epochs"],
        )
        ddpo.train(config, reward=red_minus_blue, on_epoch=on_epoch)
    return found | {"epochs": epochs, "rate": matmul_rate(*settings["matmul"])}


class Parts:
    """One batch of sampling and one of training, to be counted and profiled."""

    def __init__(self, settings: dict[str, Any]) -> None:
        same = ("lora_rank", "num_steps", "guidance_scale", "eta", "lora_alpha", "seed")
        self.policy = DiffusionPolicy.load(
            settings["model"], lora_targets=settings["lora_layers"], **{name: settings[name] for name in same}
        )
        self.config = DDPOConfig(
            **{name: settings[name] for name in OF_THE_CONFIG}, prompts=Path(), reward="", out=Path()
        )
        self.prompts = settings["prompts"][0]
        count = settings["train_batch_size"]
        self.policy.embed(self.prompts)
        self.rollout = sample_epoch(self.policy, self.prompts[:count], settings["sample_batch_size"], seeded(0))
        self.advantages = torch.linspace(-1, 1, count)[:, None]

    def sample(self) -> None:
        self.policy.sample(self.prompts[: self.config.sample_batch_size], seeded(0))

    def rows(self) -> Tensor:
        return torch.arange(len(self.advantages))

    def train_step(self) -> None:
        self.train_on(self.rows(), 0)

    def train_on(self, rows: Tensor, step: int) -> None:
        batch = single_steps(self.rollout, rows, torch.full_like(rows, step))
        ddpo.step_loss(self.policy, batch, self.advantages[rows], self.config)[0].backward()

    def train(self) -> None:
        for step in range(self.rollout.log_probs.shape[1]):
            for rows in self.rows().split(self.config.micro_batch_size or len(self.advantages)):
                self.train_on(rows, step)


def count(settings: dict[str, Any]) -> dict[str, Any]:
    """Floating point operations of sampling a batch (`decode` is its part of that) and of a step of training on a batch.

    Also the heaviest matrix product of that step: rows, inner side, columns.
    """
    parts, shapes = Parts(settings), []

    def note(layer: Any, inputs: Any, output: Tensor) -> None:
        columns = layer.weight.shape[0]
        shapes.append((output.numel() // columns, layer.weight.numel() // columns, columns))

    layers = [part for part in parts.policy.network.modules() if isinstance(part, nn.Linear | nn.Conv2d)]
    handles = [layer.register_forward_hook(note) for layer in layers]
    training_step = flops(parts.train_step)
    for handle in handles:
        handle.remove()
    heaviest = max(shapes, key=lambda shape: shape[0] * shape[1] * shape[2])
    latents = parts.rollout.latents[:, 0]
    decode = flops(lambda: parts.policy.decode(latents)) * settings["sample_batch_size"] / settings["train_batch_size"]
    return {"sample": flops(parts.sample), "decode": decode, "train_step": training_step, "matmul": heaviest}


def flops(work: Callable[[], Any]) -> int:
    """Floating point operations of some work. The counter does not know the CPU's fused attention: plain products stand in."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def profiled(settings: dict[str, Any]) -> dict[str, Any]:
    """Where sampling and training of a batch spend their time."""
    parts, tables = Parts(settings), {}
    for name, work in {"sampling a batch": parts.sample, "training on a batch": parts.train}.items():
        work()  # the first is slower
        on_gpu = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
        with profile(activities=[ProfilerActivity.CPU, *on_gpu]) as found:
            work()
        tables[name] = found.key_averages().table(
            sort_by="self_cuda_time_total" if on_gpu else "self_cpu_time_total", row_limit=20, max_name_column_width=60
        )
    return {"tables": tables}


WORKS = {"mmrlhf": ours, "count": count, "profile": profiled}


class Worker:
    """A process that does one of `WORKS`, or TRL's side, and stops where it waits for its turn."""

    def __init__(self, command: Sequence[str], settings: dict[str, Any], threads: int, device: str) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.source, self.target, log = (Path(self.folder.name) / name for name in ("settings", "results", "log"))
        self.source.write_text(json.dumps(settings))
        self.log = log.open("w+", errors="replace")
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
        self.process = subprocess.Popen(
            [*command, str(self.source), str(self.target)],
            env=os.environ | hidden | {
                "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1",
                "TOKENIZERS_PARALLELISM": "false",
            },
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, errors="replace",
        )  # fmt: skip

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.log.close()
        self.folder.cleanup()

    def until_turn(self) -> None:
        """Let it work until it waits."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.rstrip("\n") == TURN:
                return
        self.fail()

    def turn(self) -> None:
        """Let it work until it waits again."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        self.until_turn()

    def results(self) -> dict[str, Any]:
        """Let it work until it ends."""
        self.process.communicate("\n")
        if self.process.returncode or not self.target.exists():
            self.fail()
        results: dict[str, Any] = json.loads(self.target.read_text())
        return results

    def fail(self) -> NoReturn:
        """UserError with the end of what it wrote to stderr."""
        self.process.wait()
        self.log.seek(0)
        command = " ".join(map(str, self.process.args[:-2]))  # type: ignore[index]
        raise UserError(f"{command} ended with status {self.process.returncode}:\n{self.log.read()[-3000:]}")


def start(name: str, given: argparse.Namespace, settings: dict[str, Any]) -> Worker:
    """The process of a side, or of another of `WORKS`."""
    command = [sys.executable, __file__, name]
    if name == "TRL":
        command = [str(given.trl_python), str(Path(__file__).with_name("trl_side.py"))]
    return Worker(command, settings, given.threads, given.device)


def alone(name: str, given: argparse.Namespace, settings: dict[str, Any]) -> dict[str, Any]:
    """The results of one of `WORKS`."""
    with start(name, given, settings) as one:
        return one.results()


def in_turns(given: argparse.Namespace, settings: dict[str, Any]) -> dict[str, Any]:
    """Both sides, an epoch of one and an epoch of the other, so that a busy machine hits both alike."""
    with start("mmrlhf", given, settings) as ours, start("TRL", given, settings) as theirs:
        both = {"mmrlhf": ours, "TRL": theirs}
        for side in both.values():
            side.until_turn()
        for epoch in range(settings["epochs"]):
            for name in SIDES if epoch % 2 == 0 else SIDES[::-1]:
                both[name].turn()
        return {name: side.results() for name, side in both.items()}


def median(pairs: Sequence[Any], side: str, name: str) -> float:
    """Of the figures of all epochs but the first of each run."""
    return statistics.median(line[name] for pair in pairs for line in pair[side]["epochs"][1:])


def floor(given: argparse.Namespace, pairs: Sequence[Any], counted: dict[str, Any]) -> Iterator[str]:
    """What the operations take at the rate of the network's heaviest matrix product, and how many times that each phase took."""
    rate = max(pair[side]["rate"] for pair in pairs for side in SIDES)
    batches = given.samples_per_epoch // given.sample_batch_size
    updates = pairs[0]["TRL"]["epochs"][-1]["trained_calls"]  # each on a train batch, where mmrlhf's may be smaller
    work = {"sampling": counted["sample"] * batches, "training": counted["train_step"] * updates}
    shape = " × ".join(str(side) for side in counted["matmul"])
    yield f"\nfloor: the operations at {rate / 1e9:.1f} GFLOP/s, the best rate of a matrix product {shape} in these runs"
    forward = (counted["sample"] - counted["decode"]) / given.num_steps / given.sample_batch_size
    yield (
        f"a step of a sample in GFLOP: {forward / 1e9:.3f} forward, {counted['train_step'] / given.train_batch_size / 1e9:.3f} "
        f"forward and backward; to decode it {counted['decode'] / given.sample_batch_size / 1e9:.3f}"
    )
    for name, operations in work.items():
        least = operations / rate
        times = ", ".join(f"{side} {median(pairs, side, name) / least:.2f} x" for side in SIDES)
        yield f"{name:28}{operations / 1e9:.1f} GFLOP an epoch, {least:.3f} s; {times}"


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[1] not in WORKS:
        works = "|".join(WORKS)
        raise SystemExit(
            f"usage: ddpo_work.py {works} SETTINGS.json RESULTS.json, as benchmarks/ddpo_vs_trl.py calls it"
        )
    worker(WORKS[sys.argv[1]], *sys.argv[2:])
