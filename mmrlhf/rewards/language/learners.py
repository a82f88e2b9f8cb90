"""What learns and how rows are scored meanwhile: a head on features read once, or the backbone at every step."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm import tqdm

from mmrlhf import distributed
from mmrlhf.rewards.language.comparisons import Comparisons
from mmrlhf.rewards.language.inputs import Row
from mmrlhf.rewards.language.model import LanguageReward
from mmrlhf.rewards.language.tuning import checkpoint_gradients, choose_weights
from mmrlhf.rewards.training.tuning import merge


class Learner(NamedTuple):
    """What learns; the scores "r k" of the rows of those numbers, with gradients; what to do at the end.

    `shared`: each process read a part of the rows, so that gradients are to be summed over them.
    """

    module: nn.Module
    score_rows: Callable[[Tensor], Tensor]
    finish: Callable[[], None]
    shared: bool


def head_learner(reward: LanguageReward, everything: Comparisons, count: int, bf16: bool, progress: bool) -> Learner:
    """The backbone reads each row once; the head learns from the table, on the CPU.

    It learns in features of unit spread over the training rows, where one learning rate suits all: few directions of a last
    layer hold nearly all of its spread. Its weights are divided by it at the end, so that it reads plain features.
    """
    network = reward.network
    table = read_features(reward, everything.rows, bf16, progress)
    spread = table[everything.compared[:count].unique()].std(dim=0, correction=0)
    spread = spread.clamp(min=float(spread.mean()) * 1e-3 or 1.0)
    head = copy.deepcopy(network.head).cpu().requires_grad_(True)
    with torch.no_grad():
        head.weight.mul_(spread)
        table = table / spread

    def finish() -> None:
        with torch.no_grad():
            network.head.weight.copy_(head.weight / spread)
            if head.bias is not None:
                network.head.bias.copy_(head.bias)
        network.requires_grad_(False)

    return Learner(head, lambda numbers: head(table[numbers]), finish, shared=False)


@torch.no_grad()
def read_features(
    reward: LanguageReward, rows: Sequence[Row], bf16: bool, progress: bool, batch_size: int = 16
) -> Float[Tensor, "r d"]:
    """What the head sees of each row, on the CPU in float32; rows of like length are read together."""
    network = reward.network
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].prompt) + len(rows[i].answer or ""))
    found: list[Tensor] = []
    with tqdm(total=len(rows), desc="read", unit="row", disable=not progress) as bar:
        for batch in torch.tensor(order).split(batch_size * distributed.size()):
            chosen = [rows[i] for i in batch.tolist()]
            found.append(read(reward, chosen, lambda inputs: network.features(inputs, bf16=bf16)).cpu())
            bar.update(len(batch))
    return torch.cat(found)[torch.tensor(order).argsort()]


def network_learner(
    reward: LanguageReward, rows: Sequence[Row], bf16: bool, gradient_checkpointing: bool, *, tune: str, **how: Any
) -> Learner:
    """Weights of the backbone learn too, so that rows are read at every step."""
    network = reward.network
    choose_weights(network, tune, **how)
    end_checkpointing = checkpoint_gradients(network.backbone) if gradient_checkpointing else None

    def score_rows(numbers: Int[Tensor, " r"]) -> Float[Tensor, "r k"]:
        return read(reward, [rows[i] for i in numbers.tolist()], lambda inputs: network(inputs, bf16=bf16))

    def finish() -> None:
        if end_checkpointing is not None:
            end_checkpointing()
        if tune == "lora":
            merge(network.backbone)
        network.requires_grad_(False)

    return Learner(network, score_rows, finish, shared=True)


def read(
    reward: LanguageReward, rows: Sequence[Row], compute: Callable[[Mapping[str, Tensor]], Tensor]
) -> Float[Tensor, "r p"]:
    """What `compute` makes of rows that fit or can be cut; each process reads its part of them and gets all."""
    own, _ = reward.reader.fitted([rows[i] for i in distributed.own_part(len(rows))] or rows[:1])
    found = compute(
        reward.reader.encode(own)
    )  # a process without a row reads one too: all take part in the backward pass
    return distributed.gather(found[: len(distributed.own_part(len(rows)))], len(rows))
