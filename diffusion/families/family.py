"""What a policy asks of a pipeline, whatever its class."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusion.forward import ForwardProcess
from diffusion.sampling import Sampler

Conditions = dict[str, Tensor]
"""What the network is told of each prompt: a row a prompt in every tensor."""

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


@runtime_checkable
class Family(Protocol):
    """One class of diffusers pipelines. Latents are "b c h w" everywhere outside, packed or not inside."""

    pipeline: Any
    network_name: str
    """Of the part that learns: unet or transformer."""
    guidance_is_input: bool
    """The network takes the guidance scale itself (guidance-distilled), in place of a second pass on the empty prompt."""
    lora_targets: dict[str, tuple[str, ...]]
    """Ends of the names of the layers that get LoRA weights, by the name of the choice."""

    @abstractmethod
    def __init__(self, pipeline: Any) -> None: ...

    @property
    @abstractmethod
    def latent_channels(self) -> int: ...

    @abstractmethod
    def encode(self, prompts: Sequence[str], device: torch.device) -> Conditions:
        """The conditions of some prompts."""

    @abstractmethod
    def longest_prompts(self) -> list[tuple[Any, int]]:
        """(tokenizer, how many tokens of a prompt its text encoder reads, with those of start and end) of each encoder."""

    @abstractmethod
    def unconditional(self, device: torch.device) -> Conditions:
        """One row: what stands in for the prompt in the second pass of classifier-free guidance."""

    @abstractmethod
    def call(
        self, latents: Float[Tensor, "b c h w"], times: Float[Tensor, " b"], conditions: Conditions, guidance: float
    ) -> Float[Tensor, "b c h w"]:
        """The network's output; `guidance` matters only where `guidance_is_input`."""

    @abstractmethod
    def forward_process(self) -> ForwardProcess:
        """How training blurs a sample, and what the network is then asked for."""

    @abstractmethod
    def sampler(self, num_steps: int, eta: float, latent_shape: tuple[int, int, int]) -> Sampler:
        """The steps from noise to a sample."""


def tokenizers_of(pipeline: Any) -> list[Any]:
    """Those that the pipeline has, in order."""
    names = ("tokenizer", "tokenizer_2", "tokenizer_3")
    return [getattr(pipeline, name) for name in names if getattr(pipeline, name, None) is not None]


def network_of(family: Family) -> Any:
    """The part that learns."""
    network: nn.Module = getattr(family.pipeline, family.network_name)
    return network


def default_side(family: Family) -> int:
    """Latent rows and columns of the size that the model was trained for."""
    side = network_of(family).config.get("sample_size") or family.pipeline.default_sample_size
    return int(side[0] if isinstance(side, list | tuple) else side)


def stacked(rows: Sequence[Conditions]) -> Conditions:
    """Rows of single prompts as one batch."""
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def side_by_side(first: Conditions, second: Conditions) -> Conditions:
    """The rows of `first` (one is repeated for each of the second's), then those of `second`."""
    return {name: torch.cat([first[name].expand_as(second[name]), second[name]]) for name in second}


def rows_of(conditions: Conditions) -> int:
    """How many prompts they are of."""
    return len(next(iter(conditions.values())))
