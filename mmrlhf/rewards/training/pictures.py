"""Pictures for training towers: decoded ahead of the step, and kept as bytes as far as memory is given."""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from mmrlhf.images import load_image
from mmrlhf.rewards.encoders.dual_encoder import DualEncoder

MOST_BYTES = 2**30


class Pictures:
    """Files as a reward would resize them, in 8 bits a channel as image processors give them; the last used ones are kept."""

    def __init__(self, backbone: DualEncoder, most_bytes: int = MOST_BYTES) -> None:
        self.backbone, self.most_bytes, self.bytes = backbone, most_bytes, 0
        self.kept: OrderedDict[Path, Tensor] = OrderedDict()

    def load(self, paths: Sequence[Path]) -> Float[Tensor, "b 3 size size"]:
        """One batch, in [0, 1]."""
        size = self.backbone.image_size
        if not paths:
            return torch.empty(0, 3, size, size)
        return torch.stack([self.one(path) for path in paths]).float() / 255

    def one(self, path: Path) -> Tensor:
        """One picture in levels from 0 to 255."""
        found = self.kept.pop(path, None)
        if found is None:
            image = self.backbone.preprocess(load_image(path).unsqueeze(0))[0]
            found = image.mul(255).round().to(torch.uint8)
            self.bytes += found.numel()
        self.kept[path] = found
        while self.bytes > self.most_bytes and len(self.kept) > 1:
            self.bytes -= self.kept.popitem(last=False)[1].numel()
        return found
