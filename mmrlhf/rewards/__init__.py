"""Rewards by name or folder: `load_reward` is what every `--reward` goes through."""

from collections.abc import Callable
from pathlib import Path

from mmrlhf.errors import UserError
from mmrlhf.rewards.clip import SETTINGS, CLIPReward
from mmrlhf.rewards.simple import Brightness, Colourfulness, JpegSize, Redness, Warmth
from mmrlhf.types import Reward

# name -> what makes it; the models among them are loaded only then
REWARDS: dict[str, Callable[[], Reward]] = {
    "jpeg-size": JpegSize,
    "jpeg-compressibility": lambda: JpegSize(sign=-1),
    "brightness": Brightness,
    "colourfulness": Colourfulness,
    "redness": Redness,
    "warmth": Warmth,
    "tiny-clip": lambda: CLIPReward.from_pretrained("tiny-clip"),
    "pickscore": lambda: CLIPReward.from_pretrained("yuvalkirstain/PickScore_v1"),
}


def load_reward(name: str | Path) -> Reward:
    """A reward of `REWARDS`, a folder that `mmrlhf reward train` wrote, or the folder of a CLIPModel (its plain score).

    UserError for anything else. It is loaded once, here, never at a call.
    """
    if str(name) in REWARDS:
        return REWARDS[str(name)]()
    folder = Path(name)
    if (folder / SETTINGS).is_file():
        return CLIPReward.load(folder)
    if (folder / "config.json").is_file():
        return CLIPReward.from_pretrained(folder)
    what = (
        "holds no reward" if folder.is_dir() else "is a file" if folder.exists() else "is neither a name nor a folder"
    )
    raise UserError(
        f"reward '{name}' {what}: allowed are {', '.join(REWARDS)}, or a folder that `mmrlhf reward train` wrote"
    )
