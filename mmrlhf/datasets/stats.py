"""`mmrlhf data stats`: what is in a file of pairs, and what in it deserves a second look."""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from mmrlhf.data import Pair, read_pairs, write_text


@dataclass(frozen=True)
class StatsConfig:
    """Count pairs, prompts, images, ties and contradictions."""

    data: Path
    """PAIRS.jsonl."""
    out: Path | None = None
    """JSON file for the same figures."""


def stats(config: StatsConfig) -> dict[str, Any]:
    """Print the figures, and write them where `out` is given."""
    figures = describe(read_pairs(config.data))
    width = max(map(len, figures))
    for name, value in figures.items():
        shown = f"{value:.3g}" if isinstance(value, float) else value
        print(f"{name.replace('_', ' '):<{width}}  {shown}")
    if config.out is not None:
        write_text(json.dumps(figures, indent=2) + "\n", config.out)
        print(f"figures: {config.out}")
    return figures


def describe(pairs: Sequence[Pair]) -> dict[str, Any]:
    """The figures of some pairs; shares are of the labelled ones, `first_preferred` of the strict ones with a 95 % interval.

    An order that was shuffled gives `first_preferred` near a half. A contradiction is two images of one prompt that strict
    answers put in both orders: raters differ, so it is no fault.
    """
    labelled = [pair for pair in pairs if pair.has_label]
    strict = [pair for pair in labelled if pair.label_0 in (0.0, 1.0)]
    first = sum(pair.label_0 == 1.0 for pair in strict)
    orders: dict[tuple[str, frozenset[Path]], set[Path]] = defaultdict(set)
    for pair in strict:
        orders[pair.prompt, frozenset((pair.image_0, pair.image_1))].add(pair.image_0 if pair.label_0 else pair.image_1)
    uses = Counter(image for pair in pairs for image in (pair.image_0, pair.image_1))
    a_prompt = Counter(pair.prompt for pair in pairs)
    interval = binomtest(first, len(strict)).proportion_ci(method="wilson") if strict else None
    return {
        "pairs": len(pairs),
        "without_label": len(pairs) - len(labelled),
        "prompts": len(a_prompt),
        "images": len(uses),
        "uses_an_image": 2 * len(pairs) / len(uses),
        "most_pairs_of_one_prompt": max(a_prompt.values()),
        "share_of_ties": sum(pair.label_0 == 0.5 for pair in labelled) / max(1, len(labelled)),
        "share_of_soft_labels": sum(pair.label_0 not in (0.0, 0.5, 1.0) for pair in labelled) / max(1, len(labelled)),
        "first_preferred": first / len(strict) if strict else None,
        "first_preferred_ci95": None if interval is None else [interval.low, interval.high],
        "contradictions": sum(len(winners) > 1 for winners in orders.values()),
    }
