"""The random baseline: uniform, without repeats, outside what was selected already."""

import numpy as np
import pytest

from mmrlhf.errors import UserError
from selection.random_choice import random_choice
from tests.selection.data import gaussian, seeded


def test_every_row_is_equally_likely() -> None:
    x = gaussian(6, 1)
    counts = np.zeros(6)
    generator = seeded()
    for _ in range(2000):
        picks = random_choice(x, 2, already=[4], generator=generator).indices
        assert len(set(picks.tolist())) == 2
        counts[picks] += 1
    assert counts[4] == 0
    assert (np.abs(counts[[0, 1, 2, 3, 5]] - 800) < 100).all()  # 4.6 standard deviations


def test_a_budget_that_is_too_large_is_told() -> None:
    with pytest.raises(UserError, match="got budget 6, allowed is 1 to 5"):
        random_choice(gaussian(6, 1), 6, already=[0], generator=seeded())
