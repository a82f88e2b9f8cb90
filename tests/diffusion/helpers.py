"""What the tests of all trainers need."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch


class Brightness:
    """Mean of all pixels; `change(score, calls)` may spoil it."""

    differentiable = True

    def __init__(self, change: Callable[[torch.Tensor, int], torch.Tensor] | None = None) -> None:
        self.change, self.calls = change, 0

    def __call__(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        self.calls += 1
        score = images.mean(dim=(1, 2, 3))
        return score if self.change is None else self.change(score, self.calls)


def timeless(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Metrics without the one that no two runs share."""
    return [{key: value for key, value in line.items() if key != "seconds"} for line in metrics]


def trained_weights(out: Path) -> dict[str, torch.Tensor]:
    """Those in the checkpoint."""
    return torch.load(out / "checkpoint.pt", weights_only=True)["policy"]
