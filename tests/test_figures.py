"""An epoch's figures are the means over its samples, by hand."""

import pytest

from mmrlhf.figures import Figures


def test_batches_count_by_their_samples() -> None:
    seen = Figures()
    seen.add(1, {"loss": 4.0})
    seen.add(3, {"loss": 0.0})
    assert seen.means() == {"loss": 1.0}
    assert seen.of_epoch([1.0, 2.0]) == {"loss": 1.0, "grad_norm": 1.5, "updates": 2}


def test_of_ratios_the_extremes_are_kept() -> None:
    seen = Figures()
    seen.add(2, {"ratio_min": 0.9, "ratio_max": 1.1})
    seen.add(2, {"ratio_min": 0.7, "ratio_max": 1.0})
    assert seen.means() == pytest.approx({"ratio_min": 0.7, "ratio_max": 1.1})
