"""The vision-language half of the loop, small: what it writes, and that a kill between its stages changes nothing."""

import json
from pathlib import Path
from typing import Any

import pytest

from mmrlhf.errors import UserError
from mmrlhf.quickstart import loop
from mmrlhf.quickstart.loop import quickstart
from mmrlhf.quickstart.run import QuickstartConfig


def small(out: Path, **changes: Any) -> QuickstartConfig:
    how: dict[str, Any] = {"only": "vlm", "marked_answers": 24, "held_out_scenes": 8, "vlm_epochs": 1}
    return QuickstartConfig(out, **how | changes)


def timeless(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if not name.startswith(("seconds", "peak_rss"))}


def test_figures_and_report_and_a_kill_between_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = quickstart(small(tmp_path / "whole"))
    assert json.loads((tmp_path / "whole" / "metrics.json").read_text()) == metrics
    assert list(metrics["seconds_by_stage"]) == ["vlm-answer", "vlm-mark", "vlm-fine-tune", "vlm-evaluate"]
    assert 0 < metrics["vlm_chair_i_before"] < 60 and metrics["vlm_coverage_before"] > 50
    low, high = metrics["vlm_chair_i_change_ci95"]
    assert low <= metrics["vlm_chair_i_change"] <= high
    page = (tmp_path / "whole" / "report.html").read_text()
    assert "annotator is simulated" in page and page.count("data:image/png") == 8 and 'class="misleading"' in page
    assert "hidden taste" not in page  # that is the other half's

    def killed(run: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(loop.VLM, "vlm-fine-tune", killed)
        with pytest.raises(KeyboardInterrupt):
            quickstart(small(tmp_path / "killed"))
    assert timeless(quickstart(small(tmp_path / "killed", resume=True))) == timeless(metrics)


def test_bad_settings_are_one_line_and_leave_nothing(tmp_path: Path) -> None:
    for change, message in (
        ({"marked_answers": 3}, "--marked-answers got 3, allowed is 20 or more"),
        ({"vlm_learning_rate": 0.0}, "--vlm-learning-rate got 0.0, allowed is above 0"),
        ({"vlm_model": "tiny-lava"}, "tiny-lava"),
    ):
        with pytest.raises(UserError, match=message):
            quickstart(small(tmp_path / "run", **change))
        assert not (tmp_path / "run").exists()
