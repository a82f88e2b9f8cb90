"""A run's figures and pictures in experiment trackers (TensorBoard, Weights & Biases, MLflow …), through accelerate."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmrlhf.distributed import is_main_process
from mmrlhf.errors import UserError
from mmrlhf.images import to_pil
from mmrlhf.types import Images

PROJECT = "mmrlhf"


def open_trackers(names: str, folder: Path, settings: Mapping[str, Any]) -> list[Any]:
    """accelerate's trackers of the names, with commas between them, told of the run's settings; none in other processes.

    Those that write files do so in `folder`. UserError for a name that accelerate does not know, or whose package is missing.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if not wanted or not is_main_process():
        return []
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    PartialState()
    for name in wanted:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise UserError(f"--trackers got '{name}', allowed are {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}")
        if name not in {str(each) for each in get_available_trackers()}:
            raise UserError(f"--trackers got '{name}', whose package is not installed: pip install {name}")
    opened = []
    for name in wanted:
        kind = LOGGER_TYPE_TO_CLASS[name]
        tracker = kind(PROJECT, folder) if kind.requires_logging_directory else kind(PROJECT)
        if hasattr(tracker, "start"):
            tracker.start()
        tracker.store_init_configuration({key: plain(value) for key, value in settings.items()})
        opened.append(tracker)
    return opened


def plain(value: Any) -> Any:
    """A setting as trackers take it."""
    return value if isinstance(value, bool | int | float | str) else str(value)


def log_figures(trackers: list[Any], line: Mapping[str, Any]) -> None:
    """What is a number in an epoch's line of metrics."""
    figures = {name: value for name, value in line.items() if isinstance(value, bool | int | float) and name != "epoch"}
    for tracker in trackers:
        tracker.log(figures, step=line["epoch"])


def log_pictures(trackers: list[Any], images: Images, epoch: int) -> None:
    """Pictures, in the trackers that take some."""
    import numpy as np

    for tracker in trackers:
        if hasattr(tracker, "log_images"):
            how = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images(
                {"samples": np.stack([np.asarray(to_pil(image)) for image in images])}, step=epoch, **how
            )


def close_trackers(trackers: list[Any]) -> None:
    """Write out what they hold."""
    for tracker in trackers:
        tracker.finish()
