"""Differences of two items' features."""

import numpy as np
import pytest

from mmrlhf.errors import UserError
from selection.pair_features import pair_differences
from tests.selection.data import gaussian


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_first_minus_second(dtype: type) -> None:
    x: np.ndarray = gaussian(30, 4).astype(dtype)
    pairs = np.random.default_rng(0).integers(30, size=(20_000, 2))
    result = pair_differences(x, pairs)
    assert result.dtype == (np.float64 if dtype is np.float64 else np.float32)
    wide = x.astype(result.dtype)
    assert (result == wide[pairs[:, 0]] - wide[pairs[:, 1]]).all()


def test_rows_that_are_not_there_are_told() -> None:
    for wrong in (-1, 3):
        with pytest.raises(UserError, match=f"a pair names row {wrong}, allowed is 0 to 2"):
            pair_differences(gaussian(3, 2), np.array([[0, 1], [2, wrong]]))
