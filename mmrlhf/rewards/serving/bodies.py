"""What a request holds: prompts and image files, read from JSON, from a form, or from flow_grpo's pickles."""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from mmrlhf.errors import UserError
from mmrlhf.rewards.serving.plain_pickle import printable, read_plain

MAX_PROMPT = 20_000  # characters; a tokenizer would read all of a longer one before cutting it
MAX_JSON_VALUES = 200_000  # a value of two characters takes fifty bytes once it is read
JSON_EXAMPLE = '{"items": [{"prompt": "…", "image": "base64 of a PNG, JPEG or WebP file"}]}'


class TooLarge(UserError):
    """More than the server takes."""


@dataclass(frozen=True)
class Limits:
    """What one request may hold: bytes an image and in all, images, and pixels in all."""

    image_bytes: int
    request_bytes: int
    images: int
    pixels: int


@dataclass(frozen=True)
class Items:
    """Image files and their prompts."""

    images: Sequence[bytes]
    prompts: Sequence[str]


def read_json(body: bytes, limits: Limits) -> Items:
    """The items of `JSON_EXAMPLE`. UserError where the body is something else."""
    if sum(body.count(mark) for mark in (b"{", b"[", b",")) > MAX_JSON_VALUES:
        raise TooLarge(f"the JSON holds more than {MAX_JSON_VALUES} values: send {JSON_EXAMPLE}")
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise UserError(f"the body is no JSON ({printable(str(error))}): send {JSON_EXAMPLE}") from error
    items = content.get("items") if isinstance(content, dict) else None
    if not isinstance(items, list):
        raise UserError(f"the JSON has no list 'items': send {JSON_EXAMPLE}")
    check_count(len(items), limits)
    images, prompts = [], []
    for number, item in enumerate(items):
        prompt, image = (item.get(key) for key in ("prompt", "image")) if isinstance(item, dict) else (None, None)
        if not isinstance(prompt, str) or not isinstance(image, str):
            raise UserError(f"items[{number}] has no text 'prompt' and text 'image': send {JSON_EXAMPLE}")
        prompts.append(prompt)
        images.append(from_base64(image, number))
    return checked(images, prompts, limits)


def from_base64(text: str, number: int) -> bytes:
    """The bytes of an image; line breaks are passed over, as `base64` puts them in."""
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError as error:
        raise UserError(
            f"the image of items[{number}] is no base64 ({printable(str(error))}): encode the file's bytes, "
            "without a 'data:' prefix"
        ) from error


async def read_form(request: Request, limits: Limits) -> Items:
    """Files `images` and as many fields `prompts`, in the same order."""
    advice = "send files 'images' and as many fields 'prompts', in the same order"
    form = request.form(max_files=limits.images, max_fields=limits.images, max_part_size=4 * MAX_PROMPT)
    try:
        async with form as parts:
            if unknown := sorted(set(parts) - {"images", "prompts"}):
                raise UserError(f"the form has a field '{printable(unknown[0])}': {advice}")
            files, prompts = parts.getlist("images"), parts.getlist("prompts")
            if not all(isinstance(file, UploadFile) for file in files) or not all(isinstance(x, str) for x in prompts):
                raise UserError(f"the form has 'images' that are no files, or 'prompts' that are: {advice}")
            images = [await file.read() for file in files if isinstance(file, UploadFile)]
    except HTTPException as error:
        if error.status_code != 400:
            raise
        raise UserError(f"the form cannot be read ({error.detail}): {advice}") from error
    return checked(images, [prompt for prompt in prompts if isinstance(prompt, str)], limits)


def read_flow_grpo(body: bytes, limits: Limits) -> Items:
    """A pickle of {"images": [bytes], "prompts": [str], "metadata": anything plain}, the metadata unused."""
    content: Any = read_plain(body, limits.request_bytes)
    found: Any = content if isinstance(content, dict) else {}
    images, prompts = found.get("images"), found.get("prompts")
    if not is_list_of(images, bytes) or not is_list_of(prompts, str):
        raise UserError(
            "the pickle holds no dict with a list of image bytes and a list of prompt texts: "
            'send pickle.dumps({"images": [bytes], "prompts": [str], "metadata": {}})'
        )
    return checked(images, prompts, limits)


def is_list_of(values: Any, kind: type) -> bool:
    """Whether this is a list or tuple of nothing but `kind`."""
    return isinstance(values, list | tuple) and all(isinstance(value, kind) for value in values)


def checked(images: Sequence[bytes], prompts: Sequence[str], limits: Limits) -> Items:
    """The items, if they match and are within the limits."""
    if len(images) != len(prompts):
        raise UserError(f"got {len(images)} images and {len(prompts)} prompts: send one prompt an image")
    check_count(len(images), limits)
    for number, image in enumerate(images):
        if len(image) > limits.image_bytes:
            raise TooLarge(
                f"image {number} has {len(image) / 1e6:.3g} MB, allowed are {limits.image_bytes / 1e6:g}: "
                "send a smaller one, or start the server with a larger --max-image-mb"
            )
    for number, prompt in enumerate(prompts):
        if len(prompt) > MAX_PROMPT:
            raise TooLarge(f"prompt {number} has {len(prompt)} characters, allowed are {MAX_PROMPT}: shorten it")
        if any("\ud800" <= character <= "\udfff" for character in prompt):
            raise UserError(f"prompt {number} holds half a surrogate pair, allowed is Unicode text: mend its encoding")
    return Items(images, prompts)


def check_count(count: int, limits: Limits) -> None:
    """UserError for no images, or too many."""
    if count < 1:
        raise UserError(f"got no image, allowed are 1 to {limits.images} a request")
    if count > limits.images:
        raise TooLarge(
            f"got {count} images, allowed are 1 to {limits.images} a request: send several requests, or start the "
            "server with a larger --max-images"
        )


def limited(request: Request, limit: int) -> Request:
    """The same request, whose body is refused as soon as more than `limit` bytes of it have come, whatever it said before."""
    line = (
        f"the body has more than {limit / 1e6:g} MB, which are allowed: send fewer images a request, or start the "
        "server with a larger --max-request-mb"
    )
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > limit:
        raise TooLarge(line)
    came = 0

    async def receive() -> Any:
        nonlocal came
        message = await request.receive()
        came += len(message.get("body", b""))
        if came > limit:
            raise TooLarge(line)
        return message

    return Request(request.scope, receive)
