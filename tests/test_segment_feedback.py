"""The benchmark of feedback on skills: its task against the environment, its plans and returns against others, a small run."""

import itertools
from typing import Any

import gymnasium
import numpy as np
import pytest
from jaxtyping import install_import_hook

with install_import_hook(["benchmarks.taxi_skills", "benchmarks.segment_feedback"], "beartype.beartype"):
    from benchmarks import segment_feedback, taxi_skills
    from benchmarks.segment_feedback import FEEDBACK, POLICIES
    from benchmarks.taxi_skills import ABOARD, HORIZON, SKILLS, SLIPS, Task

LANDMARKS = {"R": (0, 0), "G": (0, 4), "Y": (4, 0), "B": (4, 3)}  # of the map in Gymnasium's documentation
WALLS = {((0, 1), (0, 2)), ((1, 1), (1, 2)), ((3, 0), (3, 1)), ((4, 0), (4, 1)), ((3, 2), (3, 3)), ((4, 2), (4, 3))}
EAST, WEST, NORTH, SOUTH = (0, 1), (0, -1), (-1, 0), (1, 0)
ACTIONS = {SOUTH: 0, NORTH: 1, EAST: 2, WEST: 3}


@pytest.fixture(scope="module")
def task() -> Task:
    return taxi_skills.make_task()


@pytest.fixture
def env() -> Any:
    return gymnasium.make("Taxi-v4").unwrapped


def way(start: tuple[int, int], end: tuple[int, int]) -> list[int]:
    """The actions of a shortest way by breadth-first search on the map."""
    ways: dict[tuple[int, int], list[int]] = {start: []}
    for square in (queue := [start]):
        for move, action in ACTIONS.items():
            to = (square[0] + move[0], square[1] + move[1])
            blocked = (square, to) in WALLS or (to, square) in WALLS
            if to not in ways and not blocked and 0 <= to[0] < 5 and 0 <= to[1] < 5:
                ways[to] = [*ways[square], action]
                queue.append(to)
    return ways[end]


def test_skills_from_every_start_do_what_the_environment_does(task: Task, env: Any) -> None:
    generator = np.random.default_rng(0)
    assert len(task.starts) == 300
    assert set(env.reset(seed=seed)[0] for seed in range(50)) <= set(task.starts.tolist())
    ended = 0
    for number, start in enumerate(task.starts.tolist()):
        state, env.s = start, start
        _, _, passenger, destination = env.decode(state)
        delivery = [passenger, 4, destination, 5]
        for skill in generator.integers(len(SKILLS), size=HORIZON) if number % 2 else delivery:
            name = SKILLS[skill]
            row, column, _, _ = env.decode(state)
            if name.startswith("go to"):
                place = LANDMARKS[name[-1]]
                actions = way((row, column), place) or [0 if place[0] else 1]  # on the edge: against it
            else:
                actions = [4 if name == "pick up" else 5]
            steps = [env.step(action) for action in actions]
            assert task.reward[state, skill] == sum(step[1] for step in steps)
            assert task.following[state, skill] == env.s
            assert task.over[state, skill] == steps[-1][2]
            if steps[-1][2]:
                ended += 1
                break
            state = env.s
    assert ended >= 150


def test_features_tell_the_kind_of_skill_and_where_it_leads(task: Task, env: Any) -> None:
    assert task.features.shape == (500, len(SKILLS), 21)
    state = env.encode(0, 4, 2, 1)  # at G, where the passenger, who waits at Y, wants to go
    go, pick_up, drop_off = (task.features[state, skill].view(3, 7) for skill in (2, 4, 5))
    assert go.tolist() == [[1, 1, 0, 0, 0, 1, 0], [0] * 7, [0] * 7]
    assert pick_up.tolist() == [[0] * 7, [1, 0, 0, 0, 0, 1, 0], [0] * 7]
    assert drop_off.tolist() == [[0] * 7, [0] * 7, [1, 0, 0, 0, 0, 1, 0]]
    aboard = task.features[env.encode(2, 2, ABOARD, 3), 3].view(3, 7)
    assert aboard[0].tolist() == [1, 0, 1, 1, 0, 0, 0]


def test_the_plan_is_that_of_trying_everything(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taxi_skills, "HORIZON", 4)
    reward = np.random.default_rng(0).normal(size=task.reward.shape)
    values = taxi_skills.plan(task, reward)
    assert values.shape == (4, 500, len(SKILLS))

    def total(state: int, skills: tuple[int, ...]) -> float:
        own = reward[state, skills[0]]
        ends = task.over[state, skills[0]] or len(skills) == 1
        return own if ends else own + total(task.following[state, skills[0]], skills[1:])

    near_the_end = int(np.argwhere(task.over)[0, 0])
    for state, skill in itertools.product([*task.starts[::120], near_the_end], range(len(SKILLS))):
        for left in range(4):
            tried = itertools.product(range(len(SKILLS)), repeat=left)
            best = max(total(state, (skill, *others)) for others in tried)
            assert values[left, state, skill] == pytest.approx(best)


def test_a_best_start_picks_the_passenger_up_and_delivers(task: Task, env: Any) -> None:
    best = taxi_skills.best_choices(task)
    state = env.encode(2, 2, 0, 3)  # waits at R, wants to go to B
    for name in ("go to R", "pick up", "go to B", "drop off"):
        assert [SKILLS[skill] for skill in np.flatnonzero(best[-1, state])] == [name]
        over = task.over[state, SKILLS.index(name)]
        state = task.following[state, SKILLS.index(name)]
    assert over


