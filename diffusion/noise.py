"""Noise that depends on numbers alone, so that a resumed run and a comparison before and after draw the same."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mmrlhf.distributed import own_part


@dataclass(frozen=True)
class PartOf:
    """Some rows of what a generator draws for a batch of `count`, so that several processes draw what one would."""

    generator: torch.Generator
    rows: range
    count: int


def own_share(generator: torch.Generator, count: int) -> PartOf:
    """What this process draws of a batch of `count`. One that has no row of it draws one for nothing, so that the generators
    of all stay in step."""
    part = own_part(count)
    return PartOf(generator, part if len(part) else range(1), count)


Generators = torch.Generator | PartOf | Sequence[torch.Generator]


def gaussian(shape: Sequence[int], generator: Generators, device: torch.device) -> Float[Tensor, "b c h w"]:
    """N(0, 1) of `shape`: from one generator for the batch, or row i from the i-th of a sequence. Drawn on the CPU."""
    if isinstance(generator, torch.Generator):
        noise = torch.randn(tuple(shape), generator=generator)
    elif isinstance(generator, PartOf):
        whole = torch.randn((generator.count, *shape[1:]), generator=generator.generator)
        noise = whole[generator.rows.start : generator.rows.stop]
    else:
        noise = torch.stack([torch.randn(tuple(shape[1:]), generator=own) for own in generator])
    return noise.to(device)
