"""The same DDPO with mmrlhf and with TRL 0.23.1, the last to have a DDPOTrainer: time, memory and learning in one run.

In another environment:
pip install "trl==0.23.1" "diffusers==0.35.2" "transformers==4.56.2" "accelerate<1.11" "torch==2.13.0" peft
In mmrlhf's:
python benchmarks/ddpo_vs_trl.py --trl-python OTHER/bin/python --seeds 0 1 2 --repeats 3

The same on both sides: weights, LoRA (and its start), prompts in order, noise, reward, which samples make an update, loss,
advantages, optimizer, precision (float32), threads. The script stops where the loaded weights, the calls of the network, their
rows or the updates differ. On the CPU both draw their noise from the same state of the generator, so that the rewards of both
differ only by rounding, until a clipped ratio or many updates make more of it.

What differs:
- versions of torch, diffusers and transformers (both are printed; the matrix product is timed in both environments);
- TRL encodes its prompts anew in each batch, mmrlhf remembers them;
- with --micro-batch-size mmrlhf alone trains on so many rows at once (the updates are the same);
- both visit a sample's steps in a random order, but not the same (the same gradient, for an update has all steps of its samples);
- TRL's LoRA is fixed to rank 4 on the attention layers with PEFT's "gaussian" start; here it gets that of mmrlhf;
- TRL takes ᾱ of step 0 after the last step, mmrlhf the schedule's final ᾱ: equal for Stable Diffusion's schedule and tiny-sd's.
  Where that is 1 (set_alpha_to_one) the last step has no noise and mmrlhf trains one step less, so the script stops.
Neither draws pictures, measures the KL to the start or saves while the clock runs. They take turns epoch by epoch, the other
waiting; the first epoch of each does not count. Peak memory is of the process, libraries included (a torch built for CUDA alone
takes hundreds of MiB more), so what came on top of it after loading is given too.

The tokenizer of tiny-sd is one tokenizer.json, as transformers 5 writes it; CLIPTokenizer of transformers 4 reads vocab.json and
merges.txt. So both load a copy of the model that has all three.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ddpo_work import NUMBERS, SIDES, alone, floor, in_turns, median
from diffusers import AutoencoderKL

from diffusion.families.unets import LORA_TARGETS
from diffusion.loading import load_pipeline
from diffusion.rollouts import draw_prompts
from mmrlhf.data import read_prompts
from mmrlhf.errors import UserError
from mmrlhf.models import quiet_loading
from mmrlhf.seeding import seeded

PROMPTS = (
    "red apple", "blue heart", "grinning face", "dog face", "rocket", "four leaf clover", "sun with face", "soccer ball",
)  # fmt: skip
SAME_WORK = ("samples", "updates", "sampled_calls", "sampled_rows", "trained_rows")


def export(model: str, folder: Path) -> None:
    """A copy that both sides load. UserError where TRL cannot train the model."""
    pipeline: Any = load_pipeline(model, torch.device("cpu"), torch.float32)
    name = type(pipeline).__name__
    if name != "StableDiffusionPipeline" or not isinstance(pipeline.vae, AutoencoderKL):
        raise UserError(f"--model got a {name}, allowed is a StableDiffusionPipeline: TRL's trainer takes no other")
    with quiet_loading():
        pipeline.save_pretrained(folder)
    tokenizer = folder / "tokenizer"
    if not (tokenizer / "vocab.json").exists():
        made = json.loads((tokenizer / "tokenizer.json").read_text())["model"]
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in made["merges"]]
        (tokenizer / "vocab.json").write_text(json.dumps(made["vocab"], ensure_ascii=False))
        (tokenizer / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")


def settings_of(given: argparse.Namespace, model: Path, seed: int) -> dict[str, Any]:
    """All that a worker is told; the prompts of each epoch, and the generator's state after drawing them, as mmrlhf has them."""
    drawn, states = [], []
    for epoch in range(given.epochs + 1):
        generator = seeded(seed, epoch)
        drawn.append(draw_prompts(given.all_prompts, given.samples_per_epoch, given.samples_per_prompt, generator))
        states.append(generator.get_state().tolist())
    alpha = given.lora_rank if given.lora_alpha is None else given.lora_alpha
    told = vars(given) | {
        "model": str(model), "seed": seed, "epochs": given.epochs + 1, "prompts": drawn, "states": states,
        "lora_alpha": alpha or None, "lora_targets": LORA_TARGETS[given.lora_layers], "matmul": (256, 256, 256),
    }  # fmt: skip
    return {name: value for name, value in told.items() if not isinstance(value, Path)}


