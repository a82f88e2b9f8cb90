"""The epochs of heads that train in seconds: figures of each, the best by the loss on what is held out, and an early end."""

import copy
import math
import time
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from tqdm import tqdm

from mmrlhf.errors import UserError

Report = Callable[[dict[str, Any]], None]


def train_epochs(
    head: nn.Module,
    epochs: int,
    patience: int,
    one_epoch: Callable[[], float],
    held_out: Callable[[], dict[str, float]] | None,
    *,
    name: str,
    shown: tuple[str, str],
    option: str,
    told: dict[str, Any],
    progress: bool,
    on_epoch: Report | None,
) -> None:
    """Train `head` in place by `one_epoch`, which gives the mean loss, until `patience` epochs after the best one, which is kept.

    The best has the lowest `held_out_loss` of the figures of `held_out`; without these all epochs are made and the last is kept.
    The bar called `name` shows one of them (`shown`: its label and key). `on_epoch` gets them all, with `told` beside them.
    UserError, which says to lower `option`, where the loss is no longer a number.
    """
    best: tuple[float, int, dict[str, Tensor]] | None = None
    bar = tqdm(range(epochs), desc=name, unit="epoch", disable=not progress)
    for epoch in bar:
        started = time.monotonic()
        loss = one_epoch()
        if not math.isfinite(loss):
            raise UserError(f"the loss is no longer a number in epoch {epoch}: lower {option}")
        line: dict[str, Any] = {"epoch": epoch, "loss": loss} | told
        if held_out is not None:
            line |= held_out()
            # the loss is finer than an agreement, which few judgements bring to its maximum by chance
            if best is None or line["held_out_loss"] < best[0]:
                best = line["held_out_loss"], epoch, copy.deepcopy(head.state_dict())
            label, key = shown
            bar.set_postfix({label: f"{line[key]:.3f}"})
        if on_epoch is not None:
            on_epoch(line | {"seconds": time.monotonic() - started})
        if best is not None and epoch - best[1] >= patience:
            break
    bar.close()
    if best is not None:
        head.load_state_dict(best[2])
