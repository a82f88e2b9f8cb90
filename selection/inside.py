"""Pictures, as files or inside of larger ones: .tar shards and parquet files."""

from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from mmrlhf.images import decode, load_image, open_image, readable


class Inside:
    """A picture that lies in a larger file; `str` says in which, and where."""

    def read_bytes(self) -> bytes:
        """The picture's bytes. UserError where they cannot be read."""
        raise NotImplementedError

    def where(self) -> dict[str, Any]:
        """Where they lie, for results."""
        raise NotImplementedError

    def pixels(self, size: int | None = None) -> Float[Tensor, "3 h w"]:
        """As `load_image` reads a file; only the formats of the web. UserError if unreadable."""
        with readable(str(self)), open_image(self.read_bytes(), str(self)) as opened:
            return decode(opened, size)


Picture = Path | Inside


class Listed(NamedTuple):
    """Pictures in order, what is known of each by column (None where it is not), and what cannot be read, with the reason."""

    pictures: list[Picture]
    columns: dict[str, list[Any]]
    unreadable: dict[str, str]


def read_picture(picture: Picture, size: int | None = None) -> Float[Tensor, "3 h w"]:
    """As `load_image`, from a file or out of what it lies in."""
    return load_image(picture, size) if isinstance(picture, Path) else picture.pixels(size)
