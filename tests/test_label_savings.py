"""The benchmark of label savings: its ratios on made-up curves, what its strategies know, and what is held out."""

import numpy as np
import pytest
from jaxtyping import install_import_hook

NAMES = ("label_savings", "label_savings_report", "label_savings_strategies", "label_savings_worlds")
with install_import_hook([f"benchmarks.{name}" for name in NAMES], "beartype.beartype"):
    from benchmarks import label_savings
    from benchmarks.label_savings_report import BEYOND, POINTS, gain, needed, saving, summary, table
    from benchmarks.label_savings_strategies import MORE, STRATEGIES, fit
    from benchmarks.label_savings_worlds import SOURCES, WHITENINGS, World, features_of, people_world


def made_up(seed: int, count: int = 900) -> World:
    """Pairs on whose first feature the answers hang, with noise; half of the test pairs are the other way round."""
    random = np.random.default_rng(seed)
    z = random.standard_normal((count, 6)) * [1, 1, 1, 1, 1, 0.3]
    truth = z[:, 0] + 0.5 * z[:, 1]
    answers = (truth[:700] + 0.3 * random.logistic(size=700) > 0).astype(float)
    return World([z[:700]] * len(WHITENINGS), answers, [z[700:]] * len(WHITENINGS), truth[700:])


def test_the_scale_under_which_the_answers_are_likeliest_is_chosen() -> None:
    """What decides is long in one scaling, and as long as the noise in the other."""
    world = made_up(0)
    long, short = world.pool[0][:80] * [3, 3, 0.1, 0.1, 0.1, 0.1], world.pool[0][:80] * [0.1, 0.1, 3, 3, 3, 3]
    answers = world.answers[:80]
    assert fit([short, long], answers)[0] == 1 and fit([long, short], answers)[0] == 0
    assert fit([short, long], answers)[1].evidence == fit([long], answers)[1].evidence


def test_ratings_needed_are_interpolated_on_a_log_scale() -> None:
    points, values = [20, 40, 80], np.array([0.5, 0.6, 0.8])
    assert needed(points, values, 0.7) == pytest.approx(40 * 2**0.5)
    assert needed(points, values, 0.4) == 20
    assert needed(points, values, 0.9) == np.inf
    assert needed(points, np.array([0.9, 0.3, 0.8]), 0.7) == pytest.approx(40 * 2**0.5)  # 0.6, 0.6, 0.8


def half_as_many() -> dict[str, np.ndarray]:
    """Curves that are a straight line of log ratings, one of them shifted by a factor of two; random needs 640 for 95 %."""
    points = np.array([*POINTS, *BEYOND, 5120], float)
    random = np.log2(points)[None] / 13 + np.zeros((5, 1))
    random[:, -1] = np.log2(640) / 13 / 0.95
    return {"random": random, "twice": (np.log2(points[: len(POINTS)] * 2) / 13)[None] + np.zeros((5, 1))}


def test_half_the_ratings_are_a_ratio_of_a_half() -> None:
    assert saving(half_as_many(), "twice", 0.95) == pytest.approx((320, 0.5, 0.5, 0.5), rel=0.01)
    assert saving(half_as_many(), "random", 0.95).ratio == 1


def test_the_table_says_what_is_saved() -> None:
    heads, _, random, twice = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table(half_as_many()))
    assert dict(zip(heads[:5], random[:5], strict=True))["ratings to 95%"] == "640"
    assert twice[:6] == ["twice", *(f"{np.log2(2 * n) / 13:.3f}" for n in (40, 160, 640)), "320", "0.50 (0.50 … 0.50)"]


def test_the_gain_is_that_at_the_same_number_of_ratings() -> None:
    curves = half_as_many()
    assert gain(curves, "twice") == pytest.approx((1 / 13, 1 / 13, 1 / 13))
    curves["twice"] += np.array([[-2], [-1], [0], [1], [2]])  # seeds that differ leave it open
    mean, low, high = gain(curves, "twice")
    assert mean == pytest.approx(1 / 13) and -2 < low < 0 < high < 2
    assert summary({"sure": half_as_many(), "alone": {"random": curves["random"]}})[2].endswith(
        "(+7.7 … +7.7)** |  |  |"
    )
    assert summary({"sure": half_as_many(), "unsure": curves})[2].startswith(
        "| twice | **+7.7 (+7.7 … +7.7)** | +7.7 (-"
    )


@pytest.mark.parametrize("strategy", [*STRATEGIES, *MORE])
def test_every_strategy_learns_what_decides(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_savings, "ROUNDS", (20, 40, 80))
    monkeypatch.setattr(label_savings, "BEYOND", ())
    world = made_up(1)
    values = label_savings.curve(world, strategy, 0)
    assert len(values) == 5 + (strategy == "random") * 7
    assert values[4] > 0.75
    assert values == label_savings.curve(world, strategy, 0)


def test_what_sources_try_more_are_strategies() -> None:
    assert {name for source in SOURCES.values() for name in source.more} == set(MORE)


def test_whitening_makes_the_known_pictures_alike_in_every_direction() -> None:
    raw = np.random.default_rng(0).normal(size=(300, 5)) * [5, 4, 3, 2, 1]
    everyone = np.array([[i, 0] for i in range(300)])
    plain, _, white = features_of(raw, np.arange(300), [everyone])[0]
    np.testing.assert_allclose(np.cov((white).T), np.eye(5) / 5 * 300 / 299, atol=1e-9)
    np.testing.assert_allclose(
        np.linalg.norm(plain, axis=1) / np.linalg.norm(raw - raw[0], axis=1).clip(1e-9),
        np.where(np.arange(300) > 0, 1 / np.sqrt(((raw - raw.mean(axis=0)) ** 2).sum(axis=1).mean()), 0),
        rtol=1e-6,
    )


def test_nobody_s_label_is_on_both_sides_and_no_pair_is() -> None:
    random = np.random.default_rng(0)
    counts = random.integers(4, 60, size=(130, 3))
    features = random.standard_normal((130, 80))
    world = people_world(features, counts, 0)
    assert set(np.unique(world.answers)) <= {0.0, 0.5, 1.0}
    assert not (np.abs(world.pool[0][:200, None] - world.test[0][None]).sum(axis=2) < 1e-9).any()
    assert (world.truth != 0).all()
    label = people_world(features, counts, 0, one=True)
    assert (label.answers == 0.5).mean() > (world.answers == 0.5).mean()
