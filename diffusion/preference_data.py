"""Judged images as latents to learn from: pairs of a winner and a loser, or images with how much they are liked."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from diffusion.denoising import denoising_errors
from diffusion.policy import DiffusionPolicy
from diffusion.sft import Latents, digest, encode_files, own_batch
from diffusion.tuning_config import TuningConfig, validate_tuning
from mmrlhf.config import check, exactly_one
from mmrlhf.data import Item, Pair, read_pairs, split_by_prompt
from mmrlhf.datasets.export import answers
from mmrlhf.distributed import is_main_process, own_part, total
from mmrlhf.errors import UserError
from mmrlhf.outcomes import Outcome, Ranking, Rating, read_outcomes, strict_pairs
from mmrlhf.seeding import seeded
from mmrlhf.store import store_name

FIXED_DRAWS = 4  # times and noises of each held-out image


@dataclass(frozen=True, kw_only=True)
class PreferenceConfig(TuningConfig):
    """Fine-tune a text-to-image model on judged images."""

    data: Path | None = None
    """PAIRS.jsonl: comparisons of images, of which ties are left out."""
    store: str | None = None
    """Instead of --data: sqlite:///FILE, a path or postgresql://USER@HOST/NAME, what `mmrlhf rate` collected."""
    source: Literal["all", "human", "simulated", "ai"] = "all"
    """Of a store: all, or only the answers of one kind of rater."""
    criterion: str | None = None
    """Only what was answered by this criterion; "" is which is better overall."""
    validation: float = 0.1
    """Share of the prompts that is held out to measure on; 0 is none."""
    beta: float = 2000.0
    """How strongly the policy is held to the start; belongs to errors and log-probs averaged over latent dimensions."""
    epochs: int = 10
    """Passes over the data."""
    learning_rate: float = 1e-5
    """Of AdamW, constant; 1e-5 is what diffusers' own Diffusion-DPO takes for LoRA weights."""


def validate_preferences(config: PreferenceConfig) -> None:
    """UserError for an option of `PreferenceConfig` outside its range."""
    validate_tuning(config, at_least_one=("kl_samples",), above_zero=("beta",))
    check(config, "validation", lambda value: 0 <= value < 1, "0 up to, but not, 1")


def check_one_source(config: PreferenceConfig) -> None:
    """UserError unless there is either --data or --store."""
    exactly_one(data=config.data, store=config.store)


def read_preferences(config: PreferenceConfig) -> tuple[list[Pair], int]:
    """Comparisons with the winner as `image_0`, and how many ties were left out. UserError where no pair has a winner."""
    check_one_source(config)
    given: list[Any] = read_pairs(config.data) if config.data else stored(config, ratings=False)
    pairs = of_one_criterion(given, config.criterion)
    strict = [winner_first(pair) for pair in pairs if pair.label_0 != 0.5]
    if not strict:
        raise UserError(
            f"none of the {len(pairs)} pairs of {source_of(config)} has a winner: give pairs that are not ties"
        )
    return strict, len(pairs) - len(strict)


def source_of(config: PreferenceConfig) -> str:
    """Where the judgements are from, for messages."""
    return str(config.data) if config.data else store_name(str(config.store))


def winner_first(pair: Pair) -> Pair:
    """The same judgement with the preferred image first."""
    if pair.label_0 > 0.5:
        return pair
    return replace(pair, image_0=pair.image_1, image_1=pair.image_0, label_0=1 - pair.label_0)


@dataclass(frozen=True)
class Liking:
    """How much an image is liked for its prompt, from −1 (by nobody) to 1 (by all)."""

    prompt: str
    image: Path
    liked: float
    unit: str
    has_label: bool = True


def read_likings(config: PreferenceConfig) -> tuple[list[Liking], int]:
    """What was liked or disliked, and how many judgements were left out as they say neither. UserError where all do.

    The winner of a pair or in a ranking is liked and the loser disliked, by 2·label − 1 each; a rating from 1 to `levels`
    counts from −1 to 1, so that of two levels 2 is liked and 1 disliked.
    """
    check_one_source(config)
    given: list[Any] = list(read_outcomes(config.data)) if config.data else stored(config, ratings=True)
    judged = of_one_criterion(given, config.criterion)
    each = [likings_of(judgement) for judgement in judged]
    found = [liking for likings in each for liking in likings]
    if not found:
        raise UserError(
            f"none of the {len(judged)} judgements of {source_of(config)} says that an image is liked or disliked: "
            "give pairs that are not ties, or ratings off the middle of their scale"
        )
    return found, sum(not likings for likings in each)


