"""`mmrlhf diffusion export`: judged pairs of images, encoded for the offline DPO of verl-omni 0.2 on Stable Diffusion 3.

Its trainer has neither the autoencoder nor the text encoders: latents and embeddings are columns, each tensor as `torch.save`
writes it.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from diffusion.policy import DiffusionPolicy
from diffusion.preference_data import PreferenceConfig, read_preferences
from diffusion.prompts import tell_of_cut_prompts
from diffusion.sft import encode_files
from mmrlhf.data import Pair, relative, replacing
from mmrlhf.datasets.verl_omni import EXTRA, SHARED, prompt_row
from mmrlhf.errors import UserError

FAMILY = "StableDiffusion3Pipeline"
TENSORS = (
    "img_win_latents", "img_lose_latents", "prompt_embeds", "prompt_embeds_mask", "pooled_prompt_embeds",
    "negative_prompt_embeds", "negative_prompt_embeds_mask", "negative_pooled_prompt_embeds",
)  # fmt: skip
RAW = ("raw_negative_prompt", pa.string())
SCHEMA = pa.schema(
    [*SHARED, ("img_win", pa.string()), ("img_lose", pa.string())]
    + [(name, pa.binary()) for name in TENSORS]
    + [("win_score", pa.float64()), ("lose_score", pa.float64()), ("extra_info", pa.struct([*EXTRA, RAW]))]
)


@dataclass(frozen=True)
class VerlOmniConfig:
    """Encode judged pairs of images for verl-omni's offline DPO. Ties are left out."""

    model: str
    """The folder of a Stable Diffusion 3 or 3.5 pipeline, or a hub id: the one that is to be trained."""
    out: Path
    """The parquet file to write; the images' paths in it are relative to it. Its name without .parquet is the split's."""
    data: Path | None = None
    """PAIRS.jsonl: comparisons of images."""
    store: str | None = None
    """Instead of --data: sqlite:///FILE, a path or postgresql://USER@HOST/NAME, what `mmrlhf rate` collected."""
    source: Literal["all", "human", "simulated", "ai"] = "all"
    """Of a store: all, or only the answers of one kind of rater."""
    criterion: str | None = None
    """Only what was answered by this criterion; "" is which is better overall."""
    size: int | None = None
    """Side of the pictures in pixels, to which all are cropped and resized; None is the model's own."""
    negative_prompt: str | None = " "
    """What classifier-free guidance leads away from, which verl-omni needs where its guidance_scale is above 1; None is none."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the encoders."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 …"""


def export(config: VerlOmniConfig) -> int:
    """Write a row a pair, the winner's score its label and the loser's the rest of 1; how many. Whole or not at all.

    UserError for another class of models, or where no pair has a winner.
    """
    asked = PreferenceConfig(model=config.model, out=config.out, data=config.data, store=config.store,
                             source=config.source, criterion=config.criterion)  # fmt: skip
    pairs, ties = read_preferences(asked)
    policy = DiffusionPolicy.load(config.model, size=config.size, dtype=config.dtype, device=config.device)
    if (name := type(policy.family.pipeline).__name__) != FAMILY:
        raise UserError(
            f"model {config.model} is a {name}, allowed is {FAMILY}: it is the one whose encoded pairs verl-omni reads"
        )
    tell_of_cut_prompts(policy.family, [pair.prompt for pair in pairs])
    with replacing(config.out) as temporary, pq.ParquetWriter(temporary, SCHEMA) as writer:
        for row in tqdm(rows_of(pairs, policy, config), total=len(pairs), desc="encode", unit="pair"):
            writer.write_table(pa.Table.from_pylist([row], SCHEMA))
    print(f"{len(pairs)} pairs ({ties} ties left out): {config.out}")
    return len(pairs)


def rows_of(pairs: list[Pair], policy: DiffusionPolicy, config: VerlOmniConfig) -> Iterator[dict[str, Any]]:
    """One at a time, for a row has some megabytes."""
    negative = config.negative_prompt
    unwanted = {} if negative is None else {f"negative_{name}": part for name, part in texts(policy, negative).items()}
    for index, pair in enumerate(pairs):
        latents = dict(zip(TENSORS, encode_files(policy, [pair.image_0, pair.image_1], 1), strict=False))
        row = prompt_row(pair.prompt, index, config.out.stem, negative or " ")
        row["extra_info"] |= {"raw_negative_prompt": negative or " "}
        named = {"img_win": relative(pair.image_0, config.out), "img_lose": relative(pair.image_1, config.out)}
        scores = {"win_score": pair.label_0, "lose_score": 1 - pair.label_0}
        tensors = latents | texts(policy, pair.prompt) | unwanted
        yield row | named | scores | {name: saved(part) for name, part in tensors.items()}


def texts(policy: DiffusionPolicy, prompt: str) -> dict[str, Tensor]:
    """The tokens of a prompt as the text encoders see them, a mask that leaves none out, and the pooled text."""
    conditions = policy.embed([prompt])
    tokens: Float[Tensor, "l d"] = conditions["text"][0].cpu()
    mask = torch.ones(len(tokens), dtype=torch.int32)
    return {"prompt_embeds": tokens, "prompt_embeds_mask": mask, "pooled_prompt_embeds": conditions["pooled"][0].cpu()}


def saved(tensor: Tensor) -> bytes:
    """The bytes that `torch.load(weights_only=True)` reads."""
    buffer = io.BytesIO()
    torch.save(tensor.clone(), buffer)  # a view would take its whole storage along
    return buffer.getvalue()
