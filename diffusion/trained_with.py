"""How the pictures were drawn that a tuned model learnt from: drawn otherwise, it may not show what it learnt."""

import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mmrlhf.runs import run_settings

DRAWN_WITH = ("num_steps", "guidance_scale", "size")


def tell_of_other_drawing(config: Any, model: str, lora: Path | None) -> None:
    """One line on stderr where a run's weights are drawn from with other steps, guidance or size than the run drew with.

    `config` has `DRAWN_WITH`. Silent about weights that have no run's config.json beside them.
    """
    other = {
        name: value
        for name, value in trained_with(lora or Path(model).parent).items()
        if value != getattr(config, name)
    }
    if other:
        now = {name: getattr(config, name) for name in other}
        tqdm.write(
            f"the run of {lora or model} drew its pictures with {options(other)}, here they are drawn with {options(now)}: "
            "give the former to see what it saw",
            file=sys.stderr,
        )


def options(values: dict[str, Any]) -> str:
    """Values as on the command line, by their names."""
    given = ((f"--{name.replace('_', '-')}", value) for name, value in values.items())
    return " ".join(f"no {name}" if value is None else f"{name} {value:g}" for name, value in given)


def trained_with(folder: Path) -> dict[str, Any]:
    """What a run's folder says of `DRAWN_WITH`; nothing where it is not such a folder."""
    said = run_settings(folder)
    return {name: said[name] for name in DRAWN_WITH} if said.keys() >= {*DRAWN_WITH} else {}
