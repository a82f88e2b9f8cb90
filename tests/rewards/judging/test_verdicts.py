"""Verdicts in both orders: averaged by hand, a bias measured and cancelled, and what a kill leaves behind."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

from mmrlhf.rewards.judging.report import LEFT, RIGHT, position_bias
from mmrlhf.rewards.judging.verdicts import Judge, RewardJudge, both_orders, judge_tasks, verdict
from mmrlhf.rewards.rules.simple import Redness
from mmrlhf.store import Store, Task
from tests.small_clip import noisy_colour


class Biased:
    """Prefers the higher number in a file's name, by a logistic rule, and leans to the left by `lean`."""

    symmetric = False

    def __init__(self, lean: float, dies_at: int | None = None) -> None:
        self.lean, self.dies_at = lean, dies_at
        self.asked: list[tuple[str, str]] = []

    def __call__(self, prompts: Sequence[str], left: Sequence[Path], right: Sequence[Path]) -> np.ndarray:
        if self.dies_at is not None and len(self.asked) >= self.dies_at:
            raise KeyboardInterrupt
        self.asked += [(a.stem, b.stem) for a, b in zip(left, right, strict=True)]
        quality = np.array([[float(path.stem) for path in side] for side in (left, right)])
        return expit(quality[0] - quality[1] + self.lean)


QUALITIES = {"a": 0.0, "b": 0.3, "c": -0.5, "d": 2.0, "e": 0.1}
PATHS = {key: Path(f"{quality}.png") for key, quality in QUALITIES.items()}
TASKS = [Task("p", (a, b)) for a in QUALITIES for b in QUALITIES if a < b]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(str(tmp_path / "ratings.db"))
    yield opened
    opened.close()


def test_one_pair_by_hand(store: Store) -> None:
    rater = Biased(lean=1.0)
    assert isinstance(rater, Judge)
    assert judge_tasks(rater, store, [Task("p", ("a", "b"))], PATHS, name="ai") == (1, 0)
    assert rater.asked == [("0.0", "0.3"), ("0.3", "0.0")]
    (found,) = store.preferences()
    left, right = expit(-0.3 + 1), 1 - expit(0.3 + 1)
    assert found.extra == {LEFT: pytest.approx(left), RIGHT: pytest.approx(right)}
    assert found.label == pytest.approx((left + right) / 2)
    assert (found.annotator, found.source, found.items, found.prompt) == ("ai", "ai", ("a", "b"), "p")
    assert found.time and found.seconds >= 0


def test_a_lean_is_measured_and_cancelled(store: Store) -> None:
    lean = 0.9
    assert judge_tasks(Biased(lean), store, TASKS, PATHS, name="ai", batch_size=3) == (len(TASKS), 0)
    verdicts = store.preferences()
    gaps = np.array([QUALITIES[v.items[0]] - QUALITIES[v.items[1]] for v in verdicts])
    assert [v.label > 0.5 for v in verdicts] == (gaps > 0).tolist()
    figures = position_bias(verdicts)
    assert figures is not None
    assert figures["p_left"] == pytest.approx((expit(gaps + lean) + expit(-gaps + lean)).mean() / 2)
    assert figures["flipped"] == pytest.approx((np.abs(gaps) < lean).mean())
    assert figures["p_left_ci95"][0] <= figures["p_left"] <= figures["p_left_ci95"][1]
    assert figures["pairs"] == len(TASKS)
    # the first order alone would have been wrong
    assert [v.extra[LEFT] > 0.5 for v in verdicts] != (gaps > 0).tolist()


def test_ties_and_abstentions() -> None:
    def label(left: float, right: float, threshold: float) -> float | None:
        found = verdict(TASKS[0], left, right, name="ai", tie_threshold=threshold, seconds=0.0)
        return None if found is None else found.label

    assert label(0.9, 0.2, 0.0) == pytest.approx(0.55)
    assert label(0.9, 0.2, 0.11) == 0.5
    assert label(0.9, 0.2, 0.09) == pytest.approx(0.55)
    assert label(math.nan, 0.2, 0.0) is None and label(0.2, math.nan, 0.0) is None


def test_abstentions_are_counted_and_are_no_ties(store: Store) -> None:
    """Of one order or both; whatever the threshold."""

    class Silent(Biased):
        def __call__(self, prompts: Sequence[str], left: Sequence[Path], right: Sequence[Path]) -> np.ndarray:
            found = super().__call__(prompts, left, right)
            return np.where([path == PATHS["a"] for path in left], math.nan, found)

    assert judge_tasks(Silent(0.0), store, TASKS, PATHS, name="ai", batch_size=3, tie_threshold=1.0) == (6, 4)
    votes = store.preferences()
    assert len(votes) == 6 and all(vote.label == 0.5 and "a" not in vote.items for vote in votes)


def test_a_kill_loses_no_verdict_and_repeats_none(store: Store, tmp_path: Path) -> None:
    first = Biased(0.0, dies_at=8)  # after the second batch of two, in both orders
    with pytest.raises(KeyboardInterrupt):
        judge_tasks(first, store, TASKS, PATHS, name="ai", batch_size=2)
    store.close()
    again = Store(str(tmp_path / "ratings.db"))
    done = {Task(p.prompt, p.items).key for p in again.preferences()}
    assert len(done) == 4
    second = Biased(0.0)
    judge_tasks(second, again, [task for task in TASKS if task.key not in done], PATHS, name="ai", batch_size=2)
    assert len(first.asked) + len(second.asked) == 2 * len(TASKS)
    assert len(again.preferences(include_superseded=True)) == len(TASKS)
    # the same verdict sent twice is one
    assert judge_tasks(Biased(0.0), again, TASKS, PATHS, name="ai") == (0, 0)
    assert judge_tasks(Biased(0.0), again, TASKS, PATHS, name="another") == (len(TASKS), 0)
    again.close()


def test_a_reward_as_a_judge(tmp_path: Path) -> None:
    import torch

    generator = torch.Generator().manual_seed(0)
    red = noisy_colour(tmp_path / "red.png", (0.9, 0.3, 0.3), generator)
    blue = noisy_colour(tmp_path / "blue.png", (0.3, 0.3, 0.9), generator, size=16)

    class Counting(Redness):
        scored = 0

        def __call__(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
            Counting.scored += len(images)
            return super().__call__(images, prompts)

    rater = RewardJudge(Counting(), temperature=0.5)
    shown_left, shown_right = both_orders(rater, ["p"] * 2, [red, red], [blue, blue])
    from mmrlhf.images import load_image

    scores = [float(Redness()(load_image(path).unsqueeze(0), ["p"])) for path in (red, blue)]
    np.testing.assert_allclose(shown_left, expit((scores[0] - scores[1]) / 0.5), rtol=1e-5)
    assert (shown_left == shown_right).all() and Counting.scored == 2
    np.testing.assert_allclose(rater(["p"], [blue], [red]), 1 - shown_left[:1], rtol=1e-5)