def check(given: argparse.Namespace) -> None:
    """UserError for what TRL would not take, or where the sides would do other work."""
    if given.samples_per_epoch % given.sample_batch_size or given.sample_batch_size % given.train_batch_size:
        raise UserError(
            f"samples, sample batch and train batch got {given.samples_per_epoch}, {given.sample_batch_size} and "
            f"{given.train_batch_size}, allowed are multiples, each of the next: TRL takes no other"
        )
    if given.samples_per_epoch % (given.train_batch_size * given.gradient_accumulation):
        raise UserError(
            f"--gradient-accumulation got {given.gradient_accumulation}, allowed is a divisor of the "
            f"{given.samples_per_epoch // given.train_batch_size} train batches of an epoch"
        )
    if given.guidance_scale <= 1:
        raise UserError(
            f"--guidance-scale got {given.guidance_scale}, allowed is above 1: TRL cannot do without guidance"
        )
    if not os.access(given.trl_python, os.X_OK):
        raise UserError(f"--trl-python got {given.trl_python}, allowed is the python of an environment with TRL")
    if given.micro_batch_size is not None and given.micro_batch_size < 1:
        raise UserError(f"--micro-batch-size got {given.micro_batch_size}, allowed is 1 or more")
    if min(given.epochs, given.repeats, given.threads) < 1:
        raise UserError(
            f"--epochs, --repeats and --threads got {given.epochs}, {given.repeats} and {given.threads}, allowed is 1 or more"
        )


def check_same(pair: dict[str, dict[str, Any]], micro_batch: bool) -> None:
    """UserError where the two sides did not do the same work; with micro-batches, mmrlhf does it in calls of another size."""
    first, second = (pair[side] for side in SIDES)
    apart = max(abs(a - b) for a, b in zip(first["probe"], second["probe"], strict=True))
    if not apart < 1e-3:
        raise UserError(f"the sides loaded different weights: their networks' answers are {apart:.2g} apart")
    if (first["trained_weights"], first["device"]) != (second["trained_weights"], second["device"]):
        kinds = [f"{side}: {pair[side]['trained_weights']} on {pair[side]['device']}" for side in SIDES]
        raise UserError(f"the sides train other weights, or elsewhere: {', '.join(kinds)}")
    for epoch, lines in enumerate(zip(first["epochs"], second["epochs"], strict=True)):
        for name in SAME_WORK if micro_batch else (*SAME_WORK, "trained_calls"):
            if lines[0][name] != lines[1][name]:
                raise UserError(f"epoch {epoch}: {name} of mmrlhf {lines[0][name]}, of TRL {lines[1][name]}")


def measure(given: argparse.Namespace, model: Path, matmul: Sequence[int]) -> dict[int, list[Any]]:
    """The results of both sides, `repeats` times for each seed."""
    found: dict[int, list[Any]] = {}
    for number, seed in enumerate(seed for seed in given.seeds for _ in range(given.repeats)):
        pair = in_turns(given, settings_of(given, model, seed) | {"matmul": matmul})
        check_same(pair, given.micro_batch_size is not None)
        found.setdefault(seed, []).append(pair)
        took = ", ".join(f"{side} {median([pair], side, 'seconds'):.2f} s" for side in SIDES)
        print(f"run {number + 1} of {len(given.seeds) * given.repeats}, seed {seed}: an epoch {took}", file=sys.stderr)
    return found


def median_of_one(name: str, pair: Any, side: str) -> float:
    """The same of a single run."""
    return median([pair], side, name)


def report(given: argparse.Namespace, found: dict[int, list[Any]], counted: dict[str, Any]) -> Iterator[str]:
    """The lines to print."""
    pairs = [pair for rounds in found.values() for pair in rounds]
    first, line = pairs[0], pairs[0]["mmrlhf"]["epochs"][-1]
    kind = f"LoRA of rank {given.lora_rank} on {given.lora_layers}" if given.lora_rank else "all weights"
    yield (
        f"model {given.model}, {kind} ({first['mmrlhf']['trained_weights']} weights), {first['mmrlhf']['device']}, "
        f"{first['mmrlhf']['threads']} threads"
    )
    for side in SIDES:
        yield f"{side + ':':8}{first[side]['versions']}"
    yield (
        f"an epoch of each: {line['samples']} samples, {given.num_steps} steps, guidance {given.guidance_scale:g}; "
        f"{line['sampled_calls']:g} + {line['trained_calls']:g} calls of the network (without + with gradients) on "
        f"{line['sampled_rows']:g} + {line['trained_rows']:g} rows, {line['updates']} updates"
    )
    if given.micro_batch_size is not None:
        yield (
            f"mmrlhf trains on {given.micro_batch_size} rows at once, in {line['trained_calls']:g} calls; TRL on "
            f"{given.train_batch_size}, in {first['TRL']['epochs'][-1]['trained_calls']:g}"
        )
    yield from difference_at_start(first)
    yield f"\n{'medians of ' + str(len(pairs)) + ' runs':28}{'mmrlhf':>10}{'TRL':>10}   ratio (of single runs)"
    for title, name in {"sampling": "sampling", "training": "training", "all": "seconds"}.items():
        yield row(f"{title}, s an epoch", pairs, partial(median_of_one, name), "{:.3f}", "TRL")
    samples = line["samples"]
    yield row("samples/s", pairs, lambda pair, side: samples / median([pair], side, "seconds"), "{:.2f}", "mmrlhf")
    yield row("peak memory, MiB", pairs, lambda pair, side: pair[side]["peak"], "{:.0f}", "TRL")
    yield row(
        "of it after loading", pairs, lambda pair, side: pair[side]["peak"] - pair[side]["loaded"], "{:.0f}", "TRL"
    )
    yield row("matrix product, GFLOP/s", pairs, lambda pair, side: pair[side]["rate"] / 1e9, "{:.1f}", "mmrlhf")
    yield from floor(given, pairs, counted)
    yield from learning(found)


