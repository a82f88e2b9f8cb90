"""Decoding stays within its bound on memory, whoever gives up waiting."""

import asyncio

from mmrlhf.rewards.serving.scorer import Room


def test_the_room_never_holds_more_than_its_size() -> None:
    inside = most = done = 0

    async def visit(room: Room, pixels: int) -> None:
        nonlocal inside, most, done
        async with room.hold(pixels):
            inside += pixels
            most = max(most, inside)
            await asyncio.sleep(0.001)
            inside -= pixels
        done += 1

    async def crowd() -> int:
        room = Room(10)
        visits = [asyncio.create_task(visit(room, 1 + i % 10)) for i in range(30)]
        await asyncio.sleep(0.002)
        visits[-1].cancel()  # one that still waits
        await asyncio.gather(*visits, return_exceptions=True)
        return room.free

    assert asyncio.run(crowd()) == 10
    assert most == 10 and done == 29
