"""Pictures for training towers: decoded ahead of the step, and kept as bytes as far as memory is given."""

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from mmrlhf.images import load_image
from mmrlhf.rewards.encoders.dual_encoder import DualEncoder
from mmrlhf.rewards.encoders.loading import DECODERS

MOST_BYTES = 2**30


class Pictures:
    """Files as a reward would resize them, in 8 bits a channel as image processors give them; the last used ones are kept."""

    def __init__(self, backbone: DualEncoder, most_bytes: int = MOST_BYTES) -> None:
        self.backbone, self.most_bytes = backbone, most_bytes
        self.kept: OrderedDict[Path, Tensor] = OrderedDict()

    @property
    def bytes(self) -> int:
        """What the kept pictures take."""
        return len(self.kept) * 3 * self.backbone.image_size**2

    def load(self, paths: Sequence[Path]) -> Float[Tensor, "b 3 size size"]:
        """One batch, in [0, 1]. Not for two threads at once."""
        size = self.backbone.image_size
        if not paths:
            return torch.empty(0, 3, size, size)
        found = {path: self.kept.pop(path) for path in paths if path in self.kept}
        missing = [path for path in dict.fromkeys(paths) if path not in found]
        with ThreadPoolExecutor(DECODERS) as pool:
            found |= dict(zip(missing, pool.map(self.decode, missing), strict=True))
        self.kept |= found
        while self.bytes > self.most_bytes:
            self.kept.popitem(last=False)
        return torch.stack([found[path] for path in paths]).float() / 255

    def decode(self, path: Path) -> Tensor:
        """One picture in levels from 0 to 255."""
        return self.backbone.preprocess(load_image(path).unsqueeze(0))[0].mul(255).round().to(torch.uint8)
