"""Rewards by name or folder: `load_reward` is what every `--reward` goes through."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mmrlhf.errors import UserError
from mmrlhf.rewards.clip import SETTINGS, CLIPReward
from mmrlhf.rewards.rules.combine_file import load_combination
from mmrlhf.rewards.rules.python_function import FunctionReward
from mmrlhf.rewards.rules.simple import Brightness, Colourfulness, JpegSize, Redness, Warmth
from mmrlhf.rewards.rules.word_coverage import WordCoverage
from mmrlhf.types import Reward

if TYPE_CHECKING:
    from mmrlhf.rewards.language.model import LanguageReward

# name -> what makes it; the models among them are loaded only then
REWARDS: dict[str, Callable[[], Reward]] = {
    "jpeg-size": JpegSize,
    "jpeg-compressibility": lambda: JpegSize(sign=-1),
    "brightness": Brightness,
    "colourfulness": Colourfulness,
    "redness": Redness,
    "warmth": Warmth,
    "tiny-clip": lambda: CLIPReward.from_pretrained("tiny-clip"),
    "word-coverage": lambda: WordCoverage.from_pretrained("tiny-clip"),
    "pickscore": lambda: CLIPReward.from_pretrained("yuvalkirstain/PickScore_v1"),
}


def load_reward(name: str | Path) -> Reward:
    """A reward of `REWARDS`, a folder that `mmrlhf reward train` wrote, what others published (a CLIPModel's folder, or a file
    of weights, see `mmrlhf.rewards.published`), python:FILE.py:FUNCTION, or the YAML file of a combination.

    After a trained folder may stand settings, as in `runs/reward:pessimism=1,criterion=safety`. UserError for anything else.
    It is loaded once, here, never at a call.
    """
    if str(name) in REWARDS:
        return REWARDS[str(name)]()
    if str(name).startswith("python:"):
        return FunctionReward(str(name))
    if str(name).endswith((".yaml", ".yml")):
        return load_combination(Path(name))
    folder = Path(name)
    if (folder / SETTINGS).is_file():
        return load_trained(folder)
    if is_published(folder):
        from mmrlhf.rewards.published import load_published

        return load_published(folder)
    before, colon, given = str(name).rpartition(":")
    if colon and (Path(before) / SETTINGS).is_file():
        return CLIPReward.load(before).but(**changes_of(given))
    what = (
        "holds no reward" if folder.is_dir() else "is a file" if folder.exists() else "is neither a name nor a folder"
    )
    raise UserError(
        f"reward '{name}' {what}: allowed are {', '.join(REWARDS)}, a folder that `mmrlhf reward train` wrote, "
        "a published scorer, python:FILE.py:FUNCTION, or a combination's FILE.yaml"
    )


def load_trained(folder: Path) -> "CLIPReward | LanguageReward":
    """The reward that `mmrlhf reward train` wrote: one that reads, or an image-text one."""
    if kind_of(folder) != "language":
        return CLIPReward.load(folder)
    from mmrlhf.rewards.language.model import LanguageReward

    return LanguageReward.load(folder)


def kind_of(folder: Path) -> str:
    """What reward.json says that a reward is; "" where there is none."""
    try:
        return str(json.loads((folder / SETTINGS).read_text(encoding="utf-8"))["kind"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def is_published(path: Path) -> bool:
    """Whether it is a file of weights, or a folder that holds one or a model."""
    wanted = ("config.json", "open_clip_config.json", "*.pth", "HPS*.pt")
    return path.suffix in (".pt", ".pth", ".safetensors") or any(any(path.glob(name)) for name in wanted)


def changes_of(text: str) -> dict[str, str | float]:
    """`pessimism=1,criterion=safety` as the arguments of `CLIPReward.but`."""
    changes: dict[str, str | float] = {}
    for part in text.split(","):
        key, _, value = part.partition("=")
        if key not in ("criterion", "pessimism", "abstain_above"):
            raise UserError(
                f"the settings after a reward's folder got '{key}', allowed are criterion, pessimism, abstain_above"
            )
        try:
            changes[key] = value if key == "criterion" else float(value)
        except ValueError:
            raise UserError(f"{key} got '{value}', allowed is a number") from None
    return changes
