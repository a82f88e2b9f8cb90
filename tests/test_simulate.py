"""The hidden taste and the simulated raters who share it."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mmrlhf.agreement import pair_agreement, rater_agreement
from mmrlhf.errors import UserError
from mmrlhf.simulate import RATERS, Rater, simulate_preferences
from mmrlhf.store import Store, Task
from mmrlhf.taste import taste
from mmrlhf.tiny.emoji import random_backgrounds


def drawings(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(RGB, opacity) of random blobs of strong colours in the middle of 64 px, like emoji."""
    axis = torch.linspace(-1, 1, 64)
    distance = (axis[:, None] ** 2 + axis[None] ** 2).sqrt()
    radius = 0.4 + 0.5 * torch.rand(count, generator=generator)
    opacity = (distance < radius[:, None, None]).float()[:, None]
    inner = (distance < 0.5 * radius[:, None, None]).float()[:, None]
    colours = torch.rand(2, count, 3, 1, 1, generator=generator)
    return inner * colours[0] + (1 - inner) * colours[1], opacity


def over(drawing: tuple[Tensor, Tensor], background: Tensor) -> Tensor:
    """Drawings over plain backgrounds."""
    colour, opacity = drawing
    return opacity * colour + (1 - opacity) * background[:, :, None, None]


def test_the_taste_likes_warm_tinted_backgrounds() -> None:
    drawing = drawings(20, torch.Generator().manual_seed(0))
    named = {"warm": (1.0, 0.8, 0.5), "white": (1.0, 1.0, 1.0), "grey": (0.7, 0.7, 0.7), "cold": (0.5, 0.7, 1.0)}
    scores = {name: taste(over(drawing, torch.tensor(colour).expand(20, 3))) for name, colour in named.items()}
    assert (scores["warm"] > scores["white"] + 0.5).all()
    assert (scores["white"] > scores["cold"] + 0.5).all() and (scores["grey"] > scores["cold"] + 0.5).all()


def test_the_taste_likes_colourful_subjects_a_little() -> None:
    generator = torch.Generator().manual_seed(0)
    colour, opacity = drawings(20, generator)
    grey = colour.mean(dim=1, keepdim=True).expand_as(colour)
    white = torch.ones(20, 3)
    gain = taste(over((colour, opacity), white)) - taste(over((grey, opacity), white))
    assert (gain > 0).all() and gain.mean() < 1


def test_the_taste_has_unit_scale_and_is_moved_by_the_background() -> None:
    generator = torch.Generator().manual_seed(0)
    drawing = drawings(100, generator)
    scores = torch.stack([taste(over(drawing, random_backgrounds(100, generator))) for _ in range(12)])
    assert abs(scores.mean()) < 0.4
    assert 0.75 < scores.std() < 1.25
    assert scores.std(dim=0).mean() > 2 * scores.mean(dim=0).std()  # by the background far more than by what is drawn


def test_the_taste_is_smooth_and_row_independent() -> None:
    images = torch.rand(3, 3, 16, 24, generator=torch.Generator().manual_seed(0)).requires_grad_()
    taste(images).sum().backward()
    assert images.grad is not None and torch.isfinite(images.grad).all() and images.grad.abs().sum() > 0
    torch.testing.assert_close(taste(images)[1:2], taste(images[1:2]))


@pytest.fixture
def scores() -> dict[str, float]:
    values = torch.randn(800, generator=torch.Generator().manual_seed(3))
    return {f"item{i}": value for i, value in enumerate(values.tolist())}


