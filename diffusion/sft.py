"""Supervised fine-tuning on given samples: the denoising loss (Ho et al. 2020, eq. 14) of ε, v or a flow's velocity alike."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from diffusion.denoising import denoising_errors
from diffusion.draft import sampling_with
from diffusion.families import Conditions
from diffusion.noise import gaussian
from diffusion.policy import DiffusionPolicy
from diffusion.training import Run, begin, hold_to_budget, load_policy, path_kl
from diffusion.tuning_config import TuningConfig, validate_tuning
from mmrlhf.data import Item, read_items, read_pairs, read_text
from mmrlhf.errors import UserError
from mmrlhf.figures import Figures
from mmrlhf.images import load_images
from mmrlhf.runs import RunResult
from mmrlhf.seeding import seeded
from mmrlhf.training import Loss
from mmrlhf.types import Rollout

Latents = Float[Tensor, "b c h w"]
BatchLoss = Callable[
    [Int[Tensor, " n"], Latents, Latents, Float[Tensor, " n"], Conditions], tuple[Tensor, dict[str, float]]
]
"""(rows, their clean latents, noise, times, conditions) -> the loss of these rows and its figures."""


@dataclass(frozen=True, kw_only=True)
class SFTConfig(TuningConfig):
    """Fine-tune a text-to-image model on given images, or on the winners of comparisons."""

    data: Path
    """PAIRS.jsonl, of which the preferred images count and ties do not, or ITEMS.jsonl, of which all do."""
    epochs: int = 10
    """Passes over the data."""


def validate(config: SFTConfig) -> None:
    """UserError for a value outside its range."""
    validate_tuning(config, at_least_one=("kl_samples",))


def train(config: SFTConfig, *, on_epoch: Callable[[dict[str, Any]], None] | None = None) -> RunResult:
    """Fine-tune on the data; `on_epoch` gets each line of metrics. Writes the folder that `SFTConfig.out` describes.

    `kl` is of the policy at the epoch's start, `loss` of the training in it. UserError where a gradient is no number.
    """
    validate(config)
    items = read_samples(config.data)
    prompts = [item.prompt for item in items]
    run = begin(
        "sft", config, prompts, identity={"data_sha256": digest(items)}, policy=load_policy(config), on_epoch=on_epoch
    )
    clean = encode_files(run.policy, [item.image for item in items], config.train_batch_size)
    for epoch in run.epochs():
        generator = seeded(config.seed, epoch)
        measured = kl_paths(run.policy, config, prompts, epoch)
        kl, before = path_kl(run.policy, measured), run.snapshot()
        figures = fit(run, clean, prompts, torch.arange(len(items)), partial(plain_loss, run.policy), generator, epoch)
        hold_to_budget(run, measured, before)
        line = {"epoch": epoch, "samples": len(items), "seconds": run.seconds(), "kl": kl, **figures}
        run.record(line, {}, ("loss", "kl"))
    return run.close()


def plain_loss(
    policy: DiffusionPolicy,
    rows: Int[Tensor, " n"],
    clean: Float[Tensor, "n c h w"],
    noise: Float[Tensor, "n c h w"],
    times: Float[Tensor, " n"],
    conditions: Conditions,
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """The mean denoising error of a batch."""
    loss = denoising_errors(policy, clean, noise, times, conditions).mean()
    return loss, {"loss": float(loss.detach())}


def read_samples(path: Path) -> list[Item]:
    """The items of an ITEMS.jsonl, or the winners of a PAIRS.jsonl, in order. UserError where there are none."""
    first = read_text(path, "a PAIRS.jsonl or an ITEMS.jsonl").lstrip().split("\n", 1)[0]
    if '"image_0"' not in first:
        items = read_items(path)
    else:
        pairs = [pair for pair in read_pairs(path) if pair.has_label and pair.label_0 != 0.5]
        items = [Item(pair.prompt, pair.image_0 if pair.label_0 > 0.5 else pair.image_1) for pair in pairs]
    if not items:
        raise UserError(f"--data {path} has no image to train on: give items, or at least one pair that is not a tie")
    return items


def digest(items: Sequence[Item]) -> str:
    """sha256 over the images' bytes, in order; the prompts have a digest of their own."""
    files = {item.image: hashlib.sha256(item.image.read_bytes()).hexdigest() for item in items}
    return hashlib.sha256("".join(files[item.image] for item in items).encode()).hexdigest()


def encode_files(policy: DiffusionPolicy, paths: Sequence[Path], batch_size: int) -> Latents:
    """Latents of image files, cropped and resized to the policy's size, on the CPU; each different file is encoded once."""
    different = list(dict.fromkeys(paths))
    size = policy.latent_shape[1] * policy.family.pipeline.vae_scale_factor
    starts = range(0, len(different), batch_size)
    parts = [policy.encode_images(load_images(different[start : start + batch_size], size)).cpu() for start in starts]
    place = {path: row for row, path in enumerate(different)}
    return torch.cat(parts)[[place[path] for path in paths]]


def kl_paths(policy: DiffusionPolicy, config: TuningConfig, prompts: Sequence[str], epoch: int) -> Rollout:
    """Paths on which the KL to the start is measured; with the noise of eta 1 where --eta is 0, which has no KL."""
    sampler = policy.family.sampler(max(2, config.num_steps), config.eta or 1.0, policy.latent_shape)
    chosen = [prompts[row % len(prompts)] for row in range(config.kl_samples)]
    with sampling_with(policy, sampler):
        return policy.sample(chosen, seeded(config.seed, epoch, 1))


def fit(
    run: Run,
    clean: Latents,
    prompts: Sequence[str],
    kept: Int[Tensor, " k"],
    batch_loss: BatchLoss,
    generator: torch.Generator,
    epoch: int,
    passes: int = 1,
) -> dict[str, float]:
    """Train on the rows `kept` of an epoch's samples in random order, each with one noise and time a pass."""
    config, policy = run.config, run.policy
    seen, norms = Figures(), []
    with tqdm(total=passes * len(kept), desc="train", leave=False, unit="sample") as bar:
        for _ in range(passes):
            order = kept[torch.randperm(len(kept), generator=generator)]
            for group in order.split(config.train_batch_size * config.gradient_accumulation):
                for rows in group.split(config.train_batch_size):
                    times = policy.forward.draw(len(rows), generator).to(policy.device)
                    noise = gaussian((len(rows), *policy.latent_shape), generator, policy.device)
                    conditions = policy.embed([prompts[row] for row in rows.tolist()])
                    samples = clean[rows.to(clean.device)].to(policy.device)
                    loss_of = partial(some_of, batch_loss, rows, samples, noise, times, conditions)
                    run.learn(torch.arange(len(rows)), loss_of, len(group), seen, bar)
                norms.append(run.update(epoch))
    return seen.of_epoch(norms)


def some_of(
    batch_loss: BatchLoss,
    rows: Int[Tensor, " n"],
    clean: Latents,
    noise: Latents,
    times: Float[Tensor, " n"],
    conditions: Conditions,
    part: Int[Tensor, " k"],
) -> Loss:
    """The loss of a part of a batch."""
    own = {name: values[part] for name, values in conditions.items()}
    return batch_loss(rows[part], clean[part], noise[part], times[part], own)
