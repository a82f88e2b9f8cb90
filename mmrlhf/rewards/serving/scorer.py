"""From the items of a request to their scores: decode within a bound on memory, then batch with everybody else's."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from mmrlhf.images import decode, open_image, readable
from mmrlhf.rewards.serving.batching import Batcher
from mmrlhf.rewards.serving.bodies import Items, Limits, TooLarge
from mmrlhf.types import Reward

REQUESTS_AT_ONCE = 4  # of the largest size: decoded, a pixel takes 12 bytes


class Scorer:
    """A reward behind a queue. Made inside or outside an event loop; `score` runs in one."""

    def __init__(
        self,
        reward: Reward,
        limits: Limits,
        *,
        max_batch: int,
        max_wait: float,
        observe: Callable[[int, float, bool], None],
    ) -> None:
        self.limits = limits
        self.batcher = Batcher(reward, max_batch=max_batch, max_wait=max_wait, observe=observe)
        self.room = Room(REQUESTS_AT_ONCE * limits.pixels)

    async def score(self, items: Items) -> list[float]:
        """A score an image, in order, NaN where the reward abstains. UserError for images that cannot be used, RewardError."""
        pictures, pixels = await asyncio.to_thread(open_all, items.images, self.limits)
        async with self.room.hold(pixels):
            images = await asyncio.to_thread(decode_all, pictures)
            return await asyncio.wrap_future(self.batcher.submit(images, items.prompts))


class Room:
    """Lets in as many pixels as it has place for; the others wait."""

    def __init__(self, size: int) -> None:
        self.free = size
        self.changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def hold(self, pixels: int) -> AsyncIterator[None]:
        """Inside, so many are in the room."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.free >= pixels)
            self.free -= pixels
        try:
            yield
        finally:
            async with self.changed:
                self.free += pixels
                self.changed.notify_all()


def open_all(images: Sequence[bytes], limits: Limits) -> tuple[list[Image.Image], int]:
    """The pictures with only their headers read, and their pixels, which are within the limits."""
    pictures = [open_image(data, f"image {number}") for number, data in enumerate(images)]
    pixels = sum(picture.width * picture.height for picture in pictures)
    if pixels > limits.pixels:
        raise TooLarge(
            f"the images have {pixels / 1e6:.3g} million pixels in all, allowed are {limits.pixels / 1e6:g}: send fewer "
            "or smaller ones a request, or start the server with a larger --max-megapixels"
        )
    return pictures, pixels


def decode_all(pictures: Sequence[Image.Image]) -> list[Float[Tensor, "3 _ _"]]:
    """Their pixels."""
    images = []
    for number, picture in enumerate(pictures):
        with readable(f"image {number}"):
            images.append(decode(picture))
    return images
