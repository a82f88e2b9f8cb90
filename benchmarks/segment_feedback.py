"""Good/bad feedback on single skills against feedback on whole episodes, at equal numbers of labels, on Gymnasium's Taxi-v4.

python benchmarks/segment_feedback.py [--seeds 20] [--labels 25 50 100 200] [--noise 0.1]

A trajectory is a sequence of named skills: go to R, G, Y or B, pick up, drop off. A simulated annotator, who errs with
probability `noise`, gives one label a question:

  skills    was this skill the best choice here? asked of every skill of an episode, then of the next episode
  episodes  was this whole episode better than the usual one?
  pairs     which of these two whole episodes was better?

What is equal is the number of labels given; an episode of n skills costs the skills arm n labels, the episodes arm 1, the pairs
arm ½, so the last two see more episodes. All three train the same `SegmentReward` on the same features, which names a
policy in two ways: greedy takes the skill of the highest reward, planned maximises the sum of rewards over the skills to come,
by dynamic programming with the true transitions. Measured is the exact mean true return over all 300 starts, as a share of the
way from the behaviour that was watched (0) to the best possible (1).
"""

from typing import NamedTuple

import gymnasium
import numpy as np
import torch

from mmrlhf.rewards.segments.reward import SegmentReward
from mmrlhf.rewards.segments.fit import fit_segments
from mmrlhf.rewards.segments.labels import SequencePair, SpanLabel

SKILLS = ("go to R", "go to G", "go to Y", "go to B", "pick up", "drop off")
HORIZON = 10  # skills in an episode at most
GOOD_CHOICES = 0.5  # share of the best choices in the behaviour that is watched; the others are uniform
SLIPS = 0.1  # share of the measured policies' choices that are uniform: without, one wrong choice would repeat for ever
PICK_UP, DROP_OFF = 4, 5  # actions of Taxi, and numbers of the skills
FEEDBACK = ("skills", "episodes", "pairs")
MOVES = (1, 0, 3, 2)  # actions: north, south, west, east


class Task(NamedTuple):
    """Taxi with skills for actions: where each leads, what it pays, whether it ends the episode, and what one sees of it."""

    following: np.ndarray  # "states skills"
    reward: np.ndarray  # "states skills"
    over: np.ndarray  # "states skills"
    features: torch.Tensor  # Float "states skills f"
    starts: np.ndarray
    best: np.ndarray  # "horizon states skills": the true value of each choice with that many skills left, less one


class Episodes(NamedTuple):
    """`n` trajectories: states and skills (-1 after the end), true returns, and whether each skill was a best choice."""

    states: np.ndarray  # "n horizon"
    skills: np.ndarray
    returns: np.ndarray
    good: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        return (self.skills >= 0).sum(axis=1)


def make_task() -> Task:
    """Carry out every skill from every state of the environment, once."""
    env = gymnasium.make("Taxi-v4").unwrapped
    env.reset(seed=0)
    states, skills = env.observation_space.n, len(SKILLS)
    following, reward, over = (
        np.zeros((states, skills), int),
        np.zeros((states, skills)),
        np.zeros((states, skills), bool),
    )
    routes = [routes_to(env, place) for place in range(4)]
    for state in range(states):
        for skill in range(skills):
            following[state, skill], reward[state, skill], over[state, skill] = carry_out(env, state, skill, routes)
    features = torch.stack(
        [torch.stack([features_of(env, state, skill) for skill in range(skills)]) for state in range(states)]
    )
    starts = np.flatnonzero(env.initial_state_distrib)
    task = Task(following, reward, over, features, starts, np.empty(0))
    return task._replace(best=plan(task, reward))


def carry_out(env, state: int, skill: int, routes: list[np.ndarray]) -> tuple[int, float, bool]:
    """(state after the skill, sum of the rewards on the way, whether the episode is over)."""
    env.s = state
    if skill in (PICK_UP, DROP_OFF):
        state, reward, over, _, _ = env.step(skill)
        return state, reward, over
    total, over = 0.0, False
    while True:  # at the place already: a step against the wall beside it
        state, reward, over, _, _ = env.step(int(routes[skill][env.s]))
        total += reward
        if list(env.decode(env.s))[:2] == list(env.locs[skill]):
            return state, total, over


def routes_to(env, place: int) -> np.ndarray:
    """For each state the move of a shortest way to a landmark; at it, a move that stays."""
    distance = np.full(env.observation_space.n, np.inf)
    at = np.array([list(env.decode(state))[:2] == list(env.locs[place]) for state in range(len(distance))])
    distance[at] = 0
    after = np.array([[env.P[state][move][0][1] for move in MOVES] for state in range(len(distance))])
    for _ in range(25):
        distance = np.minimum(distance, 1 + distance[after].min(axis=1))
    return np.array(MOVES)[distance[after].argmin(axis=1)]


