"""Figures of single batches on their way to those of an epoch."""

from collections.abc import Sequence

import torch

from mmrlhf.distributed import extremes, gather_objects, total


class Figures:
    """Figures of single batches, to be averaged over samples, and over processes."""

    def __init__(self) -> None:
        self.samples = 0
        self.sums: dict[str, float] = {}
        self.lowest, self.highest = float("inf"), float("-inf")

    def add(self, samples: int, figures: dict[str, float]) -> None:
        """Those of a batch of so many samples."""
        self.samples += samples
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + samples * value
        self.lowest = min(self.lowest, figures.get("ratio_min", self.lowest))
        self.highest = max(self.highest, figures.get("ratio_max", self.highest))

    def means(self) -> dict[str, float]:
        """The mean of each; of `ratio_min` and `ratio_max` the extremes."""
        names = sorted({name for seen in gather_objects(list(self.sums)) for name in seen})  # one may have seen no rows
        own = [self.samples, *(self.sums.get(name, 0.0) for name in names)]
        sums = total(torch.tensor(own, dtype=torch.float64)).tolist()
        means = {name: value / sums[0] for name, value in zip(names, sums[1:], strict=True)}
        if "ratio_min" in means:
            means["ratio_min"], means["ratio_max"] = extremes(self.lowest, self.highest)
        return means

    def of_epoch(self, norms: Sequence[float]) -> dict[str, float]:
        """`means`, and how large the gradients of its updates were; `norms` of at least one."""
        return self.means() | {"grad_norm": sum(norms) / len(norms), "updates": len(norms)}
