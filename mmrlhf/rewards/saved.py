"""The settings file of a trained reward's folder: which format it has, and one line for whatever is broken in the folder."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from mmrlhf.errors import UserError


@contextmanager
def saved_settings(
    file: Path, format_number: int, kind: str, *, what: str = "reward", writer: str = "`mmrlhf reward train`"
) -> Iterator[dict[str, Any]]:
    """What a reward's `save` wrote into `file`; inside, whatever its folder lacks is a UserError of one line.

    UserError, too, where the file is missing, or of another format or kind.
    """
    folder = file.parent
    if not file.is_file():
        raise UserError(f"no {what} in {folder} ({file.name} is missing): give a folder that {writer} wrote")
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        if settings["format"] != format_number or settings["kind"] != kind:
            raise UserError(
                f"{file} has format {settings['format']} of kind {settings['kind']}, allowed is format {format_number} of kind "
                f"{kind}: train the reward again with this version"
            )
        yield settings
    except (ValueError, KeyError, TypeError, OSError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise UserError(f"the {what} in {folder} is broken ({reason}): train it again or restore its files") from error
