"""What every selector must hold, whatever the data, and what it must refuse."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import strategies as st

from mmrlhf.errors import UserError
from selection.choice import Choice
from tests.selection.data import gaussian, seeded


class Request(NamedTuple):
    """Rows with many copies, ties and zeros, some of them selected already, and how many more to choose."""

    x: np.ndarray
    budget: int
    already: list[int]
    seed: int


@st.composite
def requests(draw: st.DrawFn) -> Request:
    """Small matrices of few levels."""
    rows, columns = draw(st.integers(1, 25)), draw(st.integers(1, 3))
    values = draw(st.lists(st.integers(-1, 2), min_size=rows * columns, max_size=rows * columns))
    already = draw(st.lists(st.integers(0, rows - 1), max_size=rows - 1))
    budget = draw(st.integers(1, rows - len(set(already))))
    x = np.array(values, np.float32).reshape(rows, columns)
    return Request(x, budget, already, draw(st.integers(0, 1000)))


def check_choice(choose: Callable[..., Choice], request: Request) -> Choice:
    """The budget is met without repeats and outside `already`, with finite gains and reasons, and the same again."""
    first, again = (
        choose(request.x, request.budget, already=request.already, generator=seeded(request.seed)) for _ in "ab"
    )
    picks = first.indices.tolist()
    assert picks == again.indices.tolist() and first.why == again.why
    assert len(set(picks)) == request.budget == len(picks) == len(first.gains) == len(first.why)
    assert set(picks) <= set(range(len(request.x))) - set(request.already)
    assert np.isfinite(first.gains).all()
    return first


def check_refusals(choose: Callable[..., Choice], *, reads_values: bool = True) -> None:
    """What cannot be done is told; `choose` must take 10 rows."""
    x = gaussian(10, 3)
    with pytest.raises(UserError, match="got budget 9, allowed is 1 to 8.*2 are selected already"):
        choose(x, 9, already=[0, 1], generator=seeded())
    with pytest.raises(UserError, match="got budget 0"):
        choose(x, 0, already=[], generator=seeded())
    with pytest.raises(UserError, match="row 10 was selected already"):
        choose(x, 2, already=[10], generator=seeded())
    if not reads_values:
        return
    for value in (np.nan, np.inf, -np.inf):
        x[4, 1] = value
        with pytest.raises(UserError, match="row 4 of the embeddings holds NaN or infinity"):
            choose(x, 2, already=[], generator=seeded())
    x[4, 1] = 1e20
    with pytest.raises(UserError, match="row 4 .* above 1e\\+15"):
        choose(x, 2, already=[], generator=seeded())
    with pytest.raises(UserError, match="shape 10 x 0"):
        choose(np.zeros((10, 0), np.float32), 2, already=[], generator=seeded())


def streamed(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """Let a module read its rows anew from the source each time, as it does from a file larger than memory."""
    from selection.rows import Rows

    monkeypatch.setattr(f"selection.{module}.Rows", lambda x, unit=False: Rows(x, unit=unit, keep_bytes=0))
