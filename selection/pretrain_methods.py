"""Self-supervised methods as modules: views of a batch of images in, a loss out. Losses, heads and views are lightly's."""

import copy
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mmrlhf.backbones import Backbone
from mmrlhf.precision import fast_autocast
from mmrlhf.types import Images

MethodName = Literal["simclr", "dino", "distill"]
LOCAL_SHARE = 96 / 224  # of the side of a large view: DINO's small ones
STRIDE = 32  # sides that every network can halve five times


class Step(NamedTuple):
    """The loss of a batch; the backbone's features of one view an image; and those of another view of it, or of its teacher."""

    loss: Float[Tensor, ""]
    embeddings: Float[Tensor, "b d"]
    first: Float[Tensor, "b e"]
    second: Float[Tensor, "b e"]


class SimCLR(nn.Module):
    """Two views of an image attract each other, and are repelled by all others of the batch (Chen et al. 2020)."""

    def __init__(self, backbone: Backbone, *, temperature: float, min_crop: float, colour: float) -> None:
        from lightly.loss import NTXentLoss
        from lightly.models.modules.heads import SimCLRProjectionHead

        super().__init__()
        self.exported, self.network = backbone, backbone.network
        self.head = SimCLRProjectionHead(backbone.width, backbone.width, 128)
        self.criterion = NTXentLoss(temperature=temperature)
        self.view = simclr_view(backbone.image_size, min_crop, colour)

    def augment(self, picture: Any) -> list[Tensor]:
        """Two views, drawn alike."""
        return [self.view(picture), self.view(picture)]

    def step(self, views: list[Tensor], epoch: int) -> Step:
        """NT-Xent of the projected views."""
        features = encode(self.exported, torch.cat(views))
        first, second = features.chunk(2)
        loss = self.criterion(*self.head(features).chunk(2))
        return Step(loss, first.detach(), first.detach(), second.detach())

    def follow(self, share: float) -> None:
        """Nothing follows."""


class DINO(nn.Module):
    """A student matches, across large and small views, the prototypes that its own slow average gives (Caron et al. 2021).

    The average, the teacher, is what is exported. Its batch statistics are its own.
    """

    def __init__(
        self, backbone: Backbone, *, momentum: float, prototypes: int, local_views: int, min_crop: float, colour: float
    ) -> None:
        from lightly.loss import DINOLoss
        from lightly.transforms import DINOTransform

        super().__init__()
        self.student, self.momentum = backbone, momentum
        self.network, self.head = backbone.network, dino_head(backbone.width, prototypes)
        self.teacher = copy.deepcopy(backbone.network).requires_grad_(False)
        self.teacher_head = dino_head(backbone.width, prototypes).requires_grad_(False)
        self.teacher_head.load_state_dict(self.head.state_dict())
        self.exported = Backbone(
            backbone.name, self.teacher, backbone.image_size, backbone.width, backbone.mean, backbone.std
        )
        self.criterion = DINOLoss(output_dim=prototypes)
        self.augmentation = DINOTransform(
            global_crop_size=backbone.image_size,
            global_crop_scale=(min_crop, 1.0),
            local_crop_size=local_size(backbone),
            local_crop_scale=(0.05, max(min_crop, 0.06)),
            n_local_views=local_views,
            cj_bright=0.8 * colour,  # not cj_strength, which the second large view is not given
            cj_contrast=0.8 * colour,
            cj_sat=0.4 * colour,
            cj_hue=0.2 * colour,
            random_gray_scale=0.2 * min(colour, 1.0),
            solarization_prob=0.2 * min(colour, 1.0),
            normalize=None,
        )

    def augment(self, picture: Any) -> list[Tensor]:
        """Two large views, then the small ones."""
        views: list[Any] = self.augmentation(picture)
        return views

    def step(self, views: list[Tensor], epoch: int) -> Step:
        """Cross-entropy of the student's prototypes in each view with the teacher's in each other large one."""
        self.head.last_layer.weight_v.requires_grad_(epoch > 0)  # held for the first epoch, as the authors do
        large = torch.cat(views[:2])
        with torch.no_grad():
            seen = encode(self.exported, large)
            taught = list(self.teacher_head(seen).chunk(2))
        answers = list(self.head(encode(self.student, large)).chunk(2))
        if len(views) > 2:
            answers += self.head(encode(self.student, torch.cat(views[2:]))).chunk(len(views) - 2)
        first, second = seen.chunk(2)
        return Step(self.criterion(taught, answers), first, first, second)

    @torch.no_grad()
    def follow(self, share: float) -> None:
        """The teacher's weights move towards the student's, ever more slowly."""
        from lightly.models.utils import update_momentum
        from lightly.utils.scheduler import cosine_schedule

        momentum = cosine_schedule(round(share * 10**6), 10**6, self.momentum, 1.0)
        update_momentum(self.network, self.teacher, momentum)
        update_momentum(self.head, self.teacher_head, momentum)


