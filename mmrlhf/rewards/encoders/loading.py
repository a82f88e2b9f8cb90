"""Files as batches that a tower takes, decoded by threads while the model is at work on the batch before."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from mmrlhf.images import load_image
from mmrlhf.rewards.encoders.dual_encoder import DualEncoder

DECODERS = 4  # threads: reading and decompressing a file leaves the interpreter to others


def preprocessed(backbone: DualEncoder, batches: Sequence[Sequence[Path]]) -> Iterator[Float[Tensor, "b 3 size size"]]:
    """Each batch of files of any sizes as the reward itself would resize them."""

    def one(path: Path) -> Tensor:
        return backbone.preprocess(load_image(path).unsqueeze(0))

    with ThreadPoolExecutor(DECODERS) as pool:
        yield from ahead(lambda paths: torch.cat(list(pool.map(one, paths))), batches)


def ahead(load: Callable[[Sequence[Path]], Tensor], batches: Sequence[Sequence[Path]]) -> Iterator[Tensor]:
    """`load` of each batch, called in a thread while the one before is computed."""
    with ThreadPoolExecutor(1) as pool:
        waiting = [pool.submit(load, batch) for batch in batches[:1]]
        for following in batches[1:]:
            images = waiting.pop().result()
            waiting.append(pool.submit(load, following))
            yield images
        for last in waiting:
            yield last.result()
