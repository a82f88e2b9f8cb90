"""Pictures as augmented views, drawn anew each epoch: the same for the same seed, however many processes draw."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from mmrlhf.errors import UserError
from mmrlhf.images import content_hash, to_pil
from mmrlhf.seeding import seeded
from selection.compressed import is_compressed
from selection.inside import Picture, read_picture
from selection.parquet_pictures import Cell
from selection.pictures import list_pictures
from selection.webdataset import Member

Views = list[Float[Tensor, "3 h w"]]
ORDER, DRAWS, WEIGHTS = 0, 1, 2  # what a seed is for


class Pictures(NamedTuple):
    """The readable pictures, equal ones once, with their content hashes; and what could not be read, with the reason."""

    paths: list[Picture]
    hashes: list[str]
    unreadable: dict[str, str]


def read_pictures(source: Path) -> Pictures:
    """Look at every image that `list_pictures` finds. UserError where fewer than two different ones can be read."""
    listed = list_pictures(source)
    found: dict[str, Picture] = {}
    unreadable = dict(listed.unreadable)
    for picture in tqdm(listed.pictures, desc="reading", unit="image", disable=None, delay=1):
        if isinstance(picture, Cell):
            raise UserError(
                f"{picture.table} is a parquet file, and pictures are read in random order, which its groups of rows make slow: "
                "write them to a folder or a .tar first"
            )
        if isinstance(picture, Member) and is_compressed(picture.shard):
            raise UserError(
                f"{picture.shard} is compressed, and pictures are read in random order, which a compressed shard does not "
                "allow: unpack it to a .tar first"
            )
        try:
            name = content_hash(picture.read_bytes())
            if name not in found:
                read_picture(picture)
                found[name] = picture
        except (UserError, OSError) as error:
            unreadable[str(picture)] = str(error)
    if len(found) < 2:
        first = next(iter(unreadable.values()), "the others are copies")
        raise UserError(
            f"{source} holds {len(found)} different readable images ({first}), allowed is 2 or more: give more"
        )
    return Pictures(list(found.values()), list(found), unreadable)


class AugmentedPictures(Dataset[Views]):
    """Views of each picture in one epoch; which ones follows from the seed, the epoch and the picture's number alone."""

    def __init__(self, paths: Sequence[Picture], augment: Callable[[Any], Any], seed: int, epoch: int) -> None:
        self.paths, self.augment, self.seed, self.epoch = paths, augment, seed, epoch

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> Views:
        picture = to_pil(read_picture(self.paths[number]))
        own = int(torch.randint(2**31, (), generator=seeded(self.seed, DRAWS, self.epoch, number)))
        return list(drawn(own, lambda: self.augment(picture)))


def drawn(seed: int, draw: Callable[[], Any]) -> Any:
    """What `draw` gives with the generators of torch, numpy and Python at `seed`; they are put back after it.

    The augmentations of lightly and torchvision take no generator of their own.
    """
    numpys, pythons = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        try:
            return draw()
        finally:
            np.random.set_state(numpys)
            random.setstate(pythons)


def batches(
    paths: Sequence[Picture],
    augment: Callable[[Any], Any],
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    workers: int,
) -> DataLoader[Views]:
    """Batches of views, a tensor a view, over the pictures in an order of this epoch; a last one that is not full is left out."""
    order = torch.randperm(len(paths), generator=seeded(seed, ORDER, epoch)).tolist()
    return DataLoader(
        AugmentedPictures(paths, augment, seed, epoch),
        batch_size=batch_size,
        sampler=order,
        drop_last=True,
        num_workers=workers,
    )
