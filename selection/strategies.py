"""Every selection strategy by name; each takes (embeddings, budget, *, already, generator) and gives a `Choice`."""

from collections.abc import Callable
from typing import Literal

from selection.badge import badge
from selection.choice import Choice
from selection.d_optimal import d_optimal
from selection.deduplicate import deduplicate
from selection.density import information_density
from selection.dpp import dpp
from selection.facility_location import facility_location
from selection.kcenter import kcenter
from selection.kmeans_plus_plus import kmeans_plus_plus
from selection.random_choice import random_choice
from selection.recipe import Diversity, Similarity, Strategy, Uncertainty
from selection.similarity import most_similar
from selection.typicality import typicality_choice
from selection.uncertainty import MeasureName, most_uncertain
from selection.v_optimal import v_optimal

StrategyName = Literal[
    "kcenter", "facility-location", "typicality", "kmeans++", "dpp", "deduplicate", "density", "similarity", "uncertainty",
    "badge", "d-optimal", "v-optimal", "random",
]  # fmt: skip

STRATEGIES: dict[str, Callable[..., Choice]] = {
    "kcenter": kcenter,  # covers the rare as well as the common
    "facility-location": facility_location,  # stands for the many
    "typicality": typicality_choice,  # small budgets
    "kmeans++": kmeans_plus_plus,  # between kcenter and random: far, but not only outliers
    "dpp": dpp,  # the largest volume: no two alike
    "deduplicate": deduplicate,  # the first of each kind
    "density": information_density,  # like many others; with --predictions, and uncertain
    "similarity": most_similar,  # like --query
    "uncertainty": most_uncertain,  # what the members of --predictions are unsure of
    "badge": badge,  # rows are pairs' differences: unsure by the mean prediction, and diverse
    "d-optimal": d_optimal,  # rows are pairs' differences: narrows a linear head down
    "v-optimal": v_optimal,  # the same, by what an answer tells of all the other pairs
    "random": random_choice,
}
TAKES_QUERY = ("similarity",)
NEEDS_PREDICTIONS = ("uncertainty", "badge")
TAKES_PREDICTIONS = (*NEEDS_PREDICTIONS, "density", "d-optimal", "v-optimal")


def as_recipe(name: str, measure: MeasureName) -> tuple[Strategy, ...] | None:
    """The combination that makes the same picks as a strategy, to which limits can be added; None where there is none."""
    recipes: dict[str, tuple[Strategy, ...]] = {
        "kcenter": (Diversity(),),
        "similarity": (Similarity(),),
        "uncertainty": (Uncertainty(measure),),
        "random": (),
    }
    return recipes.get(name)
