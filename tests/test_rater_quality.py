"""Shares of a rater's answers: against scipy, and by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from mmrlhf.errors import UserError
from mmrlhf.rater_quality import fails_checks, left_shares, share_of, wilson
from mmrlhf.types import Preference


@given(st.integers(1, 400).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
def test_the_interval_is_scipy_s_and_holds_the_share(numbers: tuple[int, int]) -> None:
    successes, count = numbers
    expected = binomtest(successes, count).proportion_ci(method="wilson")
    low, high = wilson(successes, count)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= low <= successes / count <= high <= 1


def test_the_interval_s_bounds_solve_its_equation() -> None:
    """Wilson's bounds p are where |share - p| is z standard errors at p itself."""
    for bound in wilson(3, 17, level=0.9):
        assert abs(3 / 17 - bound) == pytest.approx(1.6448536269514722 * math.sqrt(bound * (1 - bound) / 17))


@pytest.mark.parametrize("numbers", [(-1, 3), (4, 3), (1, 3, 1.0), (0, -1)])
def test_what_is_no_share_is_refused(numbers: tuple) -> None:
    with pytest.raises(UserError, match="Wilson's interval got .* allowed is 0 to count"):
        wilson(*numbers)


def test_nothing_counted_says_nothing() -> None:
    share = share_of(0, 0)
    assert math.isnan(share.share) and share[1:] == (0.0, 1.0, 0)


def test_the_left_one_is_counted_by_the_screen() -> None:
    def said(annotator: str, label: float, shown: tuple[str, str]) -> Preference:
        return Preference("p", ("a", "b"), label, annotator, "human", shown)

    answers = [
        said("ada", 1.0, ("a", "b")), said("ada", 0.0, ("b", "a")), said("ada", 0.75, ("b", "a")), said("ada", 0.5, ("a", "b")),
        said("bo", 0.0, ("a", "b")), said("cy", 0.5, ("a", "b")),
    ]  # fmt: skip
    found = left_shares(answers)
    assert {name: (share.share, share.answers) for name, share in found.items()} == {"ada": (2 / 3, 3), "bo": (0.0, 1)}
    assert found["ada"] == share_of(2, 3)


@pytest.mark.parametrize(
    ("passed", "asked", "fails"), [(0, 4, False), (0, 5, True), (1, 5, True), (2, 5, False), (4, 10, True), (70, 100, False)]
)  # fmt: skip
def test_nobody_fails_by_chance_alone(passed: int, asked: int, fails: bool) -> None:
    assert fails_checks(passed, asked, 0.7) is fails
    assert not fails_checks(passed, asked, 0.0)
