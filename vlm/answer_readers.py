"""What reads answers for a reward of their parts: a vision-language model, or an image-text model such as CLIP."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch

from mmrlhf.rewards.language.inputs import Row
from mmrlhf.rewards.segments.text import TextFeatures
from mmrlhf.runs import CONTENT, content_digest
from vlm.spans import Parts

Features = Literal["states", "clip"]
OPTIONS: dict[str, tuple[str, ...]] = {"states": ("adapter", "layers"), "clip": ("crops",)}
"""What each kind of features can be told."""
FILES = {"states": ("config.json", "*.safetensors"), "clip": CONTENT["reward"]}


@runtime_checkable
class AnswerReader(Protocol):
    """Makes features of the pieces of answers (tokens, or the parts themselves), from which a head judges the parts."""

    def check(self, rows: Sequence[Row], parts: Parts) -> None:
        """UserError for an answer that it cannot read; no picture is opened."""
        ...

    def read(self, rows: Sequence[Row], parts: Parts, *, progress: bool = False) -> TextFeatures:
        """Features of the pieces of each row's answer and their places in it, on the CPU in float32; row-independent."""
        ...

    def to(self, device: torch.device | str) -> "AnswerReader":
        """Move the model; returns itself."""
        ...


def source_of(features: Features, model: str, **options: Any) -> dict[str, Any]:
    """What `open_reader` needs, as JSON takes it, with a digest of the model's files; `options` are those of `OPTIONS`."""
    source = {"features": features, "model": model} | options
    return source | {"digest": digest_of(source)}


def saved_source(settings: dict[str, Any]) -> dict[str, Any]:
    """The same from settings that were saved with it among others; without features they are states."""
    features = settings.get("features", "states")
    return {"features": features} | {name: settings[name] for name in ("model", *OPTIONS[features], "digest")}


def digest_of(source: dict[str, Any]) -> str:
    """A digest of the files of a source's model and adapter; of a hub id, its name."""
    from mmrlhf.models import resolve_model

    where = Path(resolve_model(source["model"]))
    own = content_digest(where, FILES[source["features"]]) if where.is_dir() else source["model"]
    adapter = source.get("adapter")
    return own + (content_digest(Path(adapter), CONTENT["adapter"]) if adapter else "")


def open_reader(source: dict[str, Any], device: str) -> AnswerReader:
    """The reader that a source names, its model on `device`. UserError where that cannot be loaded."""
    if source["features"] == "clip":
        from vlm.clip_features import ClipReader

        return ClipReader.load(source, device)
    from vlm.state_features import StateReader

    return StateReader.load(source, device)
