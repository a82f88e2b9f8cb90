"""How far to trust an AI rater: its agreement with people on the same pairs, and how much it minds which side is shown."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mmrlhf.agreement import pair_agreement, rater_agreement
from mmrlhf.rewards.evaluation.measures import share_interval
from mmrlhf.store import task_key
from mmrlhf.types import Preference

LEFT, RIGHT = "p_first_shown_left", "p_first_shown_right"  # in the extra of a verdict: P(first preferred), by its side


def agreement_with(
    verdicts: Sequence[Preference], people: Sequence[Preference], *, seed: int = 0
) -> dict[str, Any] | None:
    """How often each answer of `people` is the judge's verdict on the same pair; None where they share no pair.

    agreement (a mean over answers of the credit that `pair_agreement` gives), ci95 (over pairs; None for fewer than 5), answers,
    pairs, raters (agreement, Cohen's kappa and pairs with each), and among_themselves: how far the people agree with each
    other on these pairs (None where no two answered the same).
    """
    mine = dict(map(oriented, verdicts))
    shared = [person for person in people if oriented(person)[0] in mine]
    if not shared:
        return None
    answers = [oriented(person) for person in shared]
    credits = np.asarray(
        pair_agreement([mine[key] for key, _ in answers], [label for _, label in answers]), dtype=float
    )
    judge = verdicts[0].annotator
    rows = [row for row in rater_agreement([*verdicts, *shared])[1] if judge in row[:2]]
    raters = {
        row.rater_1 if row.rater_0 == judge else row.rater_0:
        {"agreement": row.agreement, "kappa": number(row.kappa), "pairs": row.pairs}
        for row in rows
    }  # fmt: skip
    return {
        "agreement": float(credits.mean()),
        "ci95": share_interval(credits, [key for key, _ in answers], seed),
        "answers": len(answers),
        "pairs": len({key for key, _ in answers}),
        "raters": raters,
        "among_themselves": number(rater_agreement(shared)[0]),
    }


def position_bias(verdicts: Sequence[Preference], *, seed: int = 0) -> dict[str, Any] | None:
    """Mean P(left preferred) over both orders (1/2 without bias), and the share of pairs whose verdict turns with the order.

    Each with its 95 % interval over pairs. None where no verdict holds both probabilities.
    """
    both = {oriented(v)[0]: (v.extra[LEFT], v.extra[RIGHT]) for v in verdicts if LEFT in v.extra and RIGHT in v.extra}
    if not both:
        return None
    pairs = list(both)
    shown_left, shown_right = np.array(list(both.values()), dtype=float).T
    left = (shown_left + 1 - shown_right) / 2
    flipped = (np.sign(shown_left - 0.5) != np.sign(shown_right - 0.5)).astype(float)
    return {
        "p_left": float(left.mean()),
        "p_left_ci95": share_interval(left, pairs, seed),
        "flipped": float(flipped.mean()),
        "flipped_ci95": share_interval(flipped, pairs, seed),
        "pairs": len(both),
    }


def oriented(preference: Preference) -> tuple[str, float]:
    """(name of the question, weight of the item whose hash comes first), whichever order the record has."""
    first = min(preference.items)
    label = preference.label if preference.items[0] == first else 1 - preference.label
    return task_key(preference.prompt, *preference.items), label


def number(value: float) -> float | None:
    """A number for JSON, which has no NaN."""
    return None if np.isnan(value) else float(value)
