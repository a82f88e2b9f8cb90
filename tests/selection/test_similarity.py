"""Similarity to queries: cosines one by one, several queries, ties, and queries that are none."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings

from mmrlhf.errors import UserError
from selection.choice import Choice
from selection.similarity import most_similar
from tests.selection.data import gaussian, seeded
from tests.selection.invariants import Request, check_choice, check_refusals, requests, streamed


def like_ones(embeddings: np.ndarray, budget: int, **options: object) -> Choice:
    """Most similar to a row of ones or its negative."""
    ones = np.ones((1, max(1, embeddings.shape[1])))
    return partial(most_similar, queries=np.concatenate([ones, -ones]))(embeddings, budget, **options)  # type: ignore[arg-type]


def test_the_largest_cosine_to_any_query() -> None:
    x, queries = gaussian(200, 6) * np.float32(5), gaussian(3, 6, 1, np.float64) * 1e200
    choice = most_similar(x, 30, already=[8, 9], generator=seeded(), queries=queries)
    table = np.array(
        [[row @ (q / 1e200) / np.linalg.norm(row) / np.linalg.norm(q / 1e200) for q in queries] for row in x]
    )
    order = [index for index in np.argsort(-table.max(axis=1)).tolist() if index not in (8, 9)]
    assert choice.indices.tolist() == order[:30]
    np.testing.assert_allclose(choice.gains, table.max(axis=1)[order[:30]], atol=1e-6)
    nearest = table.argmax(axis=1)
    assert [int(reason.rsplit(" ", 1)[1]) for reason in choice.why] == nearest[choice.indices].tolist()


def test_a_row_finds_itself_and_its_copies_lowest_first() -> None:
    x = np.repeat(gaussian(10, 37), 5, axis=0)
    choice = most_similar(x, 5, generator=seeded(), queries=x[32:33] * np.float32(3))
    assert choice.indices.tolist() == [30, 31, 32, 33, 34]
    assert choice.gains.tolist() == pytest.approx([1] * 5, abs=1e-6)


def test_a_row_of_zeros_lies_between_like_and_unlike() -> None:
    x = np.array([[-1.0, 0], [0, 0], [1, 0]])
    choice = most_similar(x, 3, generator=seeded(), queries=np.array([[2.0, 0.0]]))
    assert choice.indices.tolist() == [2, 1, 0] and choice.gains.tolist() == pytest.approx([1, 0, -1])


def test_rows_read_from_a_file_in_blocks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x = gaussian(10_000, 4)
    expected = most_similar(x, 50, generator=seeded(), queries=x[:2])
    streamed(monkeypatch, "similarity")
    again = most_similar(x, 50, generator=seeded(), queries=x[:2])
    assert again.indices.tolist() == expected.indices.tolist() and (again.gains == expected.gains).all()


@settings(max_examples=60, deadline=None)
@given(request=requests())
def test_properties(request: Request) -> None:
    choice = check_choice(like_ones, request)
    assert (np.diff(choice.gains) <= 0).all()


def test_what_cannot_be_done_is_told() -> None:
    check_refusals(like_ones)
    x = gaussian(4, 2)
    with pytest.raises(UserError, match="queries have shape 1 x 3, allowed is at least one of 2 columns"):
        most_similar(x, 1, generator=seeded(), queries=np.ones((1, 3)))
    with pytest.raises(UserError, match="queries have shape 0 x 2"):
        most_similar(x, 1, generator=seeded(), queries=np.ones((0, 2)))
    for wrong in (0.0, np.nan, np.inf):
        with pytest.raises(UserError, match="query 1 is zero or holds NaN or infinity"):
            most_similar(x, 1, generator=seeded(), queries=np.array([[1.0, 1.0], [wrong, wrong]]))
