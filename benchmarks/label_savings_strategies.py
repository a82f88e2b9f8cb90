"""The ways to choose pairs that `label_savings` compares, on a Bradley-Terry head fitted to the ratings so far."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from selection.badge import badge
from selection.bradley_terry import Head, draw_margins, fit_at, fit_head, ridge_of
from selection.choice import draw, remaining
from selection.d_optimal import d_optimal
from selection.kcenter import kcenter
from selection.pairs import choose_pairs
from selection.typicality import typicality_choice
from selection.uncertainty import MeasureName, bald, most_uncertain
from selection.v_optimal import v_optimal

MEMBERS = 16


class Asked(NamedTuple):
    """What a strategy knows: the pool's differences, the pairs asked and their answers, the head fitted to them (or None)."""

    z: Float[np.ndarray, "n d"]
    taken: list[int]
    answers: Float[np.ndarray, " k"]
    head: Head | None
    generator: torch.Generator

    @property
    def common(self) -> dict[str, Any]:
        """What every selector takes."""
        return {"already": self.taken, "generator": self.generator}


def fit(parts: Sequence[Float[np.ndarray, "k d"]], answers: Float[np.ndarray, " k"]) -> tuple[int, Head]:
    """(whitening, head) of the largest evidence: like the prior, the scale of the features is chosen on the ratings alone."""
    heads = [fit_head(z, answers) for z in parts]
    best = int(np.argmax([head.evidence for head in heads]))
    return best, heads[best]


def posterior(asked: Asked) -> Float[np.ndarray, "m n"]:
    """Margins of every pair by heads drawn from what the answers leave possible."""
    assert asked.head is not None
    return draw_margins(asked.head, asked.z, MEMBERS, asked.generator)


def bootstrapped(asked: Asked) -> Float[np.ndarray, "m n"]:
    """The same by heads fitted to ratings drawn again with replacement."""
    assert asked.head is not None
    margins, count = [], len(asked.taken)
    for _ in range(MEMBERS):
        again = torch.randint(count, (count,), generator=asked.generator).numpy()
        head = fit_at(asked.z[asked.taken][again], asked.answers[again], asked.head.precision)
        margins.append(asked.z @ head.weights)
    return np.array(margins)


def at_random(asked: Asked, budget: int) -> list[int]:
    """The baseline, and how strategies that need a head begin."""
    return draw(remaining(len(asked.z), asked.taken), budget, asked.generator).tolist()


def uncertain(
    asked: Asked,
    budget: int,
    *,
    measure: MeasureName,
    ensemble: Callable[[Asked], Float[np.ndarray, "m n"]] = posterior,
) -> list[int]:
    """The most uncertain pairs of an ensemble, each ranked alone."""
    if asked.head is None:
        return at_random(asked, budget)
    choice = most_uncertain(asked.z, budget, **asked.common, margins=ensemble(asked), measure=measure)
    return choice.indices.tolist()


def by_gradients(asked: Asked, budget: int) -> list[int]:
    """BADGE."""
    if asked.head is None:
        return at_random(asked, budget)
    return badge(asked.z, budget, **asked.common, margins=asked.z @ asked.head.weights).indices.tolist()


def far(asked: Asked, budget: int, *, unsure: bool, earlier: bool) -> list[int]:
    """Distance to the pairs of the batch, and to the `earlier` ones; times BALD, where `unsure` and there is a head."""
    free = remaining(len(asked.z), asked.taken)
    scores = bald(torch.from_numpy(posterior(asked)[:, free])) if unsure and asked.head is not None else None
    choice = choose_pairs(
        torch.from_numpy(asked.z[free]), scores, budget, per_prompt_cap=budget, generator=asked.generator,
        prompt_ids=torch.zeros(len(free), dtype=torch.long), asked=torch.from_numpy(asked.z[asked.taken]) if earlier else None,
    )  # fmt: skip
    return free[choice.indices].tolist()


def by_design(asked: Asked, budget: int, *, design: Callable[..., Any]) -> list[int]:
    """D- or V-optimal, with the prior of the head itself."""
    if asked.head is None:
        return design(asked.z, budget, **asked.common).indices.tolist()
    margins, ridge = asked.z @ asked.head.weights, ridge_of(asked.head, asked.z)
    return design(asked.z, budget, **asked.common, margins=margins, ridge=ridge).indices.tolist()


def unseen(asked: Asked, budget: int, *, design: Callable[..., Any]) -> list[int]:
    """D- or V-optimal for a head that knows nothing: what can be done before there are answers."""
    return design(asked.z, budget, **asked.common).indices.tolist()


STRATEGIES: dict[str, Callable[[Asked, int], list[int]]] = {
    "random": at_random,
    "k-center": lambda asked, budget: kcenter(asked.z, budget, **asked.common).indices.tolist(),
    "typicality": lambda asked, budget: typicality_choice(asked.z, budget, **asked.common).indices.tolist(),
    "margin": partial(uncertain, measure="margin"),
    "disagreement": partial(uncertain, measure="disagreement"),
    "BALD": partial(uncertain, measure="bald"),
    "BALD, bootstrap": partial(uncertain, measure="bald", ensemble=bootstrapped),
    "BADGE": by_gradients,
    "BALD × distance": partial(far, unsure=True, earlier=False),
    "D-optimal": partial(by_design, design=d_optimal),
    "V-optimal": partial(by_design, design=v_optimal),
}
MORE: dict[str, Callable[[Asked, int], list[int]]] = {  # asked about in some sources only
    "distance": partial(far, unsure=False, earlier=True),
    "D-optimal, answers unseen": partial(unseen, design=d_optimal),
    "V-optimal, answers unseen": partial(unseen, design=v_optimal),
}
