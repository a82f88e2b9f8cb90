"""Gymnasium's Taxi-v4 as a task of named skills, exactly: where each leads and what it pays, plans, behaviour, mean returns.

A skill is "go to" one of the four landmarks by a shortest way, "pick up" or "drop off". An episode has `HORIZON` of them at most.
Values and policies are arrays by the number of skills left after the choice: [0] is for the last skill of an episode.
"""

from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

SKILLS = ("go to R", "go to G", "go to Y", "go to B", "pick up", "drop off")
HORIZON = 10
GOOD_CHOICES = 0.5  # share of the best choices in the behaviour that is watched; the others are uniform
SLIPS = 0.1  # share of a measured policy's choices that are uniform: without, one wrong choice would repeat for ever
PICK_UP, DROP_OFF = 4, 5  # actions of Taxi, and numbers of the skills
MOVES = (1, 0, 3, 2)  # actions: north, south, west, east
ABOARD = 4  # the place of a passenger in the taxi
ROUNDING = 1e-9  # returns are whole numbers


class Task(NamedTuple):
    """Each skill from each state: the next state, the sum of rewards on the way, whether it ends all, what one sees of it."""

    following: Int[np.ndarray, "states skills"]
    reward: Float[np.ndarray, "states skills"]
    over: Bool[np.ndarray, "states skills"]
    features: Float[Tensor, "states skills f"]
    starts: Int[np.ndarray, " starts"]


class Episodes(NamedTuple):
    """`n` trajectories: states and skills (-1 after the end), true returns, and whether each skill was a best choice."""

    states: Int[np.ndarray, "n horizon"]
    skills: Int[np.ndarray, "n horizon"]
    returns: Float[np.ndarray, " n"]
    good: Bool[np.ndarray, "n horizon"]

    @property
    def lengths(self) -> Int[np.ndarray, " n"]:
        """How many skills each has."""
        return (self.skills >= 0).sum(axis=1)


def make_task() -> Task:
    """Carry out every skill from every state of the environment, once."""
    env: Any = gymnasium.make("Taxi-v4").unwrapped
    env.reset(seed=0)
    states, skills = range(env.observation_space.n), range(len(SKILLS))
    routes = [routes_to(env, place) for place in range(len(env.locs))]
    done = [[carry_out(env, state, skill, routes) for skill in skills] for state in states]
    following, reward, over = (np.array([[found[i] for found in row] for row in done]) for i in range(3))
    features = torch.stack([torch.stack([features_of(env, state, skill) for skill in skills]) for state in states])
    return Task(following, reward.astype(float), over, features, np.flatnonzero(env.initial_state_distrib))


def carry_out(env: Any, state: int, skill: int, routes: list[Int[np.ndarray, " states"]]) -> tuple[int, float, bool]:
    """(state after the skill, sum of the rewards on the way, whether the episode is over)."""
    env.s = state
    if skill in (PICK_UP, DROP_OFF):
        state, reward, over, _, _ = env.step(skill)
        return state, float(reward), over
    total = 0.0
    while True:  # at the place already: one step against the wall beside it
        state, reward, _, _, _ = env.step(int(routes[skill][env.s]))
        total += reward
        if tuple(env.decode(state))[:2] == env.locs[skill]:
            return state, total, False


def routes_to(env: Any, place: int) -> Int[np.ndarray, " states"]:
    """For each state the move of a shortest way to a landmark; at it, a move that stays."""
    states = range(env.observation_space.n)
    at = np.array([tuple(env.decode(state))[:2] == env.locs[place] for state in states])
    distance = np.where(at, 0.0, np.inf)
    after = np.array([[env.P[state][move][0][1] for move in MOVES] for state in states])
    for _ in range(25):  # squares: no shortest way is longer
        distance = np.minimum(distance, 1 + distance[after].min(axis=1))
    return np.array(MOVES)[distance[after].argmin(axis=1)]


def features_of(env: Any, state: int, skill: int) -> Float[Tensor, " f"]:
    """What a reward sees of a choice: its kind, times where it leads, who is aboard, and where the taxi is."""
    row, column, passenger, destination = env.decode(state)
    here = next((place for place, at in enumerate(env.locs) if at == (row, column)), -1)
    kind = torch.eye(3)[max(0, skill - PICK_UP + 1)]  # go somewhere, pick up, drop off
    seen = [True, skill == passenger, skill == destination, passenger == ABOARD,
            here == passenger, here == destination, here == skill]  # fmt: skip
    return torch.outer(kind, torch.tensor(seen, dtype=torch.float32)).flatten()


def plan(task: Task, reward: Float[np.ndarray, "states skills"]) -> Float[np.ndarray, "horizon states skills"]:
    """What each choice is worth, the best ones following it: backward induction over the sum of rewards."""
    values, value = [], np.zeros(len(reward))
    for _ in range(HORIZON):
        values.append(reward + np.where(task.over, 0, value[task.following]))
        value = values[-1].max(axis=1)
    return np.array(values)


def best_choices(task: Task) -> Bool[np.ndarray, "horizon states skills"]:
    """Which skills have the highest true value."""
    values = plan(task, task.reward)
    return values >= values.max(axis=2, keepdims=True) - ROUNDING


def behaviour(task: Task) -> Float[np.ndarray, "horizon states skills"]:
    """The chances of the skills of somebody who takes a best one half of the time, and else any."""
    best = best_choices(task)
    return GOOD_CHOICES * best / best.sum(axis=2, keepdims=True) + (1 - GOOD_CHOICES) / len(SKILLS)


def with_slips(values: Float[np.ndarray, "horizon states skills"]) -> Float[np.ndarray, "horizon states skills"]:
    """The chances of the skills of somebody who takes the one of the highest value, but for slips."""
    return (1 - SLIPS) * np.eye(len(SKILLS))[values.argmax(axis=2)] + SLIPS / len(SKILLS)


def true_return(task: Task, chances: Float[np.ndarray, "horizon states skills"]) -> float:
    """Exact mean true return over all starts of a policy, given by the chances of its skills."""
    value = np.zeros(len(task.reward))
    for chance in chances:
        value = (chance * (task.reward + np.where(task.over, 0, value[task.following]))).sum(axis=1)
    return float(value[task.starts].mean())


def watch(task: Task, count: int, generator: np.random.Generator) -> Episodes:
    """`count` episodes of the behaviour, from random starts."""
    best, chances = best_choices(task), behaviour(task).cumsum(axis=2)
    states, skills = np.zeros((count, HORIZON), int), np.full((count, HORIZON), -1)
    good, returns = np.zeros((count, HORIZON), bool), np.zeros(count)
    state, running = generator.choice(task.starts, count), np.ones(count, bool)
    for step in range(HORIZON):
        left = HORIZON - 1 - step
        skill = (generator.random((count, 1)) > chances[left, state]).sum(axis=1).clip(max=len(SKILLS) - 1)
        states[:, step], skills[running, step] = state, skill[running]
        good[:, step] = running & best[left, state, skill]
        returns += np.where(running, task.reward[state, skill], 0)
        running = running & ~task.over[state, skill]
        state = task.following[state, skill]
    return Episodes(states, skills, returns, good)
