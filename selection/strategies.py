"""Every selection strategy by name; each takes (embeddings, budget, *, already, generator) and gives a `Choice`."""

from collections.abc import Callable
from typing import Literal

from selection.choice import Choice
from selection.facility_location import facility_location
from selection.kcenter import kcenter
from selection.random_choice import random_choice
from selection.typicality import typicality_choice

StrategyName = Literal["kcenter", "facility-location", "typicality", "random"]

STRATEGIES: dict[str, Callable[..., Choice]] = {
    "kcenter": kcenter,  # covers the rare as well as the common
    "facility-location": facility_location,  # stands for the many
    "typicality": typicality_choice,  # small budgets
    "random": random_choice,
}
