"""`mmrlhf data stats`: what is in a file of judgements, and what in it deserves a second look."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from mmrlhf.agreement import krippendorff_alpha, pairwise_agreement
from mmrlhf.answers import AnswerPair
from mmrlhf.data import Pair, write_text
from mmrlhf.datasets.judgements import KINDS, Judgement, images_of, question_of, read_judgements, verdict_of

SHOWN = 5  # of a long table on the screen


@dataclass(frozen=True)
class StatsConfig:
    """Count judgements, prompts, images, ties and contradictions, and measure how far annotators agree."""

    data: Path
    """PAIRS.jsonl, OUTCOMES.jsonl or ANSWERS.jsonl."""
    out: Path | None = None
    """JSON file for the same figures."""


def stats(config: StatsConfig) -> dict[str, Any]:
    """Print the figures, and write them where `out` is given."""
    judgements = read_judgements(config.data)
    pairs = [judgement for judgement in judgements if isinstance(judgement, Pair | AnswerPair)]
    figures = describe(judgements) | (describe_pairs(pairs) if pairs else {}) | {"agreement": agreement(judgements)}
    width = max(map(len, figures))
    for name, value in figures.items():
        for line in shown(value):
            print(f"{name.replace('_', ' '):<{width}}  {line}")
    if config.out is not None:
        write_text(json.dumps(figures, indent=2) + "\n", config.out)
        print(f"figures: {config.out}")
    return figures


def shown(value: Any) -> list[str]:
    """A figure as it is printed, a line or several; of a table the largest entries."""
    if isinstance(value, list):
        lines = [shown(part)[0] for part in value] or ["none"]
        return lines if value and isinstance(value[0], dict) else [" to ".join(lines)]
    if isinstance(value, dict):
        entries = [f"{name or '(none)'} {shown(count)[0] or '(none)'}" for name, count in list(value.items())[:SHOWN]]
        more = [f"and {len(value) - SHOWN} more"] if len(value) > SHOWN else []
        return [", ".join(entries + more)]
    return [f"{value:.3g}" if isinstance(value, float) else str(value)]


def describe(judgements: Sequence[Judgement]) -> dict[str, Any]:
    """Counts of judgements of any kind."""
    uses = Counter(image for judgement in judgements for image in images_of(judgement))
    a_prompt = Counter(judgement.prompt for judgement in judgements)
    return {
        "judgements": len(judgements),
        "by_kind": dict(Counter(KINDS[type(judgement)] for judgement in judgements).most_common()),
        "by_criterion": dict(Counter(judgement.criterion for judgement in judgements).most_common()),
        "by_annotator": dict(Counter(judgement.annotator for judgement in judgements).most_common()),
        "without_label": sum(not judgement.has_label for judgement in judgements),
        "prompts": len(a_prompt),
        "most_of_one_prompt": max(a_prompt.values()),
        "images": len(uses),
        "uses_an_image": uses.total() / len(uses) if uses else None,
    }


def describe_pairs(pairs: Sequence[Pair | AnswerPair]) -> dict[str, Any]:
    """The figures of pairs; shares are of the labelled ones, `first_preferred` of the strict ones with a 95 % interval.

    An order that was shuffled gives `first_preferred` near a half. A contradiction is two things of one prompt that strict
    answers by one criterion put in both orders: raters differ, so it is no fault.
    """
    labelled = [pair for pair in pairs if pair.has_label]
    strict = [pair for pair in labelled if pair.label_0 in (0.0, 1.0)]
    first = sum(pair.label_0 == 1.0 for pair in strict)
    orders: dict[tuple[Any, ...], set[float | None]] = defaultdict(set)
    for pair in strict:
        orders[question_of(pair)].add(verdict_of(pair))
    interval = binomtest(first, len(strict)).proportion_ci(method="wilson") if strict else None
    return {
        "share_of_ties": sum(pair.label_0 == 0.5 for pair in labelled) / max(1, len(labelled)),
        "share_of_soft_labels": sum(pair.label_0 not in (0.0, 0.5, 1.0) for pair in labelled) / max(1, len(labelled)),
        "first_preferred": first / len(strict) if strict else None,
        "first_preferred_ci95": None if interval is None else [float(interval.low), float(interval.high)],
        "contradictions": sum(len(winners) > 1 for winners in orders.values()),
    }


def agreement(judgements: Sequence[Judgement]) -> list[dict[str, Any]]:
    """For each kind and criterion of which several named annotators judged the same thing: how far they agree.

    `pairwise` is the share of pairs of annotators who said the same, `alpha` Krippendorff's at the ordinal level (pairs: first,
    tie, second, in alphabetical order of the two). An annotator's last answer to a question counts. Rankings are left out.
    """
    questions: dict[tuple[str, str], dict[tuple[Any, ...], dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for judgement in judgements:
        verdict = verdict_of(judgement)
        if verdict is not None and judgement.annotator:
            answers = questions[KINDS[type(judgement)], judgement.criterion][question_of(judgement)]
            answers[judgement.annotator] = verdict
    rows = []
    for (kind, criterion), asked in questions.items():
        shared = [list(answers.values()) for answers in asked.values() if len(answers) > 1]
        if shared:
            table = np.full((max(map(len, shared)), len(shared)), np.nan)
            for column, verdicts in enumerate(shared):
                table[: len(verdicts), column] = verdicts if kind == "ratings" else np.sign(np.array(verdicts) - 0.5)
            alpha = krippendorff_alpha(table, "ordinal")
            row = {"of": kind, "criterion": criterion, "questions": len(shared), "pairwise": pairwise_agreement(table)}
            rows.append(row | {"alpha": None if math.isnan(alpha) else alpha})
    return rows