def features_of(env, state: int, skill: int) -> torch.Tensor:
    """What the reward sees of a choice: its kind, times where it leads, who is aboard, and where the taxi is."""
    row, column, passenger, destination = env.decode(state)
    here = next((place for place, at in enumerate(env.locs) if list(at) == [row, column]), -1)
    kind = torch.eye(3)[max(0, skill - 3)]  # go somewhere, pick up, drop off
    seen = [
        True,
        skill == passenger,
        skill == destination,
        passenger == 4,
        here == passenger,
        here == destination,
        here == skill,
    ]
    return torch.outer(kind, torch.tensor(seen, dtype=torch.float32)).flatten()


def plan(task: Task, reward: np.ndarray) -> np.ndarray:
    """The value of each choice by the number of skills left after it: backward induction over the sum of rewards."""
    values, value = [], np.zeros(len(reward))
    for _ in range(HORIZON):
        values.append(reward + np.where(task.over, 0, value[task.following]))
        value = values[-1].max(axis=1)
    return np.array(values)


def watch(task: Task, count: int, generator: np.random.Generator) -> Episodes:
    """Episodes of somebody who takes a best skill half of the time, and else any."""
    states, skills = np.zeros((count, HORIZON), int), np.full((count, HORIZON), -1)
    good, returns = np.zeros((count, HORIZON), bool), np.zeros(count)
    state, running = generator.choice(task.starts, count), np.ones(count, bool)
    for step in range(HORIZON):
        values = task.best[HORIZON - 1 - step][state]
        best = values >= values.max(axis=1, keepdims=True) - 1e-9
        chance = GOOD_CHOICES * best / best.sum(axis=1, keepdims=True) + (1 - GOOD_CHOICES) / len(SKILLS)
        skill = (generator.random((count, 1)) > chance.cumsum(axis=1)).sum(axis=1).clip(max=len(SKILLS) - 1)
        states[:, step], skills[running, step] = state, skill[running]
        good[:, step] = best[np.arange(count), skill]
        returns += np.where(running, task.reward[state, skill], 0)
        running = running & ~task.over[state, skill]
        state = task.following[state, skill]
    return Episodes(states, skills, returns, good)


def learn(task: Task, feedback: str, count: int, *, seed: int, noise: float, **settings) -> SegmentReward:
    """A reward from `count` labels of one kind."""
    generator = np.random.default_rng([seed, FEEDBACK.index(feedback), count])
    episodes = watch(task, 2 * count, generator)
    wrong = generator.random(count) < noise
    spans: list[SpanLabel] = []
    pairs: list[SequencePair] = []
    if feedback == "skills":
        places = [(row, step) for row, n in enumerate(episodes.lengths) for step in range(n)][:count]
        good = np.array([episodes.good[place] for place in places]) ^ wrong
        spans = [SpanLabel(row, step, step + 1, tag(g)) for (row, step), g in zip(places, good, strict=True)]
    elif feedback == "episodes":
        usual = np.median(watch(task, 2000, np.random.default_rng(0)).returns)
        good = (episodes.returns[:count] > usual) ^ wrong
        spans = [SpanLabel(row, 0, int(episodes.lengths[row]), tag(g)) for row, g in enumerate(good)]
    else:
        first, second = episodes.returns[:count], episodes.returns[count:]
        labels = np.where(first == second, 0.5, (first > second) ^ wrong)
        pairs = [SequencePair(row, count + row, float(label)) for row, label in enumerate(labels)]
    mask = torch.from_numpy(episodes.skills >= 0)
    features = task.features[episodes.states, np.maximum(episodes.skills, 0)]
    return fit_segments(features, mask, spans, pairs, seed=seed, pooling="sum", progress=False, **settings)


def tag(good: bool) -> str:
    return "correct" if good else "misleading"


def true_return(task: Task, choices: np.ndarray) -> float:
    """Exact mean over all starts of the true return; `choices` is "horizon states", by the number of skills left, less one."""
    value = np.zeros(len(task.reward))
    for choice in choices:
        values = task.reward + np.where(task.over, 0, value[task.following])
        value = (1 - SLIPS) * values[np.arange(len(values)), choice] + SLIPS * values.mean(axis=1)
    return float(value[task.starts].mean())


def score(task: Task, reward: SegmentReward) -> dict[str, float]:
    """What the two policies of a reward achieve: 0 as the behaviour, 1 the best possible."""
    learnt = reward(task.features).numpy().astype(float)
    watched = watch(task, 20_000, np.random.default_rng(0)).returns.mean()
    best = true_return(task, task.best.argmax(axis=2))
    policies = {
        "greedy": np.repeat(learnt.argmax(axis=1)[None], HORIZON, 0),
        "planned": plan(task, learnt).argmax(axis=2),
    }
    return {name: (true_return(task, choices) - watched) / (best - watched) for name, choices in policies.items()}
