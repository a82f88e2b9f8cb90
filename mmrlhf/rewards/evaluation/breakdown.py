"""Where a reward agrees with people and where not: by annotator, by kind of prompt, by difficulty."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from mmrlhf.answers import Comparison, oriented
from mmrlhf.datasets.judgements import question_of
from mmrlhf.rewards.evaluation.measures import share_interval

MOST_GROUPS = 12  # a `group` column with more values names units, not kinds
UNANIMITY = ("unanimous", "majority", "split", "one vote")
Votes = dict[tuple[Any, ...], list[int]]


class Division(NamedTuple):
    """A way to divide the pairs: by what, the name of each pair's group, and the groups' names in order."""

    by: str
    names: list[str]
    order: list[str]


def breakdowns(
    pairs: Sequence[Comparison], margins: Float[np.ndarray, " n"], credits: Float[np.ndarray, " n"], seed: int
) -> list[dict[str, Any]]:
    """For each `Division`, {"by", "groups"}: the groups' name, n, prompts, agreement and its interval."""
    divisions = [by_annotator(pairs), by_criterion(pairs), by_prompt(pairs), by_difficulty(pairs, margins)]
    found = []
    for division in divisions:
        if division is not None:
            # a group of prompts is one unit of the whole, so within it the prompts are what varies
            units = [pair.prompt if division.by == "group" else pair.unit for pair in pairs]
            found.append({"by": division.by, "groups": agreement_of_groups(credits, division, units, seed)})
    return found


def agreement_of_groups(
    credits: Float[np.ndarray, " n"], division: Division, units: Sequence[str], seed: int
) -> list[dict[str, Any]]:
    """A row a group, in order; the interval is over units, None where they are few (`share_interval`)."""
    members: dict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(division.names):
        members[name].append(row)
    rows = []
    for name in division.order:
        own = members[name]
        own_units = [units[row] for row in own]
        rows.append(
            {
                "name": name,
                "n": len(own),
                "prompts": len(set(own_units)),
                "agreement": float(credits[own].mean()),
                "ci95": share_interval(credits[own], own_units, seed),
            }
        )
    return rows


def by_annotator(pairs: Sequence[Comparison]) -> Division | None:
    """Who judged, the busiest first; None where that is one."""
    return divided("annotator", [pair.annotator or "(no name)" for pair in pairs])


def by_criterion(pairs: Sequence[Comparison]) -> Division | None:
    """What was asked; None where that is one thing."""
    return divided("criterion", [pair.criterion or "overall" for pair in pairs])


def by_prompt(pairs: Sequence[Comparison]) -> Division | None:
    """The `group` column where it has few values, else thirds by the number of words."""
    groups = {pair.group for pair in pairs}
    if "" not in groups and 1 < len(groups) <= MOST_GROUPS:
        return divided("group", [pair.group for pair in pairs])
    return thirds("words of the prompt", np.array([float(len(pair.prompt.split())) for pair in pairs]))


def by_difficulty(pairs: Sequence[Comparison], margins: Float[np.ndarray, " n"]) -> Division | None:
    """How much the annotators disagree where that can be seen, else how near the reward's two scores are."""
    votes = votes_of(pairs)
    if any(len(rows) > 1 for rows in votes.values()):
        of_key = {
            key: unanimity([oriented(pairs[row], pairs[row].label_0) for row in rows]) for key, rows in votes.items()
        }
        names = [of_key[question_of(pair)] for pair in pairs]
        return Division("the annotators' votes", names, [name for name in UNANIMITY if name in names])
    strengths = np.array([abs(2 * pair.label_0 - 1) for pair in pairs])
    if len(np.unique(strengths)) > 2:
        return thirds("the annotators' |2 label − 1|", strengths)
    return thirds("the reward's |margin|", np.abs(margins))


def unanimity(labels: Sequence[float]) -> str:
    """All votes of a pair alike, one answer ahead of the others, or none."""
    if len(labels) == 1:
        return "one vote"
    counts = sorted(np.unique(np.sign(np.array(labels) - 0.5), return_counts=True)[1].tolist(), reverse=True)
    return "unanimous" if len(counts) == 1 else "majority" if counts[0] > counts[1] else "split"


def divided(by: str, names: list[str]) -> Division | None:
    """By the names as they are, the most frequent first. None where all are one."""
    order = [name for name, _ in Counter(names).most_common()]
    return Division(by, names, order) if len(order) > 1 else None


def thirds(by: str, values: Float[np.ndarray, " n"]) -> Division | None:
    """Groups of about a third each, named by their range; equal values stay together. None where all values are equal."""
    below = values[values < values.max()]
    if not len(below):
        return None
    cuts = np.quantile(values, [1 / 3, 2 / 3], method="inverted_cdf")
    parts = np.searchsorted(np.unique(np.minimum(cuts, below.max())), values)
    levels = ("low", "middle", "high") if parts.max() == 2 else ("low", "high")
    order = []
    for part, level in enumerate(levels):
        low, high = values[parts == part].min(), values[parts == part].max()
        order.append(f"{level}: {low:.3g}" + (f" to {high:.3g}" if high > low else ""))
    return Division(by, [order[part] for part in parts], order)


def votes_of(pairs: Sequence[Comparison]) -> Votes:
    """The rows that judge the same two sides for the same prompt and criterion, in either order.

    Of an annotator with a name the last answer counts.
    """
    latest: dict[tuple[Any, ...], int] = {}
    for row, pair in enumerate(pairs):
        who = pair.annotator or row
        latest[question_of(pair), who] = row
    votes: Votes = defaultdict(list)
    for (key, _), row in latest.items():
        votes[key].append(row)
    return votes
