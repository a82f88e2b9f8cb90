"""The only place where files, PIL pictures and uint8 arrays become image tensors, and back."""

import contextlib
import hashlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from mmrlhf.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
WEB_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")  # Pillow knows more, and starts other programs to read some of them


def content_hash(data: bytes) -> str:
    """The name of an item everywhere: the first 32 hex digits of the SHA-256 of its file's bytes."""
    return hashlib.sha256(data).hexdigest()[:32]


def from_pil(picture: Image.Image) -> Float[Tensor, "3 h w"]:
    """RGB in [0, 1]; transparency is laid over white, and 16-bit greys keep their range."""
    if picture.mode.startswith("I"):
        levels = torch.from_numpy(np.asarray(picture).astype(np.float32) / 65535)
        return levels.clamp(0, 1).expand(3, -1, -1).clone()
    if picture.mode in ("RGBA", "LA", "P", "RGBa"):
        rgba = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    levels = torch.from_numpy(np.array(picture.convert("RGB")))
    return levels.permute(2, 0, 1).to(torch.float32).div_(255)


def to_pil(image: Float[Tensor, "3 h w"]) -> Image.Image:
    """The 8-bit picture of an image tensor, rounded to the nearest of 256 levels."""
    levels = image.detach().float().clamp(0, 1).mul(255).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).cpu().numpy())


def load_image(path: Path, size: int | None = None) -> Float[Tensor, "3 h w"]:
    """Read one file; `size` resizes the shorter side with bicubic and crops the middle square. UserError if unreadable."""
    with readable(str(path)), Image.open(path) as file:
        return decode(file, size)


def open_image(data: bytes, name: str) -> Image.Image:
    """A picture that somebody sent, its header read and no pixel yet: look at its size before `decode`.

    Only `WEB_FORMATS`. UserError, which says `name`, for anything else.
    """
    with readable(name):
        return Image.open(io.BytesIO(data), formats=WEB_FORMATS)


@contextlib.contextmanager
def readable(name: str) -> Iterator[None]:
    """Inside, whatever Pillow raises on a broken image becomes a UserError that says `name`."""
    try:
        yield
    except Exception as error:  # its decoders' errors share no class
        reason = "no known format" if isinstance(error, UnidentifiedImageError) else error
        raise UserError(
            f"{name} is not a readable image ({reason}): give PNG, JPEG or WebP, or remove the file"
        ) from error


def decode(file: Image.Image, size: int | None = None) -> Float[Tensor, "3 h w"]:
    """The pixels of an opened picture, as a browser shows it; `size` as in `load_image`. Call it inside `readable`."""
    file.load()
    picture: Image.Image = ImageOps.exif_transpose(file)
    if size is not None and picture.size != (size, size):
        scale = size / min(picture.size)
        width, height = (max(size, round(side * scale)) for side in picture.size)
        picture = eight_bits(picture).resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - size) // 2, (height - size) // 2
        picture = picture.crop((left, top, left + size, top + size))
    return from_pil(picture)


def eight_bits(picture: Image.Image) -> Image.Image:
    """The same picture as RGBA with 8 bits a channel."""
    return to_pil(from_pil(picture)).convert("RGBA") if picture.mode.startswith("I") else picture.convert("RGBA")


def load_images(paths: Sequence[Path], size: int) -> Float[Tensor, "b 3 size size"]:
    """Read files into one batch of square images; see `load_image`."""
    return torch.stack([load_image(path, size) for path in paths])


def save_image(image: Float[Tensor, "3 h w"], path: Path) -> None:
    """Write a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    to_pil(image).save(path)


def list_images(folder: Path) -> list[Path]:
    """Image files below `folder`, sorted by path. UserError where there is no such folder or no image in it."""
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: give a folder that holds images ({', '.join(SUFFIXES)})")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise UserError(f"no image in {folder}: put files ending in {', '.join(SUFFIXES)} there")
    return paths


def grid(images: Float[Tensor, "b 3 h w"], columns: int) -> Float[Tensor, "3 height width"]:
    """The pictures in rows of `columns`, one white pixel apart."""
    batch, _, height, width = images.shape
    rows = -(-batch // columns)
    sheet = torch.ones(3, rows * (height + 1) - 1, columns * (width + 1) - 1)
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + 1), (i % columns) * (width + 1)
        sheet[:, top : top + height, left : left + width] = image
    return sheet
