"""Several strategies at once: greedily the candidate of the highest weighted sum of gains among those that the limits allow."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from tqdm import tqdm

from mmrlhf.errors import UserError
from selection.candidates import Known, candidates, check_quotas, groups_of, term_of
from selection.choice import check_request
from selection.groups import Limit, Quota
from selection.recipe import PerGroup, Strategy, Threshold
from selection.rows import Rows
from selection.terms import Far, Term


class Combination(NamedTuple):
    """A `Choice`, and by which strategy each row stood out the most from the other candidates."""

    indices: Int[np.ndarray, " k"]
    gains: Float64[np.ndarray, " k"]
    why: list[str]
    strategies: list[str]


def combine(
    embeddings: Float[np.ndarray, "n d"],
    budget: int,
    strategies: Sequence[Strategy],
    *,
    already: Sequence[int] = (),
    generator: torch.Generator,
    columns: Mapping[str, Sequence[Any]] | None = None,
    margins: Float[np.ndarray, "m n"] | None = None,
    embed: Callable[[Sequence[str]], Float[np.ndarray, "q d"]] | None = None,
) -> Combination:
    """`budget` new rows, each of the highest Σ strength × gain when it is picked, which is the gain given back.

    Thresholds leave the candidates. Every gain is in [0, 1] over them: diversity is the distance to the nearest chosen
    row over the largest that a candidate has then, balance how many rows the group is short of its share (0 to 1), the
    others do not change with the picks. Of equals `generator` draws one; without any preference, all are equal. Rows in
    `already` count as chosen. `columns` hold a value a row, `margins` an ensemble's for Uncertainty, and `embed` turns the
    queries of Similarity into embeddings. One pass over the rows a pick with diversity, else a few numbers a row.
    UserError where thresholds and limits leave too few rows.
    """
    known = check_request(len(embeddings), budget, already)
    rows = Rows(embeddings)
    facts = Known(columns or {}, margins, embed)
    pool = candidates(len(rows), strategies, known, facts)
    if budget > len(pool):
        raise UserError(
            f"got budget {budget}, allowed is 1 to {len(pool)}: no more new rows meet the thresholds; loosen them"
        )
    terms = [
        term_of(strategy, rows, pool, facts)
        for strategy in strategies
        if not isinstance(strategy, Threshold | PerGroup)
    ]
    quotas = [
        Quota(groups_of(facts, strategy.column, len(rows)), strategy, pool)
        for strategy in strategies
        if isinstance(strategy, PerGroup)
    ]
    limits: list[Limit] = [*quotas, *(term for term in terms if isinstance(term, Far) and term.least > 0)]
    for index in known:
        take(index, terms, quotas)
    check_quotas(quotas, budget)
    return greedy(pool, budget, terms, quotas, limits, generator)


def greedy(
    pool: Int[np.ndarray, " p"],
    budget: int,
    terms: Sequence[Term],
    quotas: Sequence[Quota],
    limits: Sequence[Limit],
    generator: torch.Generator,
) -> Combination:
    """The loop of `combine`, from everything that was made ready."""
    indices: list[int] = []
    gains: list[float] = []
    why: list[str] = []
    strategies: list[str] = []
    for number in tqdm(range(budget), desc="selection", disable=None, delay=2):
        allowed = np.ones(len(pool), bool)
        for limit in limits:
            allowed &= limit.allows(budget - number)[pool]
        free = pool[allowed]
        if len(free) == 0:
            raise UserError(
                f"only {number} of {budget} rows could be chosen: the limits a group and the minimum distance leave no "
                "candidate; loosen them or lower the budget"
            )
        parts = np.array([term.strength * term.gains(free) for term in terms]).reshape(len(terms), len(free))
        total = parts.sum(axis=0)
        equals = np.flatnonzero(total == total.max())
        at = int(equals[int(torch.randint(len(equals), (1,), generator=generator))] if len(equals) > 1 else equals[0])
        index = int(free[at])
        indices.append(index)
        gains.append(float(total[at]))
        order = np.argsort(-(parts[:, at] - parts.mean(axis=1)), kind="stable")
        strategies.append(terms[order[0]].name if terms else "random")
        told = [f"{terms[i].name} {parts[i, at]:.2f} ({terms[i].detail(index)})" for i in order]
        why.append(
            "; ".join([*told, f"drawn from {len(equals)} equal rows"] if len(equals) > 1 else told)
            or "the last one left"
        )
        take(index, terms, quotas)
        pool = pool[pool != index]
    return Combination(np.array(indices), np.array(gains), why, strategies)


def take(index: int, terms: Sequence[Term], quotas: Sequence[Quota]) -> None:
    """Tell every preference and rule of a chosen row."""
    for term in terms:
        term.take(index)
    for quota in quotas:
        quota.take(index)
