"""`mmrlhf select`: which rows of an embedding matrix, or which images of a folder, are worth annotating."""

import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from selection.choice import check_request
from selection.combine import Combination, combine
from selection.coverage import coverage
from selection.embed import EmbeddedFiles
from selection.files import embedding_hash, read_already, write_whole
from selection.inputs import Inputs, read_inputs
from selection.pictures import places
from selection.random_choice import random_choice
from selection.recipe import Strategy, plain
from selection.report import write_report
from selection.select_config import SelectConfig, check, combination
from selection.shard_runners import runner
from selection.shards import choose_in_shards
from selection.stacked import Stacked
from selection.strategies import STRATEGIES
from selection.uncertainty import MEASURES, check_margins

__all__ = ["SelectConfig", "select"]


def select(config: SelectConfig) -> dict[str, Any]:
    """Run the selection, write `config.out` (and the report), print where it is, and return what was written."""
    began = time.perf_counter()
    check(config)
    strategies = combination(config)
    inputs = read_inputs(config)
    already = (
        [] if config.already is None else read_already(config.already, inputs.files.hashes if inputs.files else None)
    )
    already = check_request(len(inputs.matrix), config.budget, already)
    result = choose(inputs, config, strategies, already)
    if inputs.files is not None:
        result |= describe_files(inputs.files, result["indices"], already)
        result["picks"] = [pick | places(inputs.files.paths, pick["index"]) for pick in result["picks"]]
    result["seconds_total"] = time.perf_counter() - began
    if config.report is not None:
        write_report(config.report, inputs.matrix, result)
    write_whole(config.out, json.dumps(result, indent=1, allow_nan=False) + "\n")
    print(summary(config, result))
    return result


def choose(
    inputs: Inputs, config: SelectConfig, strategies: tuple[Strategy, ...] | None, already: Sequence[int]
) -> dict[str, Any]:
    """The chosen rows, and how well they cover all rows next to a random choice of the same size."""
    matrix, began = inputs.matrix, time.perf_counter()
    choice = picks(inputs, config, strategies, already)
    seconds = time.perf_counter() - began
    other = torch.Generator().manual_seed(config.seed + 1_000_003)
    baseline = random_choice(matrix, config.budget, already=already, generator=other)
    columns = (choice.indices.tolist(), choice.strategies, choice.gains.tolist(), choice.why)
    result = {
        "indices": choice.indices.tolist(),
        "gains": choice.gains.tolist(),
        "why": choice.why,
        "picks": [
            dict(zip(("index", "strategy", "gain", "why"), pick, strict=True)) for pick in zip(*columns, strict=True)
        ],
        "strategy": config.strategy_name,
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
    if isinstance(matrix, Stacked):
        result["shards"] = len(matrix.counts) if config.shards is None else config.shards
    return result | ({} if strategies is None else {"strategies": [plain(strategy) for strategy in strategies]})


def picks(
    inputs: Inputs, config: SelectConfig, strategies: tuple[Strategy, ...] | None, already: Sequence[int]
) -> Combination:
    """What the recipe, or the one strategy, chooses."""
    generator, name = torch.Generator().manual_seed(config.seed), config.strategy_name
    if isinstance(inputs.matrix, Stacked):
        choice = choose_in_shards(
            inputs.matrix, config.budget, strategy=name, shards=config.shards, already=already, generator=generator,
            run=runner(config.workers, config.ray), cache=config.cache,
        )  # fmt: skip
        return Combination(choice.indices, choice.gains, choice.why, [name] * config.budget)
    if strategies is not None:
        return combine(
            inputs.matrix, config.budget, strategies, already=already, generator=generator, columns=inputs.columns,
            margins=inputs.margins, embed=inputs.embed,
        )  # fmt: skip
    options = strategy_options(name, inputs, config)
    choice = STRATEGIES[name](inputs.matrix, config.budget, already=already, generator=generator, **options)
    return Combination(choice.indices, choice.gains, choice.why, [name] * config.budget)


def strategy_options(name: str, inputs: Inputs, config: SelectConfig) -> dict[str, Any]:
    """What a strategy takes beside the embeddings."""
    if name == "similarity":
        return {"queries": inputs.embed(config.query)}
    if inputs.margins is None:
        return {}
    check_margins(
        inputs.margins, len(inputs.matrix), config.measure if name in ("uncertainty", "density") else "margin"
    )
    margins = np.asarray(inputs.margins, dtype=np.float64)
    if name == "uncertainty":
        return {"margins": margins, "measure": config.measure}
    if name == "density":
        return {"uncertainty": MEASURES[config.measure](torch.from_numpy(margins)).numpy()}
    return {"margins": margins.mean(axis=0)}


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
        f"chose {config.budget} of {result['rows']} by {result['strategy']} in {result['seconds']:.2f} s, covering radius "
        f"{chosen['radius']:.4g} (random {drawn['radius']:.4g}), mean distance {chosen['mean_distance']:.4g} "
        f"(random {drawn['mean_distance']:.4g}): {config.out}"
    )
    return "\n".join(lines)