def test_the_exact_return_is_the_mean_of_many_episodes(task: Task) -> None:
    chances = np.random.default_rng(0).dirichlet(np.ones(len(SKILLS)), size=(HORIZON, 500))
    generator, total = np.random.default_rng(1), []
    for start in np.repeat(task.starts, 20).tolist():
        state, own = start, 0.0
        for left in reversed(range(HORIZON)):
            skill = generator.choice(len(SKILLS), p=chances[left, state])
            own += task.reward[state, skill]
            if task.over[state, skill]:
                break
            state = task.following[state, skill]
        total.append(own)
    error = np.std(total) / np.sqrt(len(total))
    assert taxi_skills.true_return(task, chances) == pytest.approx(np.mean(total), abs=4 * error)


def test_what_is_watched_is_the_behaviour(task: Task) -> None:
    seen = taxi_skills.watch(task, 20_000, np.random.default_rng(0))
    error = seen.returns.std() / np.sqrt(len(seen.returns))
    exact = taxi_skills.true_return(task, taxi_skills.behaviour(task))
    assert seen.returns.mean() == pytest.approx(exact, abs=4 * error)
    best = taxi_skills.best_choices(task)
    for row in range(50):
        n = seen.lengths[row]
        states, skills = seen.states[row, :n], seen.skills[row, :n]
        assert seen.returns[row] == task.reward[states, skills].sum()
        assert (task.following[states, skills][:-1] == states[1:]).all() and not task.over[states, skills][:-1].any()
        assert n == HORIZON or task.over[states[-1], skills[-1]]
        assert (seen.skills[row, n:] == -1).all()
        assert seen.good[row, :n].tolist() == [best[HORIZON - 1 - i, states[i], skills[i]] for i in range(n)]


def test_the_plan_on_the_true_rewards_is_nearly_the_best_with_slips(task: Task) -> None:
    assert taxi_skills.with_slips(np.zeros((HORIZON, 500, 6))).sum(axis=2) == pytest.approx(1)
    value = np.zeros(500)
    for _ in range(HORIZON):
        values = task.reward + np.where(task.over, 0, value[task.following])
        value = (1 - SLIPS) * values.max(axis=1) + SLIPS * values.mean(axis=1)
    planned = taxi_skills.true_return(task, taxi_skills.with_slips(taxi_skills.plan(task, task.reward)))
    assert value[task.starts].mean() - 0.02 < planned <= value[task.starts].mean() + 1e-9


def test_each_kind_gives_as_many_labels_and_true_ones_without_noise(task: Task) -> None:
    count, right = 30, np.zeros(30, dtype=bool)
    episodes = taxi_skills.watch(task, 2 * count, np.random.default_rng(0))
    skills = segment_feedback.skill_labels(episodes, right)
    usual = segment_feedback.usual_return(task)
    whole = segment_feedback.episode_labels(episodes, right, usual)
    pairs = segment_feedback.compare(episodes, right)
    assert len(skills) == len(whole) == len(pairs) == count
    assert all(episodes.good[row, start] == (value == "correct") for row, start, _, value, _ in skills)
    assert {(label.row, label.start) for label in skills if label.row == 0} == {
        (0, i) for i in range(min(count, int(episodes.lengths[0])))
    }
    assert all((episodes.returns[row] > usual) == (value == "correct") for row, _, _, value, _ in whole)
    assert all(end == episodes.lengths[row] for row, _, end, _, _ in whole)
    assert all(
        label == 0.5 + np.sign(episodes.returns[first] - episodes.returns[second]) / 2
        for first, second, label, _ in pairs
    )
    flipped = segment_feedback.episode_labels(episodes, ~right, usual)
    assert all(a.value != b.value for a, b in zip(whole, flipped, strict=True))


def test_a_few_hundred_labels_of_skills_beat_the_behaviour(task: Task) -> None:
    reward = segment_feedback.learn(task, "skills", 300, seed=0, noise=0.0)
    greedy, _ = segment_feedback.shares(task, reward)
    assert 0.2 < greedy <= 1.001


def test_the_table_has_the_means_their_intervals_and_paired_differences() -> None:
    found = np.zeros((1, len(FEEDBACK), len(POLICIES), 4))
    found[0, 0, 0] = [0.5, 0.7, 0.9, 1.1]
    found[0, 1, 0] = [0.25, 0.45, 0.65, 0.85]
    header, _, greedy, planned = segment_feedback.rows_of(found, [25])
    assert header == "| labels | policy | skills | episodes | pairs | skills − episodes | skills − pairs |"
    first = greedy.split(" | ")
    assert first[:2] == ["| 25", "greedy"] and first[2].startswith("0.80 (0.6") and first[4] == "0.00 (0.00 … 0.00)"
    assert first[5] == "0.25 (0.25 … 0.25)"  # though either varies
    assert planned.count("0.00 (0.00 … 0.00)") == 5


def test_the_command_prints_a_row_for_each_count_and_policy(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    learn = segment_feedback.learn
    monkeypatch.setattr(segment_feedback, "learn", lambda *args, **kwargs: learn(*args, **kwargs, epochs=2))
    segment_feedback.main(["--seeds", "2", "--labels", "20", "30"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("2 seeds, noise 0.1; mean true return of the behaviour -19.9, of the plan")
    assert [line.split(" | ")[:2] for line in lines[4:]] == [
        ["| 20", "greedy"], ["| 20", "planned"], ["| 30", "greedy"], ["| 30", "planned"],
    ]  # fmt: skip


@pytest.mark.parametrize("option", ["--seeds=0", "--labels=0", "--noise=2"])
def test_options_that_are_not_allowed_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        segment_feedback.read_options([option])
    assert "take 1 or more" in capsys.readouterr().err
