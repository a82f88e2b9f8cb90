"""Learning rate and averaging as functions of the step, so that a resumed run needs no scheduler state."""

import math

import torch


def warmup_cosine(step: int, steps: int, warmup: float = 0.05) -> float:
    """Factor on the peak learning rate: linear over the first `warmup` of the run, then half a cosine to 0."""
    first = max(1, round(warmup * steps))
    if step < first:
        return (step + 1) / first
    return 0.5 * (1 + math.cos(math.pi * (step - first) / max(1, steps - first)))


def ema_decay(step: int) -> float:
    """How much an exponential moving average of the weights keeps at this step: less at first, to forget the start."""
    return min(0.998, (step + 1) / (step + 10))


def set_learning_rate(optimizer: torch.optim.Optimizer, peak: float, step: int, steps: int) -> None:
    """Give every parameter group the learning rate of this step."""
    for group in optimizer.param_groups:
        group["lr"] = peak * warmup_cosine(step, steps)
