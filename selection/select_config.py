"""The options of `mmrlhf select`, and what can be seen to be wrong with them before the long work."""

import os
from dataclasses import dataclass
from pathlib import Path

from mmrlhf.errors import UserError
from selection.recipe import PerGroup, Strategy, Threshold
from selection.recipe_file import read_recipe
from selection.shards import IN_SHARDS
from selection.strategies import NEEDS_PREDICTIONS, STRATEGIES, TAKES_PREDICTIONS, TAKES_QUERY, StrategyName, as_recipe
from selection.uncertainty import MeasureName


@dataclass(frozen=True)
class SelectConfig:
    """Choose the samples worth annotating, from embeddings or from images, and compare with a random choice."""

    budget: int
    """How many new rows or images to choose."""
    out: Path
    """The result, a JSON file."""
    embeddings: Path | None = None
    """A .npy matrix of float16, float32 or float64, a row an item; read in blocks, so it may be larger than memory. Or a
    .parquet file with lists of numbers in a column "embedding"; its other columns are metadata. Or a folder of .npy files,
    in the order of their names: a shard a file, unless --shards says how many."""
    images: Path | None = None
    """Images to embed and choose from, instead of --embeddings: a folder of them, or of .tar shards as webdataset writes them, a
    shard, or 'shards/{000..012}.tar' in quotes; also .tar.gz, .bz2, .xz and .zst. KEY.txt (the prompt) and KEY.json beside
    KEY.jpg are metadata. Or parquet files with columns of pictures' bytes; the other columns are metadata."""
    strategy: StrategyName | None = None
    """kcenter (the default) covers the rare, facility-location stands for the many, typicality suits small budgets, kmeans++
    is far but not only outliers, dpp has no two alike, deduplicate takes the first of each kind, density those like many,
    similarity those like --query, uncertainty those that --predictions are unsure of; badge, d-optimal and v-optimal
    choose pairs, whose embeddings are differences of two items'; random is the baseline."""
    recipe: Path | None = None
    """A YAML file that combines strategies, instead of --strategy."""
    seed: int = 0
    """Where chance decides: the first row of kcenter, clusters, equals, the random baseline."""
    model: str = "tiny-clip"
    """What embeds images and queries: tiny-clip, or the folder or hub id of a CLIPModel, SigLIP, DINOv2 or (hf-hub:owner/name)
    open_clip model, or what `mmrlhf select pretrain` wrote."""
    already: Path | None = None
    """Rows selected earlier, counted as chosen and not chosen again: a result of this command, or a row number a line."""
    metadata: Path | None = None
    """What is known of each row, for --where, --group and recipes: a .jsonl, .csv or .parquet file, a row a row of the
    embeddings. With --images a row an image, by name in a column image or file_name, or in the order of their paths."""
    where: tuple[str, ...] = ()
    """Keep only rows that meet each condition: 'sharpness >= 0.5' 'source == web'."""
    group: str | None = None
    """A column of the metadata, such as prompt, of which each value may be chosen --most-per-group times."""
    most_per_group: int | None = None
    """With --group: the most rows to choose of one group."""
    query: tuple[str, ...] = ()
    """With similarity: images, texts, or a .npy of embeddings, any of which the rows shall be like."""
    predictions: Path | None = None
    """A .npy matrix, a row a member of an ensemble, a column a row of the embeddings: scores of a pair's first item minus
    its second's, or of yes minus no."""
    measure: MeasureName = "bald"
    """With --predictions: bald and disagreement ask where the members differ, margin what they call nearest to a tie."""
    cache: Path | None = None
    """With --images: where embeddings are kept, to resume and to reuse (default: beside --out). With --shards: where the
    choice of each finished shard is kept, to resume (default: nowhere)."""
    report: Path | None = None
    """Also write a page with a map of the selection, its coverage, and the chosen images."""
    batch_size: int = 32
    """With --images: how many to embed at once."""
    shards: int | None = None
    """Choose in two rounds: from each of so many ranges of rows, then among all that were chosen. Memory is that of one
    shard; for kcenter, facility-location and random."""
    workers: int = 1
    """With --shards: how many processes choose at the same time."""
    ray: str | None = None
    """With --shards: choose on the Ray cluster at this HOST:PORT, whose nodes read the files under the same paths and have mmrlhf
    installed; "local" starts a Ray here."""

    @property
    def strategy_name(self) -> str:
        """What a result calls the strategy."""
        return "recipe" if self.recipe is not None else self.strategy or "kcenter"

    @property
    def sharded(self) -> bool:
        """Whether the choice is made in two rounds."""
        return self.shards is not None or (self.embeddings is not None and self.embeddings.is_dir())


