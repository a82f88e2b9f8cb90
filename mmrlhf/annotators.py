"""How reliable each annotator is, learnt from their disagreements: the model of Dawid and Skene."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import logsumexp

from mmrlhf.answers import Comparison, sides_of
from mmrlhf.datasets.judgements import question_of
from mmrlhf.errors import UserError

SHRINKAGE = 5.0  # imagined answers of the average annotator that each one gets, so that a few answers prove little


class DawidSkene(NamedTuple):
    """P(truth) a unit, P(answer | truth) an annotator (rows are truths), P(truth) overall, and the log-likelihood a step."""

    posteriors: Float[np.ndarray, "u c"]
    confusions: Float[np.ndarray, "a c c"]
    priors: Float[np.ndarray, " c"]
    log_likelihoods: list[float]


def dawid_skene(
    units: Int[np.ndarray, " n"],
    annotators: Int[np.ndarray, " n"],
    answers: Int[np.ndarray, " n"],
    categories: int,
    *,
    shrinkage: float = 0.0,
    tolerance: float = 1e-8,
    steps: int = 500,
) -> DawidSkene:
    """Expectation–maximisation from the shares of the votes; all three are numbered from 0, an entry an answer.

    `shrinkage` answers of the pooled annotator are added to each one's table (0 is the plain maximum likelihood, whose
    likelihood never falls). Source: Dawid and Skene 1979.
    """
    if not len(units) or answers.min() < 0 or answers.max() >= categories:
        raise UserError(f"Dawid–Skene got {len(units)} answers, allowed is 1 or more, each from 0 to {categories - 1}")
    posteriors = np.zeros((units.max() + 1, categories))
    np.add.at(posteriors, (units, answers), 1)
    posteriors /= posteriors.sum(axis=1, keepdims=True)
    history: list[float] = []
    for _ in range(steps):
        priors = posteriors.mean(axis=0)
        tables = np.zeros((annotators.max() + 1, categories, categories))
        np.add.at(tables.transpose(0, 2, 1), (annotators, answers), posteriors[units])
        tables += shrinkage * normalised(tables.sum(axis=0))
        confusions = normalised(tables)
        with np.errstate(divide="ignore"):
            joint = np.tile(np.log(priors), (len(posteriors), 1))
            np.add.at(joint, units, np.log(confusions)[annotators, :, answers])
        likelihoods = logsumexp(joint, axis=1)
        posteriors = np.exp(joint - likelihoods[:, None])
        history.append(float(likelihoods.sum()))
        if len(history) > 1 and abs(history[-1] - history[-2]) < tolerance * abs(history[-1]):
            break
    return DawidSkene(posteriors, confusions, priors, history)


def normalised(tables: Float[np.ndarray, "*a c c"]) -> Float[np.ndarray, "*a c c"]:
    """Rows that sum to 1; one without an answer is even."""
    sums = tables.sum(axis=-1, keepdims=True)
    return np.where(sums > 0, tables / np.where(sums > 0, sums, 1), 1 / tables.shape[-1])


def reliabilities(found: DawidSkene) -> Float[np.ndarray, " a"]:
    """Accuracy beyond that of answering by chance with the truths' frequencies, of each annotator, in [0, 1]."""
    accuracy = np.einsum("c,acc->a", found.priors, found.confusions)
    chance = float(found.priors @ found.priors)
    return np.clip((accuracy - chance) / (1 - chance), 0, 1) if chance < 1 else np.ones(len(accuracy))


def annotator_weights(pairs: Sequence[Comparison]) -> tuple[Float[np.ndarray, " n"], dict[str, float]]:
    """(the reliability of each judgement's annotator, the same by name); ({}, and all 1) where nothing can be told.

    That is where no pair was judged by two annotators. Outcomes are first, tie, second (soft labels by their side); which of two
    comes first is arbitrary, so that every answer counts in both orders.
    """
    judged = [pair for pair in pairs if pair.has_label]
    if not overlapping(judged):
        return np.ones(len(pairs)), {}
    names = {name: i for i, name in enumerate(sorted({pair.annotator for pair in judged}))}
    questions: dict[tuple[object, ...], int] = {}
    units, annotators, answers = [], [], []
    for pair in judged:
        asked, (first, second) = question_of(pair), sides_of(pair)
        for order, label in (((first, second), pair.label_0), ((second, first), 1 - pair.label_0)):
            units.append(questions.setdefault((asked, order), len(questions)))
            annotators.append(names[pair.annotator])
            answers.append(1 + int(np.sign(label - 0.5)))
    found = dawid_skene(np.array(units), np.array(annotators), np.array(answers), 3, shrinkage=SHRINKAGE)
    by_name = dict(zip(names, reliabilities(found).tolist(), strict=True))
    return np.array([by_name.get(pair.annotator, 1.0) for pair in pairs]), by_name


def overlapping(pairs: Sequence[Comparison]) -> bool:
    """Whether two annotators judged the same pair."""
    first: dict[tuple[object, ...], str] = {}
    for pair in pairs:
        if first.setdefault(question_of(pair), pair.annotator) != pair.annotator:
            return True
    return False