def row(title: str, pairs: Sequence[Any], figure: Callable[[Any, str], float], form: str, above: str) -> str:
    """A figure of both sides, and their ratio with the side `above` the line."""
    ours, theirs = (statistics.median(figure(pair, side) for pair in pairs) for side in SIDES)
    power = -1 if above == "mmrlhf" else 1
    ratios = [(figure(pair, "TRL") / figure(pair, "mmrlhf")) ** power for pair in pairs]
    which = "TRL : mmrlhf" if power == 1 else "mmrlhf : TRL"
    return (
        f"{title:28}{form.format(ours):>10}{form.format(theirs):>10}   {which} {(theirs / ours) ** power:.2f} "
        f"({min(ratios):.2f} … {max(ratios):.2f})"
    )


def difference_at_start(pair: Any) -> Iterator[str]:
    """How far apart the sides were before the first epoch, and what it drew."""
    first, second = (pair[side] for side in SIDES)
    answers = max(abs(a - b) for a, b in zip(first["probe"], second["probe"], strict=True))
    weights = abs(first["start"] - second["start"]) / max(first["start"], 1e-12)
    rewards = abs(first["epochs"][0]["reward_mean"] - second["epochs"][0]["reward_mean"])
    yield (
        f"apart at the start: network's answer {answers:.1g}, trained weights {weights:.1g} (relative), mean reward of the "
        f"first epoch {rewards:.1g}"
    )


def learning(found: dict[int, list[Any]]) -> Iterator[str]:
    """The mean reward of each epoch's samples, drawn after so many epochs of training."""
    yield "\nmean reward after so many epochs of training (mmrlhf / TRL)"
    curves = {
        seed: [[line["reward_mean"] for line in rounds[0][side]["epochs"]] for side in SIDES]
        for seed, rounds in found.items()
    }
    yield f"{'epochs':>8}" + "".join(f"{f'seed {seed}':>20}" for seed in curves)
    for epoch in range(len(next(iter(curves.values()))[0])):
        yield f"{epoch:8}" + "".join(
            f"{f'{both[0][epoch]:.4f} / {both[1][epoch]:.4f}':>20}" for both in curves.values()
        )
    gains = [[curve[-1] - curve[0] for curve in both] for both in curves.values()]
    ours, theirs = (statistics.mean(gain) for gain in zip(*gains, strict=True))
    for seed, rounds in found.items():
        begin, *ends = rounds[0]["mmrlhf"]["start"], *(rounds[0][side]["end"] for side in SIDES)
        yield f"sum of |trained weights|, seed {seed}: {begin:.6g} at the start, {ends[0]:.6g} / {ends[1]:.6g} at the end"
    yield f"gain of the last over the first, mean over seeds: mmrlhf {ours:+.4f}, TRL {theirs:+.4f}"


def parsed() -> argparse.Namespace:
    """The options; paths are for this process only, the rest is told to the workers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", type=Path, required=True, help="python of the environment with TRL")
    parser.add_argument("--model", default="tiny-sd")
    parser.add_argument("--prompts", dest="prompt_file", type=Path, help="a prompt a line; none: eight emoji")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--repeats", type=int, default=1, help="runs of each seed and side")
    parser.add_argument("--epochs", type=int, default=5, help="counted epochs; one more comes before them")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    parser.add_argument("--lora-rank", type=int, default=4, help="0 trains all weights")
    parser.add_argument("--lora-alpha", type=float)
    parser.add_argument("--lora-targets", dest="lora_layers", choices=LORA_TARGETS, default="attention")
    for name, default in NUMBERS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    parser.add_argument("--micro-batch-size", type=int, help="rows at once in mmrlhf's training; none: the train batch")
    parser.add_argument("--profile", action="store_true", help="only tell where mmrlhf spends its time")
    given = parser.parse_args()
    given.all_prompts = read_prompts(given.prompt_file) if given.prompt_file else list(PROMPTS)
    return given


def main() -> None:
    given = parsed()
    try:
        check(given)
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "model"
            export(given.model, model)
            settings = settings_of(given, model, given.seeds[0])
            if given.profile:
                for name, table in alone("profile", given, settings)["tables"].items():
                    print(f"{name}\n{table}")
                return
            counted = alone("count", given, settings)
            found = measure(given, model, counted["matmul"])
        print("\n".join(report(given, found, counted)))
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
