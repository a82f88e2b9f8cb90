"""Making a combination ready: which rows may be chosen, what is preferred among them, and by what limits."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int

from mmrlhf.errors import UserError
from selection.choice import remaining
from selection.groups import Groups, Quota, Short
from selection.metadata import keep, parse_condition
from selection.ranking import check_values
from selection.recipe import Balance, Diversity, Similarity, Strategy, Threshold, Typicality, Uncertainty, Weights
from selection.rows import Rows
from selection.similarity import nearest_query, unit_queries
from selection.terms import Far, Fixed, Term, density
from selection.uncertainty import MEASURES, check_margins


class Known(NamedTuple):
    """What is known of the rows beside their embeddings."""

    columns: Mapping[str, Sequence[Any]]
    margins: Float[np.ndarray, "m n"] | None
    embed: Callable[[Sequence[str]], Float[np.ndarray, "q d"]] | None


def candidates(count: int, strategies: Sequence[Strategy], known: Sequence[int], facts: Known) -> Int[np.ndarray, " p"]:
    """Rows that are new and meet every threshold, ascending."""
    conditions = [parse_condition(strategy.condition) for strategy in strategies if isinstance(strategy, Threshold)]
    free = remaining(count, known)
    if not conditions:
        return free
    named = {condition.column: column(facts, condition.column, count) for condition in conditions}
    return np.intersect1d(free, keep(named, conditions))


def term_of(strategy: Strategy, rows: Rows, pool: Int[np.ndarray, " p"], facts: Known) -> Term:
    """A preference made ready for the candidates."""
    if isinstance(strategy, Diversity):
        return Far(rows, strategy)
    if isinstance(strategy, Balance):
        return Short(groups_of(facts, strategy.column, len(rows)), strategy, pool)
    if isinstance(strategy, Typicality):
        return Fixed("typicality", "density", strategy.strength, density(rows, strategy.neighbours), pool, "rank")
    if isinstance(strategy, Weights):
        values = numbers(column(facts, strategy.column, len(rows)), strategy.column, pool)
        return Fixed(f"weights of {strategy.column}", strategy.column, strategy.strength, values, pool, strategy.scale)
    if isinstance(strategy, Similarity):
        if facts.embed is None:
            raise UserError("similarity got nothing to embed its queries with: give embed, or --query")
        queries = unit_queries(facts.embed(strategy.query), rows.dim)
        cosine = nearest_query(Rows(rows.source, unit=True), queries)[0]
        return Fixed("similarity", "cosine", strategy.strength, cosine, pool)
    assert isinstance(strategy, Uncertainty)
    if facts.margins is None:
        raise UserError("uncertainty got no predictions: give --predictions FILE.npy, a row a member, a column a row")
    check_margins(facts.margins, len(rows), strategy.measure)
    scores = MEASURES[strategy.measure](torch.from_numpy(facts.margins.astype(np.float64))).numpy()
    return Fixed("uncertainty", strategy.measure, strategy.strength, scores, pool)


def column(facts: Known, name: str, count: int) -> Sequence[Any]:
    """A column of the metadata. UserError where it is missing or has another length."""
    if name not in facts.columns:
        allowed = ", ".join(facts.columns) or "none, as there is no metadata: give --metadata FILE"
        raise UserError(f"there is no column '{name}': allowed are {allowed}")
    values = facts.columns[name]
    if len(values) != count:
        raise UserError(f"column '{name}' has {len(values)} values for {count} rows, allowed is one a row")
    return values


def numbers(values: Sequence[Any], name: str, pool: Int[np.ndarray, " p"]) -> Float64[np.ndarray, " n"]:
    """A column as numbers, of which those of the candidates must be finite; the others may be missing."""
    result = np.zeros(len(values))
    for index in pool.tolist():
        value = values[index]
        if not isinstance(value, bool | int | float | np.number):
            raise UserError(
                f"column '{name}' of row {index} is {value!r:.60}, allowed is a number: set a threshold, or fill it in"
            )
        result[index] = value
    return check_values(f"column '{name}'", result, len(values))


def groups_of(facts: Known, name: str, count: int) -> Groups:
    """A column as groups. UserError for a row without a group."""
    values = column(facts, name, count)
    for index, value in enumerate(values):
        if value is None or value == "" or value != value or isinstance(value, list | dict):
            raise UserError(
                f"column '{name}' of row {index} is {value!r:.60}, which is no group: fill in a text or a number"
            )
    return Groups(name, values)


def check_quotas(quotas: Sequence[Quota], budget: int) -> None:
    """UserError where the limits a group cannot all be kept with this budget."""
    for quota in quotas:
        name = quota.groups.column
        if budget > quota.open():
            raise UserError(
                f"got budget {budget}, allowed is 1 to {quota.open()}: at most {quota.most} a group of {name} leave no more rows"
            )
        if quota.owed().sum() > budget:
            raise UserError(
                f"got budget {budget}, allowed is {quota.owed().sum()} or more: {(quota.owed() > 0).sum()} groups of {name} must "
                f"have {quota.asked.least}"
            )
    if sum(quota.asked.least > 0 for quota in quotas) > 1:
        raise UserError("got several columns with a least a group, allowed is one: keep the one that matters most")
