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
from diffusion.draft import kl_sampling
from diffusion.families import Conditions
from diffusion.noise import PartOf, gaussian
from diffusion.policy import DiffusionPolicy
from diffusion.rollouts import own_rows, sample_epoch
from diffusion.training import Run, begin, hold_to_budget, load_policy, path_kl
from diffusion.tuning_config import TuningConfig, validate_tuning
from mmrlhf.data import Item, read_items, read_pairs, read_text
from mmrlhf.distributed import gather, is_main_process, own_part
from mmrlhf.errors import UserError
from mmrlhf.figures import Figures
from mmrlhf.images import load_images
from mmrlhf.runs import RunResult
from mmrlhf.seeding import seeded
from mmrlhf.training import Loss
from mmrlhf.types import Rollout

Latents = Float[Tensor, "b c h w"]
Batch = tuple[Int[Tensor, " _"], Float[Tensor, "_ c h w"], Float[Tensor, "_ c h w"], Float[Tensor, " _"], Conditions]
"""(rows, their clean latents, noise, times, conditions)."""
Places = Sequence[Int[Tensor, " k"]]
"""Which of a batch's rows go through the network together, part after part."""
BatchLoss = Callable[[Int[Tensor, " n"], Latents, Latents, Float[Tensor, " n"], Conditions], Loss]
"""The loss of the rows of a `Batch`, and its figures."""


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
        "sft", config, prompts, identity={"data_sha256": digest(items)}, policy=load_policy(config),
        on_epoch=on_epoch,
    )  # fmt: skip
    clean = encode_files(run.policy, [item.image for item in items], config.train_batch_size)
    for epoch in run.epochs():
        generator = seeded(config.seed, epoch)
        with kl_sampling(run.policy, config):
            measured = kl_paths(run.policy, config, prompts, epoch)
            kl, before = path_kl(run.policy, measured), run.snapshot()
        figures = fit(run, clean, prompts, torch.arange(len(items)), partial(plain_loss, run.policy), generator, epoch)
        with kl_sampling(run.policy, config):
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
    """Latents of image files, cropped and resized to the policy's size, on the CPU.

    Each different file is encoded once, by one of the processes.
    """
    different = list(dict.fromkeys(paths))
    own = [different[row] for row in own_part(len(different))]
    size = policy.latent_shape[1] * policy.family.pipeline.vae_scale_factor
    starts = range(0, len(own), batch_size)
    parts = [policy.encode_images(load_images(own[start : start + batch_size], size)).cpu() for start in starts]
    encoded = torch.cat([torch.zeros(0, *policy.latent_shape), *parts])
    latents = gather(encoded.flatten(1), len(different)).view(-1, *policy.latent_shape)
    place = {path: row for row, path in enumerate(different)}
    return latents[[place[path] for path in paths]]


def kl_paths(policy: DiffusionPolicy, config: TuningConfig, prompts: Sequence[str], epoch: int) -> Rollout:
    """Paths on which the KL to the start is measured, inside `kl_sampling`; of several processes each draws its part."""
    chosen = [prompts[row % len(prompts)] for row in range(config.kl_samples)]
    return sample_epoch(policy, chosen, len(chosen), seeded(config.seed, epoch, 1))


def fit(
    run: Run,
    clean: Latents,
    prompts: Sequence[str],
    kept: Int[Tensor, " k"],
    batch_loss: BatchLoss,
    generator: torch.Generator,
    epoch: int,
    passes: int = 1,
    whole: Callable[[Batch, Places], BatchLoss] | None = None,
) -> dict[str, float]:
    """Train on the rows `kept` of an epoch's samples in random order, each with one noise and time a pass.

    Of several processes each learns from its part of every batch. Where the loss of a row depends on the others of its batch,
    `whole` makes it, from this process's part of the batch and which of its rows will go through the network at once.
    """
    config, policy = run.config, run.policy
    seen, norms, spare = Figures(), [], torch.zeros(1, dtype=torch.long)
    own = passes * len(own_rows(len(kept), config.train_batch_size))
    with tqdm(total=own, desc="train", leave=False, unit="sample", disable=not is_main_process()) as bar:
        for _ in range(passes):
            order = kept[torch.randperm(len(kept), generator=generator)]
            for group in order.split(config.train_batch_size * config.gradient_accumulation):
                for rows in group.split(config.train_batch_size):
                    batch = own_batch(policy, clean, prompts, rows, generator)
                    places = torch.arange(len(own_part(len(rows))))
                    loss = whole(batch, places.split(run.at_once)) if whole else batch_loss
                    run.learn(places, partial(loss_of_part, loss, batch), len(group), seen, bar, spare)
                norms.append(run.update(epoch))
    return seen.of_epoch(norms)


def own_batch(
    policy: DiffusionPolicy, clean: Latents, prompts: Sequence[str], rows: Int[Tensor, " n"], generator: torch.Generator
) -> Batch:
    """What this process learns from of a batch of rows, with the noise and times that one process would draw for them.

    One with a part of the weights but none of the rows gets the first, to compute with the others for nothing.
    """
    part = own_part(len(rows))
    if policy.split and not len(part):
        part = range(1)
    own = rows[part.start : part.stop]
    times = policy.forward.draw(len(rows), generator)[part.start : part.stop].to(policy.device)
    noise = gaussian((len(own), *policy.latent_shape), PartOf(generator, part, len(rows)), policy.device)
    conditions = policy.embed([prompts[row] for row in own.tolist()]) if len(own) else {}
    return own, clean[own.to(clean.device)].to(policy.device), noise, times, conditions


def parts_of(batch: Batch, parts: Places) -> list[Batch]:
    """The parts of a batch that are not empty."""
    rows, clean, noise, times, conditions = batch
    return [
        (rows[part], clean[part], noise[part], times[part], {name: each[part] for name, each in conditions.items()})
        for part in parts
        if len(part)
    ]


def loss_of_part(loss: BatchLoss, batch: Batch, part: Int[Tensor, " k"]) -> Loss:
    """The loss of a part of a batch."""
    return loss(*parts_of(batch, [part])[0])