@pytest.fixture
def tasks() -> list[Task]:
    return [Task("p", (f"item{2 * i}", f"item{2 * i + 1}")) for i in range(400)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_it_is_the_same_for_the_same_generator(tasks: list[Task], scores: dict[str, float]) -> None:
    first = simulate_preferences(tasks, scores, RATERS, seeded())
    assert first == simulate_preferences(tasks, scores, RATERS, seeded())
    assert first != simulate_preferences(tasks, scores, RATERS, seeded(1))


def test_it_is_declared_as_simulated_and_the_store_takes_it(
    tasks: list[Task], scores: dict[str, float], tmp_path
) -> None:
    preferences = simulate_preferences(tasks, scores, RATERS, seeded())
    assert {p.source for p in preferences} == {"simulated"}
    assert {p.annotator for p in preferences} == {"simulated-careful", "simulated-average", "simulated-hasty"}
    assert len(preferences) == len({p.vote_id for p in preferences}) == 1200
    store = Store(str(tmp_path / "r.db"))
    assert store.add_many(preferences) == 1200 and store.add_many(preferences) == 0
    assert store.preferences() == preferences
    store.close()


def test_sides_are_random_and_recorded(tasks: list[Task], scores: dict[str, float]) -> None:
    preferences = simulate_preferences(tasks, scores, RATERS, seeded())
    swapped = sum(p.shown == p.items[::-1] for p in preferences)
    assert swapped + sum(p.shown == p.items for p in preferences) == 1200
    assert 520 < swapped < 680


def test_the_raters_differ_in_reliability_and_agree_well(tasks: list[Task], scores: dict[str, float]) -> None:
    preferences = simulate_preferences(tasks, scores, RATERS, seeded())
    truth = {}
    for rater in RATERS:
        mine = [p for p in preferences if p.annotator == rater.name]
        right = [float(scores[p.items[0]] > scores[p.items[1]]) for p in mine]
        truth[rater.name] = pair_agreement([p.label for p in mine], right).mean()
        assert 0.03 < sum(p.label == 0.5 for p in mine) / len(mine) < 0.25
    assert truth["simulated-careful"] > truth["simulated-average"] + 0.02 > truth["simulated-hasty"] + 0.04
    mean, rows = rater_agreement(preferences)
    assert len(rows) == 3 and 0.7 < mean < 0.9


@pytest.mark.parametrize("difference", [-0.5, 0.0, 0.4])
def test_the_answers_follow_rao_and_kupper(difference: float) -> None:
    rater = Rater("simulated-test", noise=0.5, tie_threshold=0.3, random_share=0.0)
    tasks = [Task(f"p{i}", ("a", "b")) for i in range(8000)]
    labels = torch.tensor(
        [p.label for p in simulate_preferences(tasks, {"a": difference, "b": 0.0}, [rater], seeded())]
    )
    first = torch.sigmoid(torch.tensor((difference - 0.3) / 0.5))
    second = torch.sigmoid(torch.tensor((-difference - 0.3) / 0.5))
    for value, expected in ((1.0, first), (0.0, second), (0.5, 1 - first - second)):
        assert abs((labels == value).float().mean() - expected) < 0.02  # 4 standard errors


def test_a_rater_who_never_looks_answers_by_a_coin() -> None:
    blind = replace(RATERS[0], random_share=1.0)
    tasks = [Task(f"p{i}", ("a", "b")) for i in range(4000)]
    labels = [p.label for p in simulate_preferences(tasks, {"a": 9.0, "b": 0.0}, [blind], seeded())]
    assert set(labels) == {0.0, 1.0} and abs(sum(labels) / 4000 - 0.5) < 0.04


def test_overlap_spreads_the_tasks_over_the_raters(tasks: list[Task], scores: dict[str, float]) -> None:
    preferences = simulate_preferences(tasks, scores, RATERS, seeded(), overlap=1)
    shares = [sum(p.annotator == rater.name for p in preferences) for rater in RATERS]
    assert sum(shares) == 400 and min(shares) > 90
    with pytest.raises(UserError, match="overlap 4, allowed is 1 to 3"):
        simulate_preferences(tasks, scores, RATERS, seeded(), overlap=4)


def test_an_item_without_a_score_is_named() -> None:
    with pytest.raises(UserError, match="no finite gold score for item 'b'"):
        simulate_preferences([Task("p", ("a", "b"))], {"a": 0.0, "b": float("nan")}, RATERS, seeded())
