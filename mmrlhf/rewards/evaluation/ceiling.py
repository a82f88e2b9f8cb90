"""How well a reward could agree with people at best: what their own answers to the same pairs allow."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from mmrlhf.agreement import pair_agreement
from mmrlhf.answers import Comparison, oriented
from mmrlhf.rewards.evaluation.breakdown import votes_of
from mmrlhf.rewards.evaluation.measures import share_interval


def ceilings(pairs: Sequence[Comparison], verdict: Float[np.ndarray, " n"], seed: int) -> list[dict[str, Any]]:
    """Each ceiling that these pairs can show, and the reward's agreement on the same pairs counted the same way.

    `verdict` is the reward's answer: 1 the first, 0 the second, 0.5 a tie. Rows: name, says, value, ci95, reward,
    reward_ci95, pairs, votes. Empty where nobody judged a pair twice and no label is soft.
    """
    return [*repeated_votes(pairs, verdict, seed), *soft_labels(pairs, verdict, seed)]


def repeated_votes(pairs: Sequence[Comparison], verdict: Float[np.ndarray, " n"], seed: int) -> list[dict[str, Any]]:
    """On pairs that several judged: an annotator against each other, against the others' majority, and the best answer.

    The first two are what people reach; a scorer without their noise may do better. The best fixed answer to each pair is an
    upper bound, and one that the same votes chose.
    """
    each_other, majority, best, units = [], [], [], []
    shared = [rows for rows in votes_of(pairs).values() if len(rows) > 1]
    for rows in shared:
        labels = np.array([oriented(pairs[row], pairs[row].label_0) for row in rows])
        answer = oriented(pairs[rows[0]], verdict[rows[0]])
        known = max((np.asarray(pair_agreement(one, labels), dtype=float) for one in (0.0, 0.5, 1.0)), key=np.mean)
        for place, row in enumerate(rows):
            others = np.delete(labels, place)
            side = 0.5 + np.sign(np.sign(others - 0.5).sum()) / 2  # 0.5 where the others are evenly split
            vote = labels[place]
            each_other.append([np.mean(pair_agreement(one, others)) for one in (vote, answer)])
            majority.append([pair_agreement(one, side) for one in (vote, answer)])
            best.append([known[place], pair_agreement(answer, vote)])
            units.append(pairs[row].unit)
    if not shared:
        return []
    found = (
        ("another annotator", "an annotator agrees with another one", each_other),
        ("the others' majority", "an annotator agrees with the majority of the others", majority),
        (
            "best possible",
            "the best answer to each pair agrees with its votes (chosen by them, so too high from few)",
            best,
        ),
    )
    return [ceiling(name, says, values, units, len(shared), seed) for name, says, values in found]


def soft_labels(pairs: Sequence[Comparison], verdict: Float[np.ndarray, " n"], seed: int) -> list[dict[str, Any]]:
    """The mean of max(p, 1 − p), where labels are shares of votes: whoever always knows the majority agrees with one vote so."""
    labels = np.array([pair.label_0 for pair in pairs])
    if np.isin(labels, (0, 0.5, 1)).all():
        return []
    best = np.maximum(labels, 1 - labels)
    reached = verdict * labels + (1 - verdict) * (1 - labels)  # and 1/2 where a tie is predicted
    says = "the majority of each pair agrees with a vote drawn from its soft label (too high if that is of few votes)"
    values = np.stack([best, reached], axis=1).tolist()
    return [ceiling("soft labels", says, values, [pair.unit for pair in pairs], len(pairs), seed)]


def ceiling(name: str, says: str, values: list[list[Any]], units: list[str], pairs: int, seed: int) -> dict[str, Any]:
    """The row of one ceiling; `values` are (of the annotators, of the reward)."""
    people, reward = np.array(values, dtype=float).T
    return {
        "name": name,
        "says": says,
        "value": float(people.mean()),
        "ci95": share_interval(people, units, seed),
        "reward": float(reward.mean()),
        "reward_ci95": share_interval(reward, units, seed),
        "pairs": pairs,
        "votes": len(units),
    }
