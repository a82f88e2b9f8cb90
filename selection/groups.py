"""Groups of rows in a combination: their shares of the chosen rows, and how many each may and must give."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float64, Int

from mmrlhf.errors import UserError
from selection.recipe import Balance, PerGroup, label


@runtime_checkable
class Limit(Protocol):
    """A rule that candidates must keep to, given how many picks are left."""

    def allows(self, left: int) -> Bool[np.ndarray, " n"]: ...

    def take(self, index: int) -> None: ...


class Groups:
    """The group of each row by number, and how many rows are chosen of each."""

    def __init__(self, column: str, values: Sequence[Any]):
        self.column, self.names = column, list(dict.fromkeys(label(value) for value in values))
        number_of = {name: number for number, name in enumerate(self.names)}
        self.of = np.array([number_of[label(value)] for value in values], dtype=np.int64)
        self.counts = np.zeros(len(self.names), np.int64)

    def sizes(self, pool: Int[np.ndarray, " p"]) -> Int[np.ndarray, " g"]:
        """How many rows of `pool` each group has."""
        return np.bincount(self.of[pool], minlength=len(self.names))

    def take(self, index: int) -> None:
        self.counts[self.of[index]] += 1

    def name(self, index: int) -> str:
        return self.names[self.of[index]]


class Short:
    """How many rows, 0 to 1, a row's group would be short of its share of the chosen ones, if it were not picked now."""

    def __init__(self, groups: Groups, asked: Balance, pool: Int[np.ndarray, " p"]):
        self.name, self.strength, self.groups = f"balance of {asked.column}", asked.strength, groups
        sizes = groups.sizes(pool)
        shares = asked.shares or {
            name: 1 / int((sizes > 0).sum()) for name, size in zip(groups.names, sizes, strict=True) if size
        }
        for name in shares:
            if name not in groups.names or (shares[name] > 0 and not sizes[groups.names.index(name)]):
                known = ", ".join(sorted(name for name, size in zip(groups.names, sizes, strict=True) if size)[:20])
                raise UserError(
                    f"the group '{name}' of column {asked.column} has no row to choose, allowed are {known}: correct its share"
                )
        self.part = np.array([list(shares).index(name) if name in shares else len(shares) for name in groups.names])
        self.shares = np.array([*shares.values(), max(0.0, 1 - sum(shares.values()))])

    def shortfall(self) -> Float64[np.ndarray, " g"]:
        """Of each group."""
        counts = np.bincount(self.part, self.groups.counts, minlength=len(self.shares))
        return np.clip(self.shares * (counts.sum() + 1) - counts, 0, 1)[self.part]

    def gains(self, pool: Int[np.ndarray, " p"]) -> Float64[np.ndarray, " p"]:
        return self.shortfall()[self.groups.of[pool]]

    def take(self, index: int) -> None:
        self.groups.take(index)

    def detail(self, index: int) -> str:
        part = self.part[self.groups.of[index]]
        chosen = int(self.groups.counts[self.part == part].sum())
        return (
            f"{self.groups.name(index)}: {chosen} of {self.groups.counts.sum()} before, wanted {self.shares[part]:.1%}"
        )


class Quota:
    """At most and at least so many rows a group, those chosen earlier among them."""

    def __init__(self, groups: Groups, asked: PerGroup, pool: Int[np.ndarray, " p"]):
        self.groups, self.asked, self.most = groups, asked, asked.most
        self.available = groups.sizes(pool)
        self.pool = set(pool.tolist())

    def open(self) -> int:
        """How many of the candidates the rule lets in at most."""
        return int(self.available.sum() if self.most is None else np.minimum(self.room(), self.available).sum())

    def room(self) -> Int[np.ndarray, " g"]:
        """How many more rows each group may give."""
        return np.maximum((np.iinfo(np.int64).max if self.most is None else self.most) - self.groups.counts, 0)

    def owed(self) -> Int[np.ndarray, " g"]:
        """How many more rows each group must give."""
        return np.clip(self.asked.least - self.groups.counts, 0, self.available)

    def allows(self, left: int) -> Bool[np.ndarray, " n"]:
        owed = self.owed()
        allowed = self.room() > 0 if owed.sum() < left else owed > 0
        return allowed[self.groups.of]

    def take(self, index: int) -> None:
        self.groups.take(index)
        self.available[self.groups.of[index]] -= index in self.pool  # one chosen earlier was none of the candidates
