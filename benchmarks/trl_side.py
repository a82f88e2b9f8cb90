"""The half of `ddpo_vs_trl.py` that runs in TRL's environment, and what both halves measure with. It imports no mmrlhf.

python benchmarks/trl_side.py SETTINGS.json RESULTS.json
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TURN = "waits for its turn"
PROBED = 256  # numbers of the network's answer that the two halves compare


def red_minus_blue(images: Tensor, prompts: Sequence[str] = ()) -> Tensor:
    """The reward of both halves: how much redder than blue each image "b 3 h w" in [0, 1] is on average."""
    return (images[:, 0] - images[:, 2]).float().mean(dim=(1, 2))


class Meter:
    """Seconds of each phase, and the samples that pass through a network, since the last `take`."""

    def __init__(self) -> None:
        self.figures: dict[str, float] = {}

    def add(self, name: str, value: float) -> None:
        self.figures[name] = self.figures.get(name, 0.0) + value

    def timed(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """The same work, with its seconds added to that phase."""

        def measured(*given: Any, **options: Any) -> Any:
            started = now()
            result = work(*given, **options)
            self.add(name, now() - started)
            return result

        return measured

    def watch(self, network: torch.nn.Module) -> None:
        """From here on count its calls, and the rows of each, with gradients (`trained`) and without (`sampled`)."""

        def count(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            first = output[0]
            kind = "trained" if first.requires_grad else "sampled"
            self.add(f"{kind}_calls", 1)
            self.add(f"{kind}_rows", len(first))

        network.register_forward_hook(count)

    def take(self) -> dict[str, float]:
        """The figures so far; the next ones start from nothing."""
        taken, self.figures = self.figures, {}
        return taken


def wait_for_turn() -> None:
    """Tell the process that started this one to let the other half work, and wait for it."""
    print(f"\n{TURN}", flush=True)
    sys.stdin.readline()


def now() -> float:
    """Seconds, once the device has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def memory() -> tuple[float, float]:
    """This process's resident MiB now, and the most so far. Linux tells both; elsewhere only the peak is known.

    Not `ru_maxrss` on Linux: there a child starts with the peak of the process that started it.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return int(lines["VmRSS"].split()[0]) / 1024, int(lines["VmHWM"].split()[0]) / 1024
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return float("nan"), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def matmul_rate(rows: int, inner: int, columns: int, seconds: float = 1.0) -> float:
    """The most floating point operations a second of this matrix product, float32, of measurements over so many seconds."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    first, second = torch.randn(rows, inner, device=device), torch.randn(inner, columns, device=device)
    best, ends = 0.0, now() + seconds
    while now() < ends:
        started = now()
        for _ in range(10):
            first @ second
        best = max(best, 10 * 2 * rows * inner * columns / (now() - started))
    return best


@torch.no_grad()
def probe(pipeline: Any, prompt: str) -> list[float]:
    """What the network and the autoencoder make of a fixed input: halves that loaded the same weights agree."""
    network, tokenizer = pipeline.unet, pipeline.tokenizer
    tokens = tokenizer(
        [prompt], return_tensors="pt", padding="max_length", truncation=True, max_length=tokenizer.model_max_length
    ).input_ids.to(network.device)
    side = network.config.sample_size
    latents = torch.linspace(-2, 2, network.config.in_channels * side * side, device=network.device)
    text = pipeline.text_encoder(tokens)[0]
    output = network(latents.view(1, -1, side, side), 500, encoder_hidden_states=text).sample
    image = pipeline.vae.decode(output / pipeline.vae.config.scaling_factor).sample
    return output.flatten()[:PROBED].tolist() + image.mean(dim=(2, 3)).flatten().tolist()


def size(network: torch.nn.Module) -> float:
    """Sum of the absolute values of the weights that learn."""
    return sum(float(weight.detach().abs().sum()) for weight in network.parameters() if weight.requires_grad)


def described(pipeline: Any, prompt: str) -> dict[str, Any]:
    """What the two halves must have in common before the first epoch, and what they run on."""
    import diffusers
    import transformers

    return {
        "probe": probe(pipeline, prompt),
        "trained_weights": sum(weight.numel() for weight in pipeline.unet.parameters() if weight.requires_grad),
        "start": size(pipeline.unet),
        "loaded": memory()[0],
        "device": str(pipeline.unet.device),
        "threads": torch.get_num_threads(),
        "versions": f"torch {torch.__version__}, diffusers {diffusers.__version__}, transformers {transformers.__version__}",
    }


