"""What a combination of strategies is made of: what to prefer, what to keep out, what to balance."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mmrlhf.errors import UserError
from selection.metadata import parse_condition
from selection.uncertainty import MEASURES, MeasureName


@dataclass(frozen=True)
class Diversity:
    """Prefer rows far from everything chosen before; those nearer than `minimum_distance` to a chosen one are never chosen."""

    strength: float = 1.0
    minimum_distance: float = 0.0

    def __post_init__(self) -> None:
        check_strength(self)
        if not 0 <= self.minimum_distance < math.inf:
            raise UserError(f"diversity: minimum_distance got {self.minimum_distance}, allowed is 0 or more")


@dataclass(frozen=True)
class Typicality:
    """Prefer rows in dense places: 1 / mean distance to the `neighbours` nearest rows (Hacohen et al. 2022), by rank."""

    strength: float = 1.0
    neighbours: int = 20

    def __post_init__(self) -> None:
        check_strength(self)
        if self.neighbours < 1:
            raise UserError(f"typicality: neighbours got {self.neighbours}, allowed is 1 or more")


@dataclass(frozen=True)
class Similarity:
    """Prefer rows like any of the queries: images, texts or a .npy of embeddings; without any, those of `--query`."""

    query: tuple[str, ...] = ()
    strength: float = 1.0

    def __post_init__(self) -> None:
        check_strength(self)


@dataclass(frozen=True)
class Weights:
    """Prefer large numbers of a column: by where they lie between the smallest and the largest, or by their rank."""

    column: str
    strength: float = 1.0
    scale: Literal["range", "rank"] = "range"

    def __post_init__(self) -> None:
        check_strength(self)
        if self.scale not in ("range", "rank"):
            raise UserError(f"weights: scale got '{self.scale}', allowed are range and rank")


@dataclass(frozen=True)
class Uncertainty:
    """Prefer rows that the members of `--predictions` are unsure of."""

    measure: MeasureName = "bald"
    strength: float = 1.0

    def __post_init__(self) -> None:
        check_strength(self)
        if self.measure not in MEASURES:
            raise UserError(f"uncertainty: measure got '{self.measure}', allowed are {', '.join(MEASURES)}")


@dataclass(frozen=True)
class Balance:
    """Prefer groups that fall short of their share of the chosen rows; without shares, all groups have the same.

    Groups that are not named share what is left of 1 as if they were one.
    """

    column: str
    shares: Mapping[str, float] | None = None
    strength: float = 1.0

    def __post_init__(self) -> None:
        check_strength(self)
        for group, share in (self.shares or {}).items():
            if not 0 <= share <= 1:
                raise UserError(f"balance of {self.column}: the share of '{group}' is {share}, allowed is 0 to 1")
        if sum((self.shares or {}).values()) > 1 + 1e-6:
            total = sum((self.shares or {}).values())
            raise UserError(f"balance of {self.column}: the shares sum to {total:.6g}, allowed is at most 1")


@dataclass(frozen=True)
class Threshold:
    """Keep only rows that meet a condition such as 'sharpness >= 0.5' or 'source == web'."""

    condition: str

    def __post_init__(self) -> None:
        parse_condition(self.condition)


@dataclass(frozen=True)
class PerGroup:
    """Of each group of rows of equal `column`, choose at most `most` and at least `least` (or all that there are)."""

    column: str
    most: int | None = None
    least: int = 0

    def __post_init__(self) -> None:
        if self.most is None and self.least == 0:
            raise UserError(f"per-group of {self.column} sets no limit: give most, least or both")
        if (self.most is not None and self.most < 1) or not 0 <= self.least <= (self.most or self.least):
            raise UserError(
                f"per-group of {self.column}: got most {self.most} and least {self.least}, allowed is a most of 1 or more, and a "
                "least of 0 to most"
            )


Strategy = Diversity | Typicality | Similarity | Weights | Uncertainty | Balance | Threshold | PerGroup

KINDS: dict[str, type[Any]] = {
    "diversity": Diversity,
    "typicality": Typicality,
    "similarity": Similarity,
    "weights": Weights,
    "uncertainty": Uncertainty,
    "balance": Balance,
    "threshold": Threshold,
    "per-group": PerGroup,
}


def check_strength(strategy: Any) -> None:
    """UserError for a strength that is no finite number, or 0."""
    if not math.isfinite(strategy.strength) or strategy.strength == 0:
        raise UserError(
            f"{kind_of(strategy)}: strength got {strategy.strength}, allowed is any number but 0: below 0 prefers the opposite"
        )


def kind_of(strategy: Strategy) -> str:
    """The name of a strategy in a recipe."""
    return next(name for name, kind in KINDS.items() if type(strategy) is kind)


def label(value: Any) -> str:
    """A group's name, alike from YAML, JSON, CSV and parquet: true, 3 (also for 3.0), or a text."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def plain(strategy: Strategy) -> dict[str, Any]:
    """A strategy as a recipe would write it, for a result."""
    values = dataclasses.asdict(strategy).items()
    return {"type": kind_of(strategy)} | {
        key: list(value) if isinstance(value, tuple) else value for key, value in values
    }
