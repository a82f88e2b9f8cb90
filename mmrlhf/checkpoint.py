"""Atomic checkpoints: a kill at any instant leaves the previous file or the new one, never half of one."""

import os
from pathlib import Path
from typing import Any

import torch


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write `state` (tensors and plain containers) to `path`; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + f".{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The state saved at `path`, or None where there is none. Only tensors and plain data are read (no pickled code)."""
    if not path.exists():
        return None
    return torch.load(path, map_location="cpu", weights_only=True)