def likings_of(judgement: Outcome) -> list[Liking]:
    """What one judgement says of its images; nothing where it is a tie."""
    if isinstance(judgement, Rating):
        given = [(judgement.image, 2 * (judgement.rating - 1) / (judgement.levels - 1) - 1)]
    elif isinstance(judgement, Ranking):
        return [liking for pair in strict_pairs(judgement) for liking in likings_of(pair)]
    else:
        strength = 2 * judgement.label_0 - 1
        given = [(judgement.image_0, strength), (judgement.image_1, -strength)]
    unit, labelled = judgement.unit, judgement.has_label
    return [Liking(judgement.prompt, image, liked, unit, labelled) for image, liked in given if liked]


def stored(config: PreferenceConfig, *, ratings: bool) -> list[Any]:
    """The answers in a store that stand: pairs, and `ratings` of single images."""
    return [judgement for _, judgement in answers(str(config.store), config.source, ratings=ratings)]


def of_one_criterion(judged: Sequence[Any], criterion: str | None) -> list[Any]:
    """What was answered by this criterion, or all. UserError where none was, or where several would be mixed up."""
    criteria = sorted({judgement.criterion for judgement in judged})
    if criterion is None and len(criteria) == 1:
        return list(judged)
    if criterion not in criteria:
        got = "several criteria" if criterion is None else f"--criterion '{criterion}'"
        raise UserError(f"got {got}, allowed is one of {criteria}: choose with --criterion")
    return [judgement for judgement in judged if judgement.criterion == criterion]


def hold_out(judged: Sequence[Any], config: PreferenceConfig) -> tuple[list[Any], list[Any]]:
    """(to train on, to measure on): a share of the prompts, of which only what somebody judged is kept."""
    if config.validation == 0:
        return list(judged), []
    try:
        rest, held = split_by_prompt(judged, config.validation, config.seed)
    except UserError as error:
        raise UserError(f"--validation got {config.validation:g}, but {error}, or --validation 0") from error
    return rest, [judgement for judgement in held if judgement.has_label]


def identity(items: Sequence[Item], weights: Sequence[float], config: PreferenceConfig) -> dict[str, Any]:
    """What tells one run's data from another's: the bytes of the images, and what was said of them for which prompt."""
    said = json.dumps([digest(items), [item.prompt for item in items], list(weights)])
    return {f"{'data' if config.data else 'store'}_sha256": hashlib.sha256(said.encode()).hexdigest()}


class EncodedPairs(NamedTuple):
    """Latents of `n` winners and losers, and the weight of each winner, above ½ up to 1."""

    prompts: list[str]
    winners: Float[Tensor, "n c h w"]
    losers: Float[Tensor, "n c h w"]
    labels: Float[Tensor, " n"]


def encode_pairs(latents: Mapping[Path, Float[Tensor, "c h w"]], pairs: Sequence[Pair]) -> EncodedPairs:
    """At least one pair, winners first, by what `encode_once` gave for its images."""
    winners, losers = (torch.stack([latents[image] for image in side]) for side in
                       zip(*((pair.image_0, pair.image_1) for pair in pairs), strict=True))  # fmt: skip
    labels = torch.tensor([pair.label_0 for pair in pairs])
    return EncodedPairs([pair.prompt for pair in pairs], winners, losers, labels)


def encode_once(policy: DiffusionPolicy, images: Sequence[Path], batch_size: int) -> dict[Path, Float[Tensor, "c h w"]]:
    """The latents of each different file, cropped and resized to the policy's size, on the CPU."""
    different, latents = list(dict.fromkeys(images)), dict[Path, Tensor]()
    with tqdm(total=len(different), desc="encode", leave=False, unit="image", disable=not is_main_process()) as bar:
        for start in range(0, len(different), batch_size):
            batch = different[start : start + batch_size]
            latents |= dict(zip(batch, encode_files(policy, batch, batch_size), strict=True))
            bar.update(len(batch))
    return latents


@torch.no_grad()
def fixed_errors(
    policy: DiffusionPolicy, clean: Latents, prompts: Sequence[str], seed: int, batch_size: int
) -> Float[Tensor, " b"]:
    """The denoising error of each sample, averaged over `FIXED_DRAWS` times and noises that its place and the seed decide.

    So two calls compare policies, or the winners and losers of pairs, at the same times and noise. Of several processes each
    looks at its part.
    """
    generator, errors = seeded(seed), torch.zeros(len(clean))
    for _ in range(FIXED_DRAWS):
        for rows in torch.arange(len(clean)).split(batch_size):
            batch = own_batch(policy, clean, prompts, rows, generator)
            if len(batch[0]):
                found, mine = denoising_errors(policy, *batch[1:]).cpu(), len(own_part(len(rows)))
                errors[batch[0][:mine]] += found[:mine]
    return total(errors) / FIXED_DRAWS
