"""Processes and Ray choose what one process chooses, and tell what went wrong."""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmrlhf.errors import UserError
from selection.choice import Choice
from selection.files import read_stacked
from selection.shard_runners import in_processes, runner
from selection.shards import Shared, Task, choose_in_shards, one_by_one
from tests.selection.data import gaussian, seeded


def chosen(path: Path, **options: Any) -> Choice:
    """12 rows of a file, two selected already, in 3 shards."""
    return choose_in_shards(read_stacked([path]), 12, shards=3, already=[5, 90], generator=seeded(), **options)


@pytest.fixture
def matrix(tmp_path: Path) -> Path:
    """A file of 200 rows; beside it one with NaN in its third shard."""
    x = gaussian(200, 6)
    np.save(tmp_path / "x.npy", x)
    x[150] = np.nan
    np.save(tmp_path / "bad.npy", x)
    return tmp_path / "x.npy"


def test_what_the_options_ask_for() -> None:
    assert runner(1, None) is one_by_one
    assert runner(2, None).keywords == {"workers": 2}  # type: ignore[attr-defined]
    assert runner(1, "local").keywords == {"address": "local"}  # type: ignore[attr-defined]


def test_processes_choose_the_same(matrix: Path) -> None:
    alone, together = (chosen(matrix, strategy="facility-location", run=run) for run in (one_by_one, runner(2, None)))
    assert (alone.indices == together.indices).all() and alone.gains == pytest.approx(together.gains)


@pytest.mark.slow
def test_bad_rows_found_by_a_process_are_told(matrix: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="shard 2, which starts at row 133, of .*bad.npy: row 17 of the embeddings"):
        chosen(tmp_path / "bad.npy", run=runner(2, None))


def die(task: Task, shared: Shared) -> Choice:
    """A worker that is killed."""
    os._exit(9)


@pytest.mark.slow
def test_a_worker_that_dies_is_told(matrix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selection.shard_runners.choose_in_shard", die)
    with pytest.raises(UserError, match="one of 2 worker processes died.*fewer --workers or more --shards"):
        chosen(matrix, run=runner(2, None))
    assert list(in_processes([], Shared("kcenter", 0.0, (), gaussian(0, 6), None, 9), workers=2)) == []


def test_without_ray_it_is_named(matrix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"--ray needs the package ray.*pip install 'mmrlhf\[ray\]'"):
        chosen(matrix, run=runner(1, "local"))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of Ray's own
def test_ray_chooses_the_same(matrix: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    for address in ("127.0.0.1:1", "nowhere", "127.0.0.1:70000"):
        with pytest.raises(
            UserError, match=f"--ray got {address}, where no Ray answers .*, allowed are HOST:PORT, auto"
        ):
            chosen(matrix, run=runner(1, address))
    for strategy in ("kcenter", "facility-location"):
        alone, together = (chosen(matrix, strategy=strategy, run=run) for run in (one_by_one, runner(1, "local")))
        assert (alone.indices == together.indices).all() and alone.gains == pytest.approx(together.gains)
    with pytest.raises(UserError, match="^shard 2, which starts at row 133, of .*bad.npy: row 17 of the embeddings"):
        chosen(tmp_path / "bad.npy", run=runner(1, "local"))