class Distillation(nn.Module):
    """A linear map of the backbone's features turns to a teacher's embedding of the same view: loss 1 − cosine."""

    def __init__(
        self, backbone: Backbone, *, teacher: Callable[[Images], Tensor], width: int, min_crop: float, colour: float
    ) -> None:
        from lightly.loss import NegativeCosineSimilarity

        super().__init__()
        self.exported, self.network, self.teacher = backbone, backbone.network, teacher
        self.head = nn.Linear(backbone.width, width)
        self.criterion = NegativeCosineSimilarity()
        self.view = simclr_view(backbone.image_size, min_crop, 0.5 * colour)

    def augment(self, picture: Any) -> list[Tensor]:
        """One view, for both to see (Beyer et al. 2022)."""
        return [self.view(picture)]

    def step(self, views: list[Tensor], epoch: int) -> Step:
        """1 − cosine of the student's and the teacher's embedding."""
        with torch.no_grad():
            wanted = self.teacher(views[0])
        features = encode(self.exported, views[0])
        given = self.head(features)
        return Step(1 + self.criterion(given, wanted), features.detach(), given.detach(), wanted)

    def follow(self, share: float) -> None:
        """Nothing follows."""


Method = SimCLR | DINO | Distillation
"""`augment(picture)`: views of a PIL picture in [0, 1], from the global generators. `step(views, epoch)`: one pass over a batch,
a tensor "b 3 h w" a view. `follow(share)`: called after each update, when that share of the run is done. `exported`: what the
training is for. Parameters that need gradients are trained; the state is in the checkpoint."""


def encode(backbone: Backbone, images: Images) -> Float[Tensor, "b d"]:
    """Features in float32, computed in mixed precision where that is fast."""
    with fast_autocast(images.device.type):
        features = backbone(images)
    return features.float()


def simclr_view(size: int, min_crop: float, colour: float) -> Callable[[Any], Tensor]:
    """SimCLR's crop, flip, blur, and change of colours, which `colour` makes stronger or, 0, leaves out."""
    from lightly.transforms import SimCLRViewTransform

    return SimCLRViewTransform(
        input_size=size,
        min_scale=min_crop,
        cj_strength=colour,
        random_gray_scale=0.2 * min(colour, 1.0),
        normalize=None,
    )


def dino_head(width: int, prototypes: int) -> Any:
    """The published head: three layers, a unit vector of 256, and prototypes of unit length."""
    from lightly.models.modules.heads import DINOProjectionHead

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*weight_norm.* is deprecated", FutureWarning)
        return DINOProjectionHead(width, 2048, 256, prototypes)


def local_size(backbone: Backbone) -> int:
    """The side of DINO's small views: that of the large ones where the network takes no other."""
    side = max(STRIDE, round(LOCAL_SHARE * backbone.image_size / STRIDE) * STRIDE)
    training = backbone.network.training
    try:
        with torch.no_grad():
            backbone.network.eval()(torch.zeros(1, 3, side, side))
        return min(side, backbone.image_size)
    except (RuntimeError, AssertionError, ValueError):
        return backbone.image_size
    finally:
        backbone.network.train(training)


def matched(first: Float[Tensor, "b e"], second: Float[Tensor, "b e"]) -> float:
    """Share of rows of `first` whose nearest row of `second`, by cosine, is their own; chance is 1/b."""
    cosines = F.normalize(first, dim=-1) @ F.normalize(second, dim=-1).T
    return float((cosines.argmax(dim=1) == torch.arange(len(first), device=first.device)).float().mean())


def spread(embeddings: Float[Tensor, "b d"]) -> float:
    """√d times the mean standard deviation over the unit rows: 1 where they point everywhere, 0 where they have collapsed.

    Source: Chen and He 2021, figure 2.
    """
    unit = F.normalize(embeddings, dim=-1)
    return float(unit.std(dim=0, correction=0).mean() * unit.shape[1] ** 0.5)
