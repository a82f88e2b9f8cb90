"""What each token is worth: ILQL's heads on the states of a vision-language model, and answers that follow them.

Two Q-functions over the vocabulary with slow copies, and V (Snell et al. 2022, section 5). Decoding shifts the model's logits by
β(Q − V), Q being the lesser of the copies'.
"""

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils import skip_init
from torch.utils.checkpoint import checkpoint

from mmrlhf.data import replacing
from mmrlhf.errors import UserError
from mmrlhf.implicit_q import approach, perturbed
from mmrlhf.rewards.language.inputs import Row
from vlm.policy import LOGITS_AT_ONCE, Answers, VisionLanguagePolicy

VALUES, WEIGHT = "values.safetensors", "value_weight"
PAIR = 2


class TokenValues(NamedTuple):
    """Of tokens that were drawn from some states: each Q of the token, and log Σ exp Q over the vocabulary; the lesser Q of the
    slow copies; V of the state."""

    q: Float[Tensor, "2 n"]
    log_sum_exp: Float[Tensor, "2 n"]
    target_q: Float[Tensor, " n"]
    values: Float[Tensor, " n"]


class ValueHeads(nn.Module):
    """Perceptrons of one hidden layer, twice as wide as the states, in float32; Q and V are 0 at the start."""

    def __init__(self, width: int, vocabulary: int, *, device: torch.device, generator: torch.Generator) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.q = nn.ModuleList(head_of(width, vocabulary, device, generator) for _ in range(PAIR))
        self.v = head_of(width, 1, device, generator)
        self.target = copy.deepcopy(self.q).requires_grad_(False)

    def of_tokens(self, states: Float[Tensor, "n d"], tokens: Int[Tensor, " n"]) -> TokenValues:
        """The values of tokens that were drawn from these states; Q over the vocabulary is never held for all of them."""
        states = states.float()
        parts = []
        size = max(1, LOGITS_AT_ONCE // self.vocabulary)
        for own, drawn in zip(states.split(size), tokens.split(size), strict=True):
            every = []
            for head in self.q:
                given = (head, own, drawn)
                kept = torch.is_grad_enabled()
                every.append(checkpoint(q_of_tokens, *given, use_reentrant=False) if kept else q_of_tokens(*given))
            with torch.no_grad():
                slow = torch.stack([q_of_tokens(head, own, drawn)[0] for head in self.target]).min(0).values
            parts.append((torch.stack(every, dim=1), slow))
        q, log_sum_exp = torch.cat([both for both, _ in parts], dim=-1)
        return TokenValues(q, log_sum_exp, torch.cat([slow for _, slow in parts]), self.v(states).squeeze(-1))

    @torch.no_grad()
    def of_vocabulary(self, states: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "n v"], Float[Tensor, " n"]]:
        """(the lesser Q of the slow copies of every token that could follow, V)."""
        states = states.float()
        return torch.stack([head(states) for head in self.target]).min(0).values, self.v(states).squeeze(-1)

    def follow(self, rate: float) -> None:
        """Move the slow copies a part of the way."""
        approach(self.target.parameters(), self.q.parameters(), rate)

    def save(self, folder: Path, weight: float) -> None:
        """Write what decoding needs, and how strongly it should be shifted; whole or not at all."""
        from safetensors.torch import save_file

        kept = {name: value.cpu().contiguous() for name, value in self.state_dict().items() if name[:2] != "q."}
        with replacing(folder / VALUES) as temporary:
            save_file(kept, temporary, metadata={WEIGHT: repr(weight)})

    @classmethod
    def load(cls, folder: Path, policy: VisionLanguagePolicy) -> tuple["ValueHeads", float]:
        """(the heads in a folder, for a policy; the weight that goes with them). The Q-functions are their slow copies.

        UserError where the file is broken, or is for another model.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(folder / VALUES, "pt") as file:
                weight = float((file.metadata() or {})[WEIGHT])
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
            heads = cls.fresh(policy, torch.Generator())
            twice = {name.replace("target.", "q.", 1): value for name, value in state.items() if name[:2] != "v."}
            heads.load_state_dict(state | twice)
        except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
            reason = str(error).strip().split("\n")[0][:200]
            raise UserError(
                f"the values in {folder / VALUES} do not fit the model ({reason}): give the model and folder of one vlm ilql run"
            ) from error
        return heads.requires_grad_(False), weight

    @classmethod
    def fresh(cls, policy: VisionLanguagePolicy, generator: torch.Generator) -> "ValueHeads":
        """Heads for the states and vocabulary of a policy."""
        vocabulary = policy.network.get_output_embeddings().weight.shape[0]
        return cls(policy.width, vocabulary, device=policy.device, generator=generator)


def head_of(width: int, size: int, device: torch.device, generator: torch.Generator) -> nn.Sequential:
    """A perceptron whose last layer is 0, so that it moves nothing before it has learned something."""
    first, last = (skip_init(nn.Linear, *shape, device=device) for shape in ((width, 2 * width), (2 * width, size)))
    with torch.no_grad():
        for weight in first.parameters():  # as nn.Linear does, but from a generator of its own
            spread = 1 / math.sqrt(width)
            weight.copy_(torch.empty(weight.shape).uniform_(-spread, spread, generator=generator))
        for weight in last.parameters():
            weight.zero_()
    return nn.Sequential(first, nn.ReLU(), last)


def q_of_tokens(head: nn.Module, states: Float[Tensor, "n d"], tokens: Int[Tensor, " n"]) -> Float[Tensor, "2 n"]:
    """Q of each token, and log Σ exp Q over the vocabulary."""
    table = head(states)
    return torch.stack([table.gather(1, tokens.unsqueeze(1)).squeeze(1), table.logsumexp(dim=1)])


def generate_with_values(
    policy: VisionLanguagePolicy, heads: ValueHeads, rows: Sequence[Row], *, weight: float, seed: int, **how: Any
) -> Answers:
    """`policy.generate`, from (log π + `weight` · (Q − V)) / temperature; a weight of 0 gives the policy's own answers."""
    with shifted(policy, heads, weight) as shift:
        return policy.generate(rows, seed=seed, logits_processor=[shift], **how)


@contextlib.contextmanager
def shifted(
    policy: VisionLanguagePolicy, heads: ValueHeads, weight: float
) -> Iterator[Callable[[Tensor, Tensor], Tensor]]:
    """Inside, what makes the logits that follow a text those that the values ask for, for `generate` of `transformers`.

    The states are those that the model's last layer reads.
    """
    seen: list[Tensor] = []

    def look(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        seen[:] = [given[0][:, -1]]

    def shift(tokens: Tensor, logits: Tensor) -> Tensor:
        q, values = heads.of_vocabulary(seen[0])
        return perturbed(logits.float(), q, values, weight)

    hook = policy.network.get_output_embeddings().register_forward_pre_hook(look)
    try:
        yield shift
    finally:
        hook.remove()
