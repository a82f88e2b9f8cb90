"""Files become image tensors as a browser shows them, whatever they hold."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmrlhf.errors import UserError
from mmrlhf.images import decode, grid, load_image, open_image, save_image


def test_a_rotated_photograph_stands_upright(tmp_path: Path) -> None:
    pixels = np.zeros((32, 64, 3), dtype=np.uint8)
    pixels[:, :32] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the top is at the right
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", exif=exif, quality=95)
    image = load_image(tmp_path / "photo.jpg")
    assert image.shape == (3, 64, 32)
    assert image[:, :30].mean() > 0.95 and image[:, 34:].mean() < 0.05


@pytest.mark.parametrize("size", [None, 16])
def test_16_bit_greys_keep_their_range(tmp_path: Path, size: int | None) -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)
    Image.fromarray(np.tile(ramp, (64, 1))).save(tmp_path / "ramp.png")
    image = load_image(tmp_path / "ramp.png", size)
    assert image.shape[0] == 3 and float(image.mean()) == pytest.approx(0.5, abs=0.01)
    assert bool((image[0].diff(dim=1) >= 0).all())


def test_transparency_lies_over_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    torch.testing.assert_close(load_image(tmp_path / "clear.png"), torch.ones(3, 4, 4))


def test_written_and_read_again_is_the_same_to_8_bits(tmp_path: Path) -> None:
    image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    save_image(image, tmp_path / "x.png")
    torch.testing.assert_close(load_image(tmp_path / "x.png"), image, atol=0.5 / 255 + 1e-6, rtol=0)


def test_a_small_file_of_a_huge_picture_is_refused(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    with pytest.raises(UserError, match="is not a readable image"):
        load_image(tmp_path / "bomb.png")


def test_a_grid_puts_pictures_in_rows_a_pixel_apart() -> None:
    sheet = grid(torch.zeros(3, 3, 2, 2), columns=2)
    assert sheet.shape == (3, 5, 5)
    assert bool((sheet[:, 2] == 1).all()) and bool((sheet[:, 3:, 3:] == 1).all()) and float(sheet[0, 0, 0]) == 0


def test_a_picture_in_memory_is_the_one_on_disk(tmp_path: Path) -> None:
    save_image(torch.rand(3, 8, 6, generator=torch.Generator().manual_seed(0)), tmp_path / "x.png")
    opened = open_image((tmp_path / "x.png").read_bytes(), "image 0")
    assert opened.size == (6, 8)
    torch.testing.assert_close(decode(opened), load_image(tmp_path / "x.png"))


@pytest.mark.parametrize("kind", ["TIFF", "EPS", "PPM"])
def test_what_strangers_send_is_read_in_the_formats_of_the_web_only(tmp_path: Path, kind: str) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "picture", kind)
    with pytest.raises(UserError, match="image 0 is not a readable image .no known format"):
        open_image((tmp_path / "picture").read_bytes(), "image 0")
