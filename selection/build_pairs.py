"""`mmrlhf select pairs`: which two images of a prompt to show people, spread over prompts and images, for `mmrlhf rate`."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmrlhf.data import relative, write_jsonl
from mmrlhf.errors import UserError
from mmrlhf.rewards.evaluation.batches import member_scores
from mmrlhf.rewards.score import check_output, load_on, score_items
from selection.bradley_terry import WHITENINGS, Head, draw_margins, fit_features, principal, ridge_of
from selection.choice import Choice
from selection.embed import Embedder, embed_files
from selection.pair_features import pair_differences
from selection.pair_items import Candidates, Table, candidates, read_asked, read_list, table_of
from selection.pair_limits import PairLimits, caps_for, looser
from selection.pairs import PairChoice, choose_pairs
from selection.uncertainty import bald, margin_uncertainty
from selection.v_optimal import v_optimal

MEMBERS = 16  # heads drawn
NEEDS = "needs --reward, one that `mmrlhf reward train` wrote, or --already with labels: give one of these"


@dataclass(frozen=True)
class PairsConfig:
    """Choose pairs of images of one prompt that are worth asking about, and write them for `mmrlhf rate --items`."""

    items: Path
    """ITEMS.jsonl ({"prompt", "image"}), a folder that holds one, or a folder of images, which then are all of one prompt."""
    budget: int
    """How many pairs to choose."""
    out: Path
    """PAIRS.jsonl to write: {"prompt", "image_0", "image_1", "why"}, the pair to ask about first on top."""
    strategy: Literal["v-optimal", "spread", "uncertain", "random"] = "v-optimal"
    """v-optimal: pairs whose answers tell most of all other pairs, fewer of those that the answers so far, or --reward, are sure
    of. spread: pairs that differ in what no pair before differed in, times how unsure these are of them. uncertain: by that
    alone. random: the baseline."""
    reward: str | None = None
    """A reward that is unsure of some pairs: where its ensemble disagrees (bald), or the nearest to a tie where it is none;
    v-optimal takes its mean margins. Without it, a head on the embeddings that is fitted to the labels of --already."""
    most_per_prompt: int | None = None
    """At most so many pairs of a prompt, earlier ones among them (default: twice the even share, more if --budget needs it)."""
    least_per_prompt: int | None = None
    """At least so many pairs of each prompt that has them (default: 1 where --budget allows it)."""
    most_per_image: int | None = None
    """Show no image in more pairs than this (default: as --most-per-prompt)."""
    already: Path | None = None
    """PAIRS.jsonl asked earlier: not asked again, counted in the caps, and kept away from; with labels, learnt from."""
    model: str = "tiny-clip"
    """What embeds the images, as `select --model` takes it."""
    cache: Path | None = None
    """Where embeddings are kept, to resume and to reuse (default: beside --out)."""
    seed: int = 0
    """Of what is drawn: equals, random pairs, and candidates where there are more than 100,000."""
    batch_size: int = 32
    """How many images to embed at once."""
    device: str = "auto"
    """Of the reward: auto, cpu, cuda, cuda:1 …"""


class Pool(NamedTuple):
    """Candidate pairs as rows of the table, what each differs in, the numbers of those asked earlier, a head of the answers."""

    pairs: Int[np.ndarray, "p 2"]
    differences: Float[np.ndarray, "p d"]
    asked: list[int]
    head: Head | None


def build(config: PairsConfig) -> list[dict[str, Any]]:
    """Choose the pairs, write them, print where they are, and return the rows written."""
    check(config)
    items = read_list(config.items)
    earlier = [] if config.already is None else read_asked(config.already)
    embedder = Embedder(config.model, batch_size=config.batch_size)
    cache = config.cache or config.out.with_name(config.out.stem + ".embeddings")
    files = embed_files(list(dict.fromkeys(item.image for item in items)), embedder, cache=cache)
    if files.unreadable:
        print(f"skipped {len(files.unreadable)} unreadable files; first: {next(iter(files.unreadable.values()))}")
    table = table_of(items, files)
    generator = torch.Generator().manual_seed(config.seed)
    pool = pool_of(config, table, candidates(table, earlier, generator))
    choice = choose(config, table, pool, generator)
    rows = [
        {
            "prompt": table.items[first].prompt,
            "image_0": relative(table.items[first].image, config.out),
            "image_1": relative(table.items[second].image, config.out),
            "why": why,
        }
        for (first, second), why in zip(pool.pairs[choice.indices].tolist(), reasons(config, choice), strict=True)
    ]
    write_jsonl(rows, config.out)
    print(summary(rows, table, config))
    return rows


def check(config: PairsConfig) -> None:
    """UserError for what can be seen to be wrong before the long work."""
    check_output(config.out)
    for name in ("budget", "batch_size", "most_per_prompt", "most_per_image"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} got {value}, allowed is 1 or more")
    if config.least_per_prompt is not None and config.least_per_prompt < 0:
        raise UserError(f"--least-per-prompt got {config.least_per_prompt}, allowed is 0 or more")
    if config.strategy == "uncertain" and config.reward is None and config.already is None:
        raise UserError(f"--strategy uncertain {NEEDS}")
    if config.strategy == "random" and config.reward is not None:
        raise UserError("--strategy random takes no --reward: use --strategy v-optimal, spread or uncertain")
    if config.out in (config.items, config.already):
        raise UserError(f"--out {config.out} is a file to read: give a name of its own")


def pool_of(config: PairsConfig, table: Table, found: Candidates) -> Pool:
    """The candidates, and what they differ in; a head of the answers so far where there are some and no reward is given."""
    learns = config.reward is None and config.strategy != "random" and len(found.labels) > 0
    if not learns and config.strategy == "uncertain" and config.reward is None:
        raise UserError(f"--already {config.already} has no label of these images; --strategy uncertain {NEEDS}")
    choices = [
        pair_differences(principal(table.embeddings, whitening=whitening), found.pairs)
        for whitening in (WHITENINGS if learns else WHITENINGS[:1])
    ]
    if not learns:
        return Pool(found.pairs, choices[0], found.asked, None)
    differences, head = fit_features(choices, found.answered, found.labels)
    print(f"fitted a head on the embeddings to {len(found.labels)} answers of {config.already}")
    return Pool(found.pairs, differences, found.asked, head)


def choose(config: PairsConfig, table: Table, pool: Pool, generator: torch.Generator) -> PairChoice:
    """The pairs that the strategy and the caps give; caps that nobody asked for give way where the budget needs it."""
    sizes = np.bincount(table.prompts)
    most, shown = config.most_per_prompt, config.most_per_image
    caps = caps_for(config.budget, sizes[sizes > 1], config.least_per_prompt, most, shown, earlier=len(pool.asked))
    pick, prompts = chooser(config, table, pool, generator), table.prompts[pool.pairs[:, 0]]
    state, before = generator.get_state(), -1
    while True:
        choice = pick(PairLimits(prompts, table.images[pool.pairs], caps, pool.asked))
        if (found := len(choice.indices)) == config.budget:
            return choice
        if found <= before or (most and shown):
            raise UserError(
                f"--budget got {config.budget}, allowed is 1 to {found}: at most {caps.most_per_prompt} pairs a prompt and "
                f"{caps.most_per_image} an image leave no more, {len(pool.asked)} asked earlier among them"
            )
        generator.set_state(state)
        caps, before = looser(caps, most, shown), found


def chooser(
    config: PairsConfig, table: Table, pool: Pool, generator: torch.Generator
) -> Callable[[PairLimits], PairChoice]:
    """What chooses as many of the budget as the caps let in."""
    margins = margins_of(config, table, pool, generator)
    left, prompts = min(config.budget, len(pool.pairs) - len(pool.asked)), table.prompts[pool.pairs[:, 0]]
    if left == 0:
        return lambda limit: PairChoice([], [], [])
    if config.strategy == "v-optimal":
        mean = None if margins is None else margins.nan_to_num(0).mean(0).numpy()
        ridge = 1.0
        if pool.head is not None:
            mean, ridge = pool.differences @ pool.head.weights, ridge_of(pool.head, pool.differences)
        return lambda limit: as_pairs(
            v_optimal(
                pool.differences, left, already=pool.asked, generator=generator, margins=mean, ridge=ridge, limit=limit
            )
        )
    spread, scores = config.strategy == "spread", scores_of(config, margins, len(pool.pairs), generator)
    return lambda limit: choose_pairs(
        torch.from_numpy(pool.differences), scores, left, per_prompt_cap=len(pool.pairs), prompt_ids=torch.from_numpy(prompts),
        generator=generator, diversity=float(spread), top_share=0.5 if spread else 1.0, limit=limit,
        asked=torch.from_numpy(pool.differences[pool.asked]),
    )  # fmt: skip


def as_pairs(choice: Choice) -> PairChoice:
    """A choice of rows, as one of pairs."""
    return PairChoice(choice.indices.tolist(), choice.why, choice.gains.tolist())


def margins_of(
    config: PairsConfig, table: Table, pool: Pool, generator: torch.Generator
) -> Float[Tensor, "m p"] | None:
    """Each member's score of a pair's first image less that of its second, NaN where it abstains.

    Without a reward, those of heads that the answers leave possible; None where there are no answers either.
    """
    if config.reward is None:
        if pool.head is None:
            return None
        return torch.from_numpy(draw_margins(pool.head, pool.differences, MEMBERS, generator))
    reward = load_on(config.reward, config.device)
    members = member_scores(reward, table.items, config.batch_size)
    if members is None:
        members = score_items(reward, table.items, batch_size=config.batch_size, progress=True)[None]
    return torch.from_numpy(members[:, pool.pairs[:, 0]] - members[:, pool.pairs[:, 1]])


def scores_of(
    config: PairsConfig, margins: Float[Tensor, "m p"] | None, count: int, generator: torch.Generator
) -> Float[Tensor, " p"] | None:
    """How unsure the reward, or the head, is of each pair; as of any where it abstains. None where nothing tells pairs apart."""
    if config.strategy == "random":
        return torch.rand(count, generator=generator, dtype=torch.double)
    if margins is None:
        return None
    unsure = bald(margins) if len(margins) > 1 else margin_uncertainty(margins)
    return unsure.nan_to_num(float(unsure.nan_to_num(0).max()) or 1.0)


def reasons(config: PairsConfig, choice: PairChoice) -> list[str]:
    """Why each pair was chosen, in words."""
    return ["random"] * len(choice.why) if config.strategy == "random" else choice.why


def summary(rows: Sequence[dict[str, Any]], table: Table, config: PairsConfig) -> str:
    """The closing line: how the pairs are spread, and where they are."""
    prompts = Counter(row["prompt"] for row in rows)
    images = Counter(row[name] for row in rows for name in ("image_0", "image_1"))
    return (
        f"{len(rows)} pairs of {len(prompts)} of {len(table.names)} prompts, {min(prompts.values())} to "
        f"{max(prompts.values())} each, {len(images)} of {len(table.hashes)} images, each in {max(images.values())} at most: "
        f"{config.out}"
    )
