"""Object HalBench, as RLHF-V runs it (Yu et al. 2023, https://arxiv.org/abs/2312.00849): CHAIR on 300 detailed descriptions."""

from pathlib import Path
from typing import Any

from vlm.benchmarks.answers import gaps_noted
from vlm.benchmarks.chair import measured, read_all

SAMPLES = 300
NOTES = [
    "objects are told in the answers by words of the vocabulary and its synonyms, where the original asks ChatGPT for them",
    "response_rate divides by the answers that name at least one object",
]


def score(answers: Path, data: Path, *, partial: bool = False, seed: int = 0) -> dict[str, Any]:
    """response_rate, mention_rate, coverage and length of a file of {"id", "response"}; `data` as CHAIR's.

    The benchmark has 300 images, each asked for with one of 8 prompts.
    """
    given, truths, missing, vocabulary = read_all(answers, data, partial)
    found = measured(given, truths, vocabulary, seed)
    names = {"response_rate": "chair_s_naming", "mention_rate": "chair_i", "coverage": "coverage", "length": "length"}
    figures: dict[str, Any] = {"n": len(given), "missing": missing}
    for name, theirs in names.items():
        figures |= {name: found[theirs], f"{name}_ci95": found[f"{theirs}_ci95"]}
    notes = gaps_noted(given, missing, len(truths))
    if len(truths) != SAMPLES:
        notes.append(f"the data have {len(truths)} images, the published benchmark {SAMPLES}")
    return figures | {"notes": notes + NOTES}
