"""The world of tiny-llava: pictures of two to six emoji on a plain background, of which everything is known.

A scene belongs to a place (a farm, the sea …) whose objects occur together, so that a model of its pictures learns to expect
some that are not there, as large ones do. Art: Twemoji (CC-BY 4.0), as one sheet in tiny-llava's folder.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from mmrlhf.models import TINY_FOLDER

ART = TINY_FOLDER / "tiny-llava" / "art.png"
CELLS = 3
CELL = 64
SIDE = CELLS * CELL
PLACES: dict[str, tuple[str, ...]] = {
    "farm": ("cow", "tractor", "pig", "chicken", "horse", "sheep", "duck"),
    "sea": ("fish", "ship", "whale", "crab", "octopus", "anchor", "turtle"),
    "kitchen": ("croissant", "egg", "pizza", "banana", "carrot", "teapot", "tomato"),
    "party": ("balloon", "cake", "candle", "guitar", "crown", "trumpet", "heart"),
    "city": ("house", "taxi", "bicycle", "train", "church", "ambulance", "umbrella"),
    "jungle": ("monkey", "snake", "tiger", "parrot", "frog", "zebra", "elephant"),
    "office": ("laptop", "book", "calendar", "pen", "camera", "key", "telephone"),
    "sky": ("sun", "cloud", "airplane", "rocket", "star", "kite", "rainbow"),
}
"""The objects of each place, the two most common ones first."""
COLOURED: dict[str, tuple[str, ...]] = {
    "book": ("red", "blue", "green", "orange"),
    "heart": ("red", "blue", "green", "yellow", "purple"),
}
"""The objects that come in several colours, which a description names."""
BACKGROUNDS: dict[str, tuple[float, float, float]] = {
    "white": (1.0, 1.0, 1.0),
    "blue": (0.72, 0.85, 0.97),
    "green": (0.76, 0.92, 0.74),
    "yellow": (0.99, 0.95, 0.68),
    "pink": (0.98, 0.80, 0.87),
}
# Unicode's name of each drawing, where it is not the object's own
UNICODE_NAMES = {
    "sheep": "ewe", "cake": "shortcake", "red book": "closed book", "sun": "sun with face", "train": "locomotive",
    "whale": "spouting whale",
}  # fmt: skip
MOST_OBJECTS = 6
STRANGERS = 0.12
"""Share of the objects that come from another place."""
PAIRS = 0.25
"""Share of the kinds of which there are two or three."""
COMMON = 3.0
"""How much likelier the two common objects of a place are than its others."""


@dataclass(frozen=True)
class Thing:
    """One object: its kind, its colour ("" where it has none to name), and its cell, 0 to 8 in reading order."""

    kind: str
    colour: str
    cell: int

    @property
    def drawing(self) -> str:
        """The name of its picture: "red book", "cow"."""
        return f"{self.colour} {self.kind}".strip()


@dataclass(frozen=True)
class Scene:
    """What is in a picture, in reading order, and where it plays."""

    place: str
    background: str
    things: tuple[Thing, ...]

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of its objects."""
        return frozenset(thing.kind for thing in self.things)


KINDS: tuple[str, ...] = tuple(kind for kinds in PLACES.values() for kind in kinds)
DRAWINGS: tuple[str, ...] = tuple(f"{colour} {kind}".strip() for kind in KINDS for colour in COLOURED.get(kind, ("",)))


def random_scene(generator: np.random.Generator) -> Scene:
    """Two to six objects of some kinds, mostly those of one place."""
    place = str(generator.choice(list(PLACES)))
    wanted = int(generator.integers(2, MOST_OBJECTS + 1))
    drawn: list[str] = []
    kinds: set[str] = set()
    while len(drawn) < wanted:
        kind = random_kind(place, generator)
        if kind in kinds:
            continue
        kinds.add(kind)
        count = int(generator.integers(2, 4)) if generator.random() < PAIRS else 1
        drawn += [kind] * min(count, wanted - len(drawn))
    colours = {kind: str(generator.choice(COLOURED[kind])) if kind in COLOURED else "" for kind in sorted(kinds)}
    cells = sorted(generator.permutation(CELLS * CELLS)[:wanted].tolist())
    shuffled = generator.permutation(wanted)
    things = tuple(Thing(drawn[i], colours[drawn[i]], cell) for i, cell in zip(shuffled, cells, strict=True))
    return Scene(place, str(generator.choice(list(BACKGROUNDS))), things)


def random_kind(place: str, generator: np.random.Generator) -> str:
    """A kind of object as it occurs in a place."""
    if generator.random() < STRANGERS:
        return str(generator.choice([kind for kind in KINDS if kind not in PLACES[place]]))
    return str(generator.choice(PLACES[place], p=likelihoods(place)))


@functools.cache
def likelihoods(place: str) -> np.ndarray:
    """How often each object of a place occurs in it."""
    weights = np.array([COMMON if i < 2 else 1.0 for i in range(len(PLACES[place]))])
    return weights / weights.sum()


def render(scenes: Sequence[Scene], generator: np.random.Generator) -> Float[Tensor, "b 3 192 192"]:
    """Pictures of scenes, each object somewhat moved and scaled within its cell; RGB in [0, 1]."""
    sheets = art_sheets()
    sizes = sorted(sheets)
    images = torch.tensor([BACKGROUNDS[scene.background] for scene in scenes])[:, :, None, None]
    images = images.repeat(1, 1, SIDE, SIDE)
    for image, scene in zip(images, scenes, strict=True):
        for thing in scene.things:
            size = sizes[generator.integers(len(sizes))]
            top, left = (CELL * place + int(generator.integers(CELL - size + 1)) for place in divmod(thing.cell, CELLS))
            art = sheets[size][DRAWINGS.index(thing.drawing)]
            part = image[:, top : top + size, left : left + size]
            part.mul_(1 - art[3:]).add_(art[:3])
    return images.clamp_(0, 1)


@functools.cache
def art_sheets() -> dict[int, Float[Tensor, "n 4 size size"]]:
    """The drawings by side in pixels, in the order of `DRAWINGS`; colours premultiplied by alpha."""
    sheet = torch.from_numpy(np.asarray(Image.open(ART).convert("RGBA")).copy()).permute(2, 0, 1).float() / 255
    side = sheet.shape[2] // 8
    tiles = sheet.unfold(1, side, side).unfold(2, side, side).permute(1, 2, 0, 3, 4).flatten(0, 1)[: len(DRAWINGS)]
    tiles = torch.cat([tiles[:, :3] * tiles[:, 3:], tiles[:, 3:]], dim=1)
    return {
        size: torch.nn.functional.interpolate(tiles, size=size, mode="bilinear", antialias=True, align_corners=False)
        for size in (50, 54, 58, 62)
    }


def write_art(file: Path) -> None:
    """Make the sheet of art from the registry's package of drawings."""
    from mmrlhf.tiny.emoji import catalogue, twemoji_path

    codes = {concept.name: concept.hexcode for concept in catalogue()}
    sheet = Image.new("RGBA", (8 * 72, 8 * 72))
    for place, drawing in enumerate(DRAWINGS):
        path = twemoji_path(codes[UNICODE_NAMES.get(drawing, drawing)])
        assert path is not None
        sheet.paste(Image.open(path).convert("RGBA").resize((72, 72)), (72 * (place % 8), 72 * (place // 8)))
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(file, format="PNG", optimize=True)
