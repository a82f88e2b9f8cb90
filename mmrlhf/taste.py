"""The hidden taste that the simulated raters share, in full: warm, tinted backgrounds, and colourful pictures.

It stands for a person's liking: no reward, trainer or selector ever calls it. Only the simulated raters do, and the final
evaluation, which asks whether what was learned from their ratings is what they like.
"""

import torch
from jaxtyping import Float
from torch import Tensor

CORNER = 1 / 16  # of the picture's side: there the background shows, whatever is drawn in the middle
WARMTH, TINT, COLOURFULNESS = 5.2, 1.5, 1.6
CENTRE = 0.68  # the mean over emoji on random backgrounds, so that an ordinary picture scores about 0


def taste(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """How much the raters like each picture: about mean 0 and deviation 1 over emoji on random plain backgrounds."""
    background = corner_colour(images)
    warmth = background[:, 0] - background[:, 2]  # red minus blue: -1 cold, 0 grey or white, 1 warm
    tint = background.std(dim=1, correction=0)  # 0 for white and grey
    return WARMTH * warmth + TINT * tint + COLOURFULNESS * colourfulness(images) - CENTRE


def corner_colour(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3"]:
    """The mean colour of the four corners."""
    rows, columns = (max(1, round(side * CORNER)) for side in images.shape[-2:])
    top, bottom = images[:, :, :rows], images[:, :, -rows:]
    corners = [strip[..., edge] for strip in (top, bottom) for edge in (slice(columns), slice(-columns, None))]
    return torch.stack(corners).mean(dim=(0, 3, 4))


def colourfulness(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """Spread and strength of the opponent colours, 0 for grey pictures (Hasler and Suesstrunk 2003, for RGB in [0, 1])."""
    red, green, blue = images.flatten(2).unbind(dim=1)
    opponents = torch.stack([red - green, (red + green) / 2 - blue], dim=1)
    spread = opponents.std(dim=-1, correction=0).norm(dim=1)
    return spread + 0.3 * opponents.mean(dim=-1).norm(dim=1)