def run(settings: dict[str, Any]) -> dict[str, Any]:
    """TRL's DDPO on these settings."""
    from accelerate import PartialState

    PartialState()  # the trainer logs before it makes its accelerator
    from trl import DDPOConfig, DDPOTrainer, __version__  # type: ignore[import-not-found]

    pipeline, meter, rewards = pipeline_with_lora(settings), Meter(), [0.0]

    def reward(images: Tensor, prompts: tuple[str, ...], metadata: tuple[Any, ...]) -> tuple[Tensor, dict[str, Any]]:
        values = red_minus_blue(images)
        rewards.extend(values.tolist())
        return values, {}

    prompts: Iterator[str] = iter(())
    config = DDPOConfig(
        seed=settings["seed"],
        num_epochs=settings["epochs"],
        save_freq=settings["epochs"] + 1,  # never
        mixed_precision="no",
        allow_tf32=False,
        sample_num_steps=settings["num_steps"],
        sample_eta=settings["eta"],
        sample_guidance_scale=settings["guidance_scale"],
        sample_batch_size=settings["sample_batch_size"],
        sample_num_batches_per_epoch=settings["samples_per_epoch"] // settings["sample_batch_size"],
        train_batch_size=settings["train_batch_size"],
        train_gradient_accumulation_steps=settings["gradient_accumulation"],
        train_learning_rate=settings["learning_rate"],
        train_max_grad_norm=settings["max_grad_norm"],
        train_num_inner_epochs=1,
        train_cfg=True,
        train_adv_clip_max=settings["advantage_clip"],
        train_clip_range=settings["clip_range"],
        per_prompt_stat_tracking=True,
        per_prompt_stat_tracking_buffer_size=settings["prompt_buffer_size"],
        per_prompt_stat_tracking_min_count=settings["prompt_min_count"],
    )
    trainer = DDPOTrainer(config, reward, lambda: (next(prompts), {}), pipeline)
    found = described(pipeline.sd_pipeline, settings["prompts"][0][0])
    found["versions"] = f"trl {__version__}, {found['versions']}"
    meter.watch(trainer.sd_pipeline.unet)
    trainer._generate_samples = meter.timed("sampling", trainer._generate_samples)
    trainer._train_batched_samples = meter.timed("training", trainer._train_batched_samples)
    step, updates, epochs = meter.timed("seconds", trainer.step), 0, []
    for epoch in range(settings["epochs"]):
        wait_for_turn()
        prompts = iter(settings["prompts"][epoch])
        rewards.clear()
        torch.set_rng_state(torch.tensor(settings["states"][epoch], dtype=torch.uint8))
        done = step(epoch, updates)
        line = {"reward_mean": sum(rewards) / len(rewards), "samples": len(rewards), "updates": done - updates}
        updates = done
        epochs.append(meter.take() | line)
    found |= {"peak": memory()[1], "end": size(pipeline.sd_pipeline.unet)}
    wait_for_turn()
    return found | {"epochs": epochs, "rate": matmul_rate(*settings["matmul"])}


def pipeline_with_lora(settings: dict[str, Any]) -> Any:
    """TRL's pipeline, whose LoRA is of rank 4 on the attention layers whatever is asked for, with the LoRA of the settings."""
    from peft import LoraConfig
    from trl import DefaultDDPOStableDiffusionPipeline

    class Pipeline(DefaultDDPOStableDiffusionPipeline):
        def get_trainable_layers(self) -> Any:
            if settings["lora_rank"]:
                lora = LoraConfig(
                    r=settings["lora_rank"], lora_alpha=settings["lora_alpha"], target_modules=settings["lora_targets"]
                )
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(settings["seed"])
                    self.sd_pipeline.unet.add_adapter(lora)
            return self.sd_pipeline.unet

    return Pipeline(settings["model"], use_lora=settings["lora_rank"] > 0)


def worker(work: Callable[[dict[str, Any]], dict[str, Any]], source: str, target: str) -> None:
    """Read the settings, do the work, write the results."""
    settings = json.loads(Path(source).read_text())
    torch.set_num_threads(settings["threads"])
    results = work(settings)
    temporary = Path(f"{target}.tmp")
    temporary.write_text(json.dumps(results))
    os.replace(temporary, target)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: trl_side.py SETTINGS.json RESULTS.json, as benchmarks/ddpo_vs_trl.py calls it")
    worker(run, *sys.argv[1:])
