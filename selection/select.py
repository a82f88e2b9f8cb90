"""`mmrlhf select`: which rows of an embedding matrix, or which images of a folder, are worth annotating."""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from mmrlhf.errors import UserError
from mmrlhf.images import list_images
from selection.choice import check_request
from selection.coverage import coverage
from selection.embed import EmbeddedFiles, Embedder, embed_files
from selection.files import embedding_hash, read_already, read_embeddings, write_whole
from selection.random_choice import random_choice
from selection.report import write_report
from selection.strategies import STRATEGIES, StrategyName


@dataclass(frozen=True)
class SelectConfig:
    """Choose the samples worth annotating, from embeddings or from images, and compare with a random choice."""

    budget: int
    """How many new rows or images to choose."""
    out: Path
    """The result, a JSON file."""
    embeddings: Path | None = None
    """A .npy matrix of float16, float32 or float64, a row an item; read in blocks, so it may be larger than memory."""
    images: Path | None = None
    """A folder of images to embed and choose from, instead of --embeddings."""
    strategy: StrategyName = "kcenter"
    """kcenter covers the rare, facility-location stands for the many, typicality suits small budgets, random is the baseline."""
    seed: int = 0
    """Where chance decides: the first row of kcenter, clusters, the random baseline."""
    model: str = "tiny-clip"
    """With --images: a tiny name, the folder of a CLIPModel, or a hub id."""
    already: Path | None = None
    """Rows selected earlier, counted as chosen and not chosen again: a result of this command, or a row number a line."""
    cache: Path | None = None
    """With --images: where embeddings are kept, to resume and to reuse (default: beside --out)."""
    report: Path | None = None
    """Also write a page with a map of the selection."""
    batch_size: int = 32
    """With --images: how many to embed at once."""


def select(config: SelectConfig) -> dict[str, Any]:
    """Run the selection, write `config.out` (and the report), print where it is, and return what was written."""
    began = time.perf_counter()
    check(config)
    files = None if config.images is None else embed(config, config.images)
    embeddings = read_embeddings(config.embeddings) if config.embeddings is not None else None
    matrix = files.embeddings if files is not None else embeddings
    assert matrix is not None  # `check` saw that one of the two is given
    already = [] if config.already is None else read_already(config.already, files.hashes if files else None)
    already = check_request(len(matrix), config.budget, already)
    result = choose(matrix, config, already)
    if files is not None:
        result |= describe_files(files, result["indices"], already)
    result["seconds_total"] = time.perf_counter() - began
    if config.report is not None:
        write_report(config.report, matrix, result)
    write_whole(config.out, json.dumps(result, indent=1, allow_nan=False) + "\n")
    print(summary(config, result))
    return result


def check(config: SelectConfig) -> None:
    """UserError for what can be seen to be wrong before the long work."""
    if (config.embeddings is None) == (config.images is None):
        given = "neither" if config.embeddings is None else "both"
        raise UserError(
            f"got {given} of --embeddings and --images, allowed is one: give a .npy file or a folder of images"
        )
    if config.strategy not in STRATEGIES:
        raise UserError(f"unknown strategy '{config.strategy}': allowed are {', '.join(STRATEGIES)}")
    if config.budget < 1:
        raise UserError(f"--budget got {config.budget}, allowed is 1 or more")
    if config.batch_size < 1:
        raise UserError(f"--batch-size got {config.batch_size}, allowed is 1 or more")
    for path in filter(None, [config.out, config.report]):
        if path.is_dir():
            raise UserError(f"{path} is a folder: give the name of a file to write")
        parent = next(folder for folder in path.absolute().parents if folder.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise UserError(f"cannot write {path}: {parent} is no folder that can be written to; give another path")


def embed(config: SelectConfig, folder: Path) -> EmbeddedFiles:
    """The images' embeddings, kept beside `config.out` unless told otherwise."""
    cache = config.cache or config.out.with_name(config.out.stem + ".embeddings")
    paths = list_images(folder)
    if config.budget > len(paths):
        raise UserError(
            f"--budget got {config.budget}, allowed is 1 to {len(paths)}: there are no more images in {folder}"
        )
    return embed_files(paths, Embedder(config.model, batch_size=config.batch_size), cache=cache)


def choose(matrix: Float[np.ndarray, "n d"], config: SelectConfig, already: Sequence[int]) -> dict[str, Any]:
    """The chosen rows, and how well they cover all rows next to a random choice of the same size."""
    began = time.perf_counter()
    choice = STRATEGIES[config.strategy](
        matrix, config.budget, already=already, generator=torch.Generator().manual_seed(config.seed)
    )
    seconds = time.perf_counter() - began
    other = torch.Generator().manual_seed(config.seed + 1_000_003)
    baseline = random_choice(matrix, config.budget, already=already, generator=other)
    return {
        "indices": choice.indices.tolist(),
        "gains": choice.gains.tolist(),
        "why": choice.why,
        "strategy": config.strategy,
        "seed": config.seed,
        "budget": config.budget,
        "rows": len(matrix),
        "dimensions": matrix.shape[1],
        "embedding_hash": embedding_hash(matrix),
        "already": list(already),
        "seconds": seconds,
        "coverage": coverage(matrix, [*already, *choice.indices.tolist()]),
        "baseline_random": coverage(matrix, [*already, *baseline.indices.tolist()]),
    }


def describe_files(files: EmbeddedFiles, indices: Sequence[int], already: Sequence[int]) -> dict[str, Any]:
    """The files behind the row numbers."""
    return {
        "paths": [str(files.paths[index]) for index in indices],
        "hashes": [files.hashes[index] for index in indices],
        "already_hashes": [files.hashes[index] for index in already],
        "unreadable": files.unreadable,
    }


def summary(config: SelectConfig, result: dict[str, Any]) -> str:
    """The closing lines: what could not be read, and where the result is."""
    chosen, drawn = result["coverage"], result["baseline_random"]
    skipped = result.get("unreadable", {})
    lines = (
        [f"skipped {len(skipped)} unreadable files, listed in {config.out}; first: {next(iter(skipped.values()))}"]
        if skipped
        else []
    )
    lines.append(
        f"chose {config.budget} of {result['rows']} by {config.strategy} in {result['seconds']:.2f} s, covering radius "
        f"{chosen['radius']:.4g} (random {drawn['radius']:.4g}), mean distance {chosen['mean_distance']:.4g} "
        f"(random {drawn['mean_distance']:.4g}): {config.out}"
    )
    return "\n".join(lines)
