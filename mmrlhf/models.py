"""Where `--model` points: a tiny name, a local folder, or a hub id."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmrlhf.errors import UserError

TINY_FOLDER = Path(__file__).parent / "tiny" / "models"
TINY_NAMES = ("tiny-sd", "tiny-clip", "tiny-llava")


def resolve_model(name: str) -> str:
    """A folder or hub id that `from_pretrained` takes. UserError for a folder that is not there."""
    if name in TINY_NAMES:
        return str(TINY_FOLDER / name)
    path = Path(name)
    if path.is_dir():
        return str(path)
    if path.exists():
        raise UserError(f"model {name} is a file: give the folder that `save_pretrained` wrote, or a hub id")
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(
            f"unknown model '{name}': allowed are {', '.join(TINY_NAMES)}, a local folder, or a hub id owner/name"
        )
    return name


@contextmanager
def quiet_loading(*others: Any) -> Iterator[None]:
    """Inside, transformers draws no progress bars of its own, nor do `others`: logging modules of its kind, as diffusers has."""
    import transformers

    parts = (transformers.utils.logging, *others)
    shown = [part.is_progress_bar_enabled() for part in parts]
    for part in parts:
        part.disable_progress_bar()
    try:
        yield
    finally:
        for part, was_shown in zip(parts, shown, strict=True):
            if was_shown:
                part.enable_progress_bar()


def pick_device(name: str) -> Any:
    """`auto` is the first GPU where there is one, else the CPU. UserError for a device that is not there."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            f"--device got '{name}' ({reason}), allowed are auto, cpu, cuda, cuda:1 … where there is one"
        ) from error
