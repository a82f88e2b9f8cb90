"""What the page at /docs says of requests and answers."""

from typing import Any

from pydantic import BaseModel

DESCRIPTION = """Scores images for their prompts; higher is better. `POST /score` takes JSON or a form; `null` is an abstention.
Images are PNG, JPEG, WebP, BMP or GIF files. Errors are one line in `detail`."""

# an orange pixel as a PNG, so that the page's "Try it out" works as it is
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP438AAAAQBAYDFKhhdAAAAAElFTkSuQmCC"


class Scores(BaseModel):
    """A score an image, in order; null where the reward abstains."""

    scores: list[float | None]

    model_config = {"json_schema_extra": {"example": {"scores": [0.73]}}}


class Health(BaseModel):
    """Whether the server scores, and with what."""

    ready: bool
    reward: str
    version: str


class Refusal(BaseModel):
    """One line that says what was got, what is allowed, and how to mend it."""

    detail: str


REFUSALS: dict[int | str, dict[str, Any]] = {
    401: {"model": Refusal, "description": "No valid token"},
    413: {"model": Refusal, "description": "More, or larger, than the server takes"},
    415: {"model": Refusal, "description": "Neither JSON nor a form"},
    422: {"model": Refusal, "description": "No images with their prompts"},
    500: {"model": Refusal, "description": "The reward failed on these images"},
}

ITEM = {
    "type": "object",
    "required": ["prompt", "image"],
    "properties": {
        "prompt": {"type": "string"},
        "image": {"type": "string", "contentEncoding": "base64", "description": "The image file, in base64"},
    },
}
JSON_SCHEMA = {"type": "object", "required": ["items"], "properties": {"items": {"type": "array", "items": ITEM}}}
FORM_SCHEMA = {
    "type": "object",
    "required": ["images", "prompts"],
    "properties": {
        "images": {"type": "array", "items": {"type": "string", "format": "binary"}},
        "prompts": {"type": "array", "items": {"type": "string"}, "description": "One an image, in the same order"},
    },
}
SCORE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": JSON_SCHEMA,
                "example": {"items": [{"prompt": "an orange square", "image": PIXEL}]},
            },
            "multipart/form-data": {
                "schema": FORM_SCHEMA,
                "encoding": {"prompts": {"style": "form", "explode": True}},
            },
        },
    }
}
