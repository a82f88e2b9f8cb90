"""What a model with an image tower and a text tower offers to rewards and trainers, and the steps that all of them share."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoConfig

from mmrlhf.errors import UserError
from mmrlhf.models import quiet_loading
from mmrlhf.types import Images

CHUNK = 64  # images encoded at a time


@runtime_checkable
class DualEncoder(Protocol):
    """Images and prompts in, unit embeddings out; float32, frozen, differentiable in the images, picklable."""

    model: Any

    @property
    def device(self) -> torch.device: ...

    @property
    def image_size(self) -> int: ...

    @property
    def max_tokens(self) -> int: ...

    @property
    def scale(self) -> Float[Tensor, ""]:
        """What a cosine is multiplied by: the inverse of the temperature that the model was trained with."""
        ...

    @property
    def bias(self) -> Float[Tensor, ""]:
        """What is added then: SigLIP's logit_bias; 0 for models trained with a softmax."""
        ...

    @property
    def embedding_width(self) -> int: ...

    @property
    def feature_width(self) -> int:
        """Columns of `image_features`."""
        ...

    @property
    def vision_blocks(self) -> Any:
        """The transformer blocks of the image tower, first to last, as a list of modules; empty where it has none."""
        ...

    @property
    def text_blocks(self) -> Any:
        """The same of the text tower."""
        ...

    @property
    def lora_targets(self) -> tuple[str, ...]:
        """Ends of the names of the linear layers in the blocks that PEFT can wrap."""
        ...

    def preprocess(self, images: Images) -> Float[Tensor, "b 3 size size"]:
        """The size that the tower takes, still in [0, 1], as the model's own processor makes it."""
        ...

    def embed_images(self, images: Images) -> Float[Tensor, "b p"]:
        """Unit image embeddings."""
        ...

    def image_features(self, images: Images) -> Float[Tensor, "b f"]:
        """What a head sees of each image: the unit embedding first, then `patch_features` where the tower has patches."""
        ...

    def embed_prompts(self, prompts: Sequence[str]) -> Float[Tensor, "b p"]:
        """Unit text embeddings; each different prompt is encoded once, padded as in the model's training."""
        ...

    def count_truncated(self, prompts: Sequence[str]) -> int:
        """How many of the different prompts are too long for the text tower."""
        ...

    def to(self, device: torch.device | str) -> "DualEncoder":
        """Move the weights; returns itself."""
        ...

    def save(self, folder: Path) -> None:
        """Write the model in its library's own format; `load_backbone` reads it back equal."""
        ...


def in_chunks(images: Images, encode: Callable[[Images], Tensor]) -> Float[Tensor, "b n"]:
    """`encode`, `CHUNK` images at a time."""
    return torch.cat([encode(part) for part in images.split(CHUNK)])


def patch_features(
    embedding: Float[Tensor, "b p"], last: Float[Tensor, "b n d"], first: Float[Tensor, "b n d"]
) -> Float[Tensor, "b f"]:
    """Side by side: the unit embedding, the mean over the patches of the last layer, and of the embedding layer, before the
    tower forgets plain colours, the mean and the spread over the patches, and the mean over those at the border.
    """
    spread = (first.var(dim=1, correction=0) + 1e-8).sqrt()  # the root of 0 has no gradient
    border = first[:, border_patches(first.shape[1], first.device)].mean(dim=1)
    return torch.cat([embedding, last.mean(dim=1), first.mean(dim=1), spread, border], dim=-1)


def border_patches(count: int, device: torch.device) -> Tensor:
    """Row numbers of the patches along the edges of a square grid of `count`."""
    side = round(count**0.5)
    inner = torch.zeros(side, side, dtype=torch.bool, device=device)
    inner[1:-1, 1:-1] = True
    return (~inner.flatten()).nonzero().flatten()


def embed_distinct(prompts: Sequence[str], encode: Callable[[list[str]], Tensor]) -> Float[Tensor, "b p"]:
    """`encode` of the different prompts, a row for each of `prompts`."""
    distinct = list(dict.fromkeys(prompts))
    embedded = encode(distinct)
    row = {prompt: number for number, prompt in enumerate(distinct)}
    return embedded[torch.tensor([row[prompt] for prompt in prompts], device=embedded.device)]


@contextmanager
def explain_loading(kind: str, model: str | Path, wanted: str) -> Iterator[None]:
    """Inside, nothing draws progress bars, and whatever goes wrong is a UserError of one line."""
    try:
        with quiet_loading():
            yield
    except UserError:
        raise
    except Exception as error:  # what transformers, open_clip, their hub client and safetensors raise shares no class
        reason = str(error).strip().split("\n")[0][:200]
        raise UserError(f"cannot load the {kind} model {model} ({reason}): give {wanted}") from error


def model_type(where: str) -> str:
    """What a transformers folder or hub id says it is."""
    return str(AutoConfig.from_pretrained(where).model_type)


def load_whole(kind: Any, where: str) -> Any:
    """The weights of a transformers model in float32. UserError where some are missing, which would stay random."""
    model, report = kind.from_pretrained(where, dtype=torch.float32, output_loading_info=True)
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            f"the weights in {where} lack {missing[0]} and {len(missing) - 1} more: give the whole {kind.__name__}"
        )
    return model
