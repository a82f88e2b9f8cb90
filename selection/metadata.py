"""Selection by what is known of each row: conditions it must meet, weights it is drawn by, shares that groups shall have."""

import json
import math
import operator
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from mmrlhf.errors import UserError
from selection.choice import Choice, check_request, remaining
from selection.ranking import best, check_values

OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}


class Condition(NamedTuple):
    """A row is kept where its value of `column` stands in this relation to `value`, a number, a text, true or false."""

    column: str
    relation: str
    value: float | str | bool


def parse_condition(text: str) -> Condition:
    """'sharpness >= 0.5' or 'source == web': a column, a relation, and a JSON value or plain text."""
    match = re.fullmatch(r"\s*([^=!<>]+?)\s*(==|!=|<=|>=|<|>)\s*([^=<>].*?)\s*", text)
    if match is None:
        raise UserError(f"cannot read the condition '{text}': give a column, one of {' '.join(OPERATORS)}, and a value")
    column, relation, written = match.groups()
    try:
        value = json.loads(written)
    except json.JSONDecodeError:
        value = written
    if value is None or isinstance(value, list | dict) or value != value:
        raise UserError(f"the condition '{text}' compares with {written}, allowed is a number, a text, true or false")
    return Condition(column, relation, value)


def keep(columns: Mapping[str, Sequence[Any]], conditions: Sequence[Condition]) -> Int[np.ndarray, " k"]:
    """The numbers of the rows that meet every condition, ascending; a missing value (None, NaN) meets none."""
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) != 1:
        raise UserError(f"columns have lengths {lengths}, allowed is at least one column, all of one length")
    kept = np.ones(next(iter(lengths.values())), bool)
    for condition in conditions:
        if condition.column not in columns:
            raise UserError(f"there is no column '{condition.column}': allowed are {', '.join(columns)}")
        kept &= [meets(value, condition, row) for row, value in enumerate(columns[condition.column])]
    return np.flatnonzero(kept)


def meets(value: Any, condition: Condition, row: int) -> bool:
    """Whether one value meets the condition. UserError where text would be put in order with numbers."""
    if value is None or (isinstance(value, float | np.floating) and math.isnan(value)):
        return False
    try:
        return bool(OPERATORS[condition.relation](value, condition.value))
    except TypeError as error:
        raise UserError(
            f"column '{condition.column}' of row {row} is {value!r}, which has no order with {condition.value!r}: compare "
            "numbers with numbers and text with text"
        ) from error


def weighted_choice(
    embeddings: Float[np.ndarray, "n d"],
    budget: int,
    *,
    already: Sequence[int] = (),
    generator: torch.Generator,
    weights: Float[np.ndarray, " w"],
) -> Choice:
    """`budget` new rows drawn one after another without replacement, with chances proportional to `weights` ≥ 0.

    Gains are the weights; a row of weight 0 is never drawn. All at once, as the rows of the largest log weight + Gumbel
    noise (Efraimidis & Spirakis 2006 in logarithms).
    """
    known = check_request(len(embeddings), budget, already)
    wide = check_values("weights", weights, len(embeddings), 0.0)
    possible = int((wide[remaining(len(wide), known)] > 0).sum())
    if budget > possible:
        raise UserError(f"got budget {budget}, allowed is 1 to {possible}: no more new rows have a weight above 0")
    waiting = torch.empty(len(wide), dtype=torch.double).exponential_(generator=generator).clamp(min=1e-300).numpy()
    with np.errstate(divide="ignore"):  # of weight 0
        indices = best(np.log(wide) - np.log(waiting), budget, known)
    return Choice(indices, wide[indices], [f"drawn by weight {wide[index]:.4g}" for index in indices])


def balanced_choice(
    embeddings: Float[np.ndarray, "n d"],
    budget: int,
    *,
    already: Sequence[int] = (),
    generator: torch.Generator,
    groups: Sequence[Hashable],
    shares: Mapping[Any, float],
    worth: Float[np.ndarray, " w"] | None = None,
) -> Choice:
    """`budget` new rows such that, with those in `already`, each group comes near its share of all chosen ones.

    Again and again a row of the group that is farthest below share × (chosen + 1), by how many rows is the gain; of
    equals the group named first in `shares`, which sum to 1. Within a group rows come by falling `worth`, or as drawn.
    An exhausted group leaves its places to the others; groups with share 0 or none are never chosen from.
    """
    known = check_request(len(embeddings), budget, already)
    check_shares(groups, shares, len(embeddings))
    if worth is None:
        order = torch.randperm(len(groups), generator=generator).numpy()
    else:
        order = np.argsort(-check_values("worth", worth, len(groups)), kind="stable")
    taken, counts = set(known), {group: sum(groups[index] == group for index in known) for group in shares}
    queues: dict[Any, list[int]] = {group: [] for group, share in shares.items() if share > 0}
    for index in reversed(order.tolist()):
        if index not in taken and groups[index] in queues:
            queues[groups[index]].append(index)
    available = sum(map(len, queues.values()))
    if budget > available:
        raise UserError(
            f"got budget {budget}, allowed is 1 to {available}: no more new rows are in groups with a share"
        )
    choice = Choice(np.empty(budget, np.int64), np.empty(budget), [])
    for number in range(budget):
        total = len(known) + number + 1
        group = max((name for name in queues if queues[name]), key=lambda name: shares[name] * total - counts[name])
        choice.indices[number] = queues[group].pop()
        choice.gains[number] = shares[group] * total - counts[group]
        counts[group] += 1
        choice.why.append(f"{group}: {counts[group]} of {total}, wanted {shares[group]:.1%}")
    return choice


def check_shares(groups: Sequence[Hashable], shares: Mapping[Any, float], count: int) -> None:
    """UserError unless there is a group a row, and the shares are of known groups, at least 0, and sum to 1."""
    if len(groups) != count:
        raise UserError(f"got {len(groups)} groups for {count} rows, allowed is one a row")
    present = set(groups)
    for group, share in shares.items():
        if group not in present:
            known = ", ".join(sorted(map(str, present))[:20])
            raise UserError(f"there is no row of group '{group}': allowed are {known}")
        if not 0 <= share <= 1:
            raise UserError(f"the share of group '{group}' is {share}, allowed is 0 to 1")
    if abs(sum(shares.values()) - 1) > 1e-6:
        raise UserError(
            f"the shares sum to {sum(shares.values()):.6g}, allowed is 1: give each group's part of the whole"
        )
