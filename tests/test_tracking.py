"""Figures and pictures arrive in a tracker that is read back; names are checked before anything is written."""

from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmrlhf.errors import UserError
from mmrlhf.tracking import close_trackers, log_figures, log_pictures, open_trackers


def test_tensorboard_gets_figures_and_pictures(tmp_path: Path) -> None:
    trackers = open_trackers("tensorboard", tmp_path, {"model": "tiny-sd", "epochs": 2, "out": tmp_path, "size": None})
    for epoch, reward in enumerate((0.5, 0.75)):
        log_figures(trackers, {"epoch": epoch, "reward_mean": reward, "problems": ["flat reward"]})
    log_pictures(trackers, torch.rand(3, 3, 16, 24), 1)
    close_trackers(trackers)
    read = EventAccumulator(str(tmp_path / "mmrlhf"))
    read.Reload()
    assert [(event.step, event.value) for event in read.Scalars("reward_mean")] == [(0, 0.5), (1, 0.75)]
    assert read.Tags()["scalars"] == ["reward_mean"]
    (pictures,) = {event.step for name in read.Tags()["images"] for event in read.Images(name)}
    assert pictures == 1


def test_no_name_opens_nothing(tmp_path: Path) -> None:
    assert open_trackers("", tmp_path, {}) == [] == open_trackers(" , ", tmp_path, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("tensorbord", "--trackers got 'tensorbord', allowed are .*tensorboard.*wandb"),
        ("tensorboard, clearml", "--trackers got 'clearml', whose package is not installed: pip install clearml"),
    ],
)
def test_bad_names_are_refused_before_anything_is_written(tmp_path: Path, names: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_trackers(names, tmp_path / "out", {})
    assert not (tmp_path / "out").exists()
