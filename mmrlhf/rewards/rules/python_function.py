"""The user's own function as a reward: `--reward python:package.module:function` or `python:path/to/file.py:function`."""

import contextlib
import hashlib
import importlib
import importlib.util
import operator
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mmrlhf.errors import UserError
from mmrlhf.types import Images

PREFIX = "python:"
ANSWER = "a tensor, an array or a list of one number an image, NaN to abstain"


class FunctionReward:
    """What a function of the user's says: (images, prompts) -> one number an image; it is pickled as a reference.

    `reference` is `module:name` or `file.py:name`; a class named so is called once without arguments, and its object is the
    function. Gradients reach the images where the function has an attribute `differentiable` that is true. It must score each
    image by itself. UserError where it is not found, fails, or answers with anything but one number an image.
    """

    def __init__(self, reference: str) -> None:
        self.reference = absolute(reference.removeprefix(PREFIX))
        self.function = load_function(self.reference)
        self.differentiable = bool(getattr(self.function, "differentiable", False))

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return FunctionReward, (self.reference,)

    def __call__(self, images: Images, prompts: Sequence[str]) -> Float[Tensor, " b"]:
        wanted = torch.is_grad_enabled() and self.differentiable
        try:
            with torch.set_grad_enabled(wanted):
                scores = checked(self.function(images, list(prompts)), images)
        except UserError as error:
            raise UserError(f"reward {PREFIX}{self.reference} {error}") from error
        except Exception as error:  # it may raise anything
            raise UserError(f"reward {PREFIX}{self.reference} failed with {described(error)}: mend it") from error
        if wanted and images.requires_grad and len(scores) and not scores.requires_grad:
            raise UserError(
                f"reward {PREFIX}{self.reference} says differentiable, but its scores do not depend on the images: compute "
                "them with torch from the images, or leave the attribute out"
            )
        return scores


def checked(answer: Any, images: Images) -> Float[Tensor, " b"]:
    """What a function returned as one score an image, on their device. UserError, the end of a sentence, for anything else."""
    if not isinstance(answer, Tensor | np.ndarray | list | tuple):
        raise UserError(f"returned a {type(answer).__name__}, allowed is {ANSWER}")
    try:
        scores = torch.as_tensor(np.array(answer) if isinstance(answer, np.ndarray) else answer, device=images.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"returned {str(answer)[:60]} ({str(error)[:100]}), allowed is {ANSWER}") from error
    if scores.shape != (len(images),) or scores.is_complex():
        kind = "complex numbers" if scores.is_complex() else f"shape {tuple(scores.shape)}"
        raise UserError(f"returned {kind} for {len(images)} images, allowed is {ANSWER}: shape ({len(images)},)")
    if scores.isinf().any():
        raise UserError(f"returned {float(scores[scores.isinf()][0])}, allowed are finite numbers, and NaN to abstain")
    return scores if scores.dtype in (torch.float32, torch.float64) else scores.float()


def absolute(reference: str) -> str:
    """The reference with the full path of its file, so that it means the same in every process. UserError for no reference."""
    place, colon, name = reference.rpartition(":")
    if not place or not all(part.isidentifier() for part in name.split(".")):
        raise UserError(
            f"reward '{PREFIX}{reference}' names no function: write {PREFIX}package.module:function or "
            f"{PREFIX}path/to/file.py:function"
        )
    return f"{Path(place).expanduser().resolve()}{colon}{name}" if place.endswith(".py") else reference


def load_function(reference: str) -> Callable[..., Any]:
    """The function that an absolute reference names, its module imported."""
    place, _, name = reference.rpartition(":")
    module = import_file(Path(place)) if place.endswith(".py") else import_module(place)
    try:
        found = operator.attrgetter(name)(module)
    except AttributeError as error:
        names = ", ".join(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
        raise UserError(f"{place} has no '{name}': there are {names or 'no functions'}") from error
    if isinstance(found, type):
        try:
            found = found()
        except Exception as error:
            raise UserError(
                f"{PREFIX}{reference} cannot be called without arguments ({described(error)}): mend it"
            ) from error
    if not callable(found):
        raise UserError(f"{PREFIX}{reference} is a {type(found).__name__}, allowed is a function of images and prompts")
    return found


def import_module(name: str) -> ModuleType:
    """A module that is installed or lies in the working directory."""
    try:
        with importable(Path.cwd()):
            return importlib.import_module(name)
    except Exception as error:
        raise UserError(
            f"cannot import {name} ({described(error)}): install it, or go to the folder it is in"
        ) from error


def import_file(path: Path) -> ModuleType:
    """The module in a file, which may import its neighbours; run once a process."""
    if not path.is_file():
        raise UserError(f"no file {path}: write {PREFIX}path/to/file.py:function")
    name = f"mmrlhf_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # a file that ends in .py has both
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        with importable(path.parent):
            spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UserError(f"cannot import {path} ({described(error)}): mend it") from error
    return module


@contextlib.contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Inside, modules in `folder` can be imported, after everything that is installed."""
    sys.path.append(str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def described(error: Exception) -> str:
    """An exception of the user's code in one line: its class, its message, and the line of theirs that raised it."""
    others = (__file__, sys.prefix, sys.base_prefix, "<")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(others)]
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__} ({' '.join(str(error).split())[:200]}){where}"
