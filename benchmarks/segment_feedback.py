"""Good/bad feedback on single skills against feedback on whole episodes, at equal numbers of labels, on Gymnasium's Taxi-v4.

python -m benchmarks.segment_feedback [--seeds 20] [--labels 25 50 100 200] [--noise 0.1]

A trajectory is a sequence of named skills: go to R, G, Y or B, pick up, drop off. A simulated annotator, who errs with
probability `noise`, gives one label a question:

  skills    was this skill the best choice here? asked of every skill of an episode, then of the next episode
  episodes  was this whole episode better than the usual one?
  pairs     which of these two whole episodes was better?

What is equal is the number of labels given: an episode of n skills takes n of the skills arm's, 1 of the episodes arm's, ½ of
the pairs arm's, so the last two see more episodes. All three train the same `SegmentReward` on the same features, which names a
policy in two ways: greedy takes the skill of the highest reward, planned maximises the sum of rewards over the skills to come,
by dynamic programming with the true transitions. Measured is the exact mean true return over all 300 starts, as a share of the
way from the behaviour that was watched (0) to the plan on the true rewards (1). Prints the table of docs/segments.md.
"""

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from tqdm import tqdm

from benchmarks.taxi_skills import (
    HORIZON,
    Episodes,
    Task,
    behaviour,
    make_task,
    plan,
    true_return,
    watch,
    with_slips,
)
from mmrlhf.rewards.segments.fit import fit_segments
from mmrlhf.rewards.segments.labels import SequencePair, SpanLabel
from mmrlhf.rewards.segments.reward import SegmentReward

FEEDBACK = ("skills", "episodes", "pairs")
POLICIES = ("greedy", "planned")
USUAL = 2000  # episodes that the annotator has seen before, whose median is the usual one
RESAMPLES = 10_000


def learn(task: Task, feedback: str, count: int, *, seed: int, noise: float, **settings: int) -> SegmentReward:
    """A reward from `count` labels of one kind; the episodes and the annotator's slips are the same for every kind."""
    generator = np.random.default_rng([seed, count])
    episodes = watch(task, 2 * count, generator)
    wrong = generator.random(count) < noise
    spans, pairs = [], []
    if feedback == "skills":
        spans = skill_labels(episodes, wrong)
    elif feedback == "episodes":
        spans = episode_labels(episodes, wrong, usual_return(task))
    else:
        pairs = compare(episodes, wrong)
    mask = torch.from_numpy(episodes.skills >= 0)
    features = task.features[episodes.states, np.maximum(episodes.skills, 0)]
    return fit_segments(features, mask, spans, pairs, seed=seed, pooling="sum", progress=False, **settings)


def usual_return(task: Task) -> float:
    """The median return of the behaviour."""
    return float(np.median(watch(task, USUAL, np.random.default_rng(0)).returns))


def skill_labels(episodes: Episodes, wrong: Bool[np.ndarray, " labels"]) -> list[SpanLabel]:
    """Was each skill a best choice? Of one episode after the other, until all labels are given."""
    places = [(row, step) for row, n in enumerate(episodes.lengths) for step in range(n)][: len(wrong)]
    good = np.array([episodes.good[place] for place in places]) ^ wrong
    return [SpanLabel(row, step, step + 1, tag(g)) for (row, step), g in zip(places, good.tolist(), strict=True)]


def episode_labels(episodes: Episodes, wrong: Bool[np.ndarray, " labels"], usual: float) -> list[SpanLabel]:
    """Was the return of each episode above the usual?"""
    good = (episodes.returns[: len(wrong)] > usual) ^ wrong
    return [SpanLabel(row, 0, int(episodes.lengths[row]), tag(g)) for row, g in enumerate(good.tolist())]


def compare(episodes: Episodes, wrong: Bool[np.ndarray, " labels"]) -> list[SequencePair]:
    """Which of two episodes had the higher return? Equal ones are called a tie."""
    first, second = episodes.returns[: len(wrong)], episodes.returns[len(wrong) :]
    labels = np.where(first == second, 0.5, (first > second) ^ wrong)
    return [SequencePair(row, len(wrong) + row, float(label)) for row, label in enumerate(labels)]


def tag(good: bool) -> str:
    return "correct" if good else "misleading"


def shares(task: Task, reward: SegmentReward) -> list[float]:
    """What each of `POLICIES` by a reward achieves: 0 as the behaviour, 1 as the plan on the true rewards."""
    learnt = reward(task.features).numpy().astype(float)
    watched, best = true_return(task, behaviour(task)), true_return(task, with_slips(plan(task, task.reward)))
    values = (np.repeat(learnt[None], HORIZON, 0), plan(task, learnt))
    return [(true_return(task, with_slips(own)) - watched) / (best - watched) for own in values]


def mean_with_interval(values: Float[np.ndarray, " seeds"]) -> str:
    """The mean, and the 95 % bootstrap interval of the mean."""
    draws = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    return f"{values.mean():.2f} ({low:.2f} … {high:.2f})"


def rows_of(found: Float[np.ndarray, "labels kinds policies seeds"], labels: Sequence[int]) -> list[str]:
    """The table, a line each; a difference is taken within each seed."""
    columns = ["labels", "policy", *FEEDBACK, *(f"skills − {other}" for other in FEEDBACK[1:])]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for count, kinds in zip(labels, found, strict=True):
        for number, policy in enumerate(POLICIES):
            own = list(kinds[:, number])
            cells = map(mean_with_interval, [*own, *(own[0] - other for other in own[1:])])
            lines.append(f"| {count} | {policy} | {' | '.join(cells)} |")
    return lines


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, by default this process's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="how many, from 0 on")
    parser.add_argument("--labels", type=int, nargs="+", default=[25, 50, 100, 200])
    parser.add_argument("--noise", type=float, default=0.1, help="how often the annotator errs")
    options = parser.parse_args(arguments)
    if options.seeds < 1 or min(options.labels) < 1 or not 0 <= options.noise <= 1:
        parser.error("--seeds and --labels take 1 or more, --noise 0 to 1")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what is in docs/segments.md."""
    options = read_options(arguments)
    torch.set_num_threads(1)
    task = make_task()
    found = np.zeros((len(options.labels), len(FEEDBACK), len(POLICIES), options.seeds))
    for seed in tqdm(range(options.seeds), desc="seeds", unit="seed"):
        for place in np.ndindex(found.shape[:2]):
            reward = learn(task, FEEDBACK[place[1]], options.labels[place[0]], seed=seed, noise=options.noise)
            found[place[0], place[1], :, seed] = shares(task, reward)
    lengths = watch(task, USUAL, np.random.default_rng(0)).lengths
    watched, best = (true_return(task, own) for own in (behaviour(task), with_slips(plan(task, task.reward))))
    print(
        f"{options.seeds} seeds, noise {options.noise}; mean true return of the behaviour {watched:.1f}, of the plan on the "
        f"true rewards {best:.1f}; {lengths.mean():.1f} skills an episode\n"
    )
    print("\n".join(rows_of(found, options.labels)))


if __name__ == "__main__":
    main()