def check(config: SelectConfig) -> None:
    """UserError for what can be seen to be wrong before the long work."""
    if (config.embeddings is None) == (config.images is None):
        given = "neither" if config.embeddings is None else "both"
        raise UserError(
            f"got {given} of --embeddings and --images, allowed is one: give a .npy file, or a folder of pictures"
        )
    check_strategy(config)
    check_shards(config)
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


def check_strategy(config: SelectConfig) -> None:
    """UserError for a strategy that lacks what it needs, or for an option that it would pass over."""
    if config.recipe is not None and config.strategy is not None:
        raise UserError(
            f"got --recipe and --strategy {config.strategy}, allowed is one: write the strategy into the recipe"
        )
    name = config.strategy or "kcenter"
    if name not in STRATEGIES:
        raise UserError(f"unknown strategy '{name}': allowed are {', '.join(STRATEGIES)}")
    if (config.group is None) != (config.most_per_group is None):
        given, missing = (
            ("--group", "--most-per-group") if config.group is not None else ("--most-per-group", "--group")
        )
        raise UserError(f"got {given} without {missing}: give both, such as --group prompt --most-per-group 2")
    if config.recipe is not None:
        return
    if name in TAKES_QUERY and not config.query:
        raise UserError(f"--strategy {name} needs --query: give an image, a text, or a .npy of embeddings")
    if name in NEEDS_PREDICTIONS and config.predictions is None:
        raise UserError(
            f"--strategy {name} needs --predictions FILE.npy: a row a member, a column a row of the embeddings"
        )
    if config.query and name not in TAKES_QUERY:
        raise UserError(f"--strategy {name} takes no --query: use --strategy {' or '.join(TAKES_QUERY)}, or --recipe")
    if config.predictions is not None and name not in TAKES_PREDICTIONS:
        raise UserError(
            f"--strategy {name} takes no --predictions: use --strategy {' or '.join(TAKES_PREDICTIONS)}, or --recipe"
        )
    if config.metadata is not None and config.group is None and not config.where:
        raise UserError("--metadata is used by --where, --group and --recipe: give one of these")


def check_shards(config: SelectConfig) -> None:
    """UserError for what cannot be run on shards, or for an option that would be passed over without them."""
    if config.workers < 1:
        raise UserError(f"--workers got {config.workers}, allowed is 1 or more")
    if config.shards is not None and config.shards < 1:
        raise UserError(f"--shards got {config.shards}, allowed is 1 or more")
    if config.workers > 1 and config.ray is not None:
        raise UserError("got both of --workers and --ray, allowed is one: Ray uses as many processes as it has cores")
    if not config.sharded:
        if config.workers > 1 or config.ray is not None:
            name = "--workers" if config.workers > 1 else "--ray"
            raise UserError(f"{name} needs --shards N: say into how many parts the rows are split")
        return
    limited = [("--recipe", config.recipe), ("--where", config.where), ("--group", config.group)]
    given = [name for name, value in limited if value] or [f"--strategy {config.strategy_name}"]
    if given[0].startswith("--strategy") and config.strategy_name in IN_SHARDS:
        return
    raise UserError(
        f"{given[0]} cannot be used with --shards or a folder of embeddings, allowed is --strategy {', '.join(IN_SHARDS)}: "
        "use one of these, or give one matrix without --shards"
    )


def combination(config: SelectConfig) -> tuple[Strategy, ...] | None:
    """The strategies to combine, with the limits of --where and --group; None where one strategy runs by itself."""
    limits: list[Strategy] = [Threshold(condition) for condition in config.where]
    if config.group is not None:
        limits.append(PerGroup(config.group, config.most_per_group))
    if config.recipe is not None:
        return (*read_recipe(config.recipe), *limits)
    if not limits:
        return None
    name = config.strategy or "kcenter"
    same = as_recipe(name, config.measure)
    if same is None:
        allowed = [each for each in STRATEGIES if as_recipe(each, config.measure) is not None]
        raise UserError(
            f"--strategy {name} cannot keep to --where and --group, allowed are {', '.join(allowed)}: use one, or --recipe"
        )
    return (*same, *limits)
