"""`mmrlhf vlm reward`: a calibrated reward for the parts of answers, from marked ones, and how well it tells on others."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import logit

from mmrlhf.calibration import ece
from mmrlhf.config import check, check_seed
from mmrlhf.data import is_unused, write_text
from mmrlhf.errors import UserError
from mmrlhf.rewards.calibrate import fit_temperature
from mmrlhf.rewards.language.inputs import Row
from mmrlhf.rewards.segments.fit import fit_segments
from mmrlhf.rewards.segments.labels import SpanLabel
from mmrlhf.rewards.segments.text import TextFeatures, token_spans
from mmrlhf.segments import SegmentedItem, SegmentScore, with_rest
from mmrlhf.types import SegmentLabel
from vlm.answer_readers import OPTIONS, Features, open_reader, source_of
from vlm.preference_data import answers_of, hold_out
from vlm.segment_reward import HallucinationReward
from vlm.spans import Parts, spans_of
from vlm.state_features import Layers

TEMPERATURES = (0.25, 8.0)
"""The least and the greatest that few held-out answers can ask for."""
MOST_CROPS = 8


@dataclass(frozen=True)
class RewardConfig:
    """Learn what the parts of an answer are worth from answers in which somebody marked what is wrong."""

    model: str
    """The model that reads: with --features states a vision-language model (tiny-llava, a folder, or a hub id), with clip an
    image-text model (tiny-clip, or a folder or hub id of CLIP, SigLIP or open_clip)."""
    data: Path
    """SEGMENTS.jsonl: answers with spans that are correct, misleading or irrelevant."""
    out: Path
    """Folder for the reward, metrics.json and report.html."""
    features: Features = "states"
    """What a part is judged by: the states of a vision-language model that reads prompt, picture and answer, or how an image-text
    model embeds the part and the picture (clip), whatever the prompt and the other parts."""
    adapter: Path | None = None
    """Folder of LoRA weights to read with; of --features states."""
    unmarked_correct: bool = False
    """What no span covers is correct, as where people mark only what is wrong."""
    layers: Layers = "last"
    """The states that are read: of the last layer, of one in the middle, or of both; of --features states."""
    crops: int = 1
    """Rows and columns of a grid whose pieces a part is compared with beside the whole picture, which alone an image-text model
    embeds; 1: no pieces. Of --features clip."""
    parts: Parts = "sentence"
    """The parts of an answer that the reward judges: sentences, clauses or words."""
    validation: float = 0.2
    """Share of the prompts (about an image) that are held out: half to calibrate, half to measure."""
    epochs: int = 100
    """Passes over the marked answers at most."""
    ensemble: int = 4
    """Members, each with its own start and resample."""
    hidden: int = 64
    """Width of a member's hidden layer."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 …"""
    seed: int = 0
    """Same seed, same reward."""


def train(config: RewardConfig) -> dict[str, Any]:
    """Read, learn, calibrate, measure; write the folder and return the figures."""
    check(config, "validation", lambda value: 0 < value < 1, "above 0 and below 1")
    check_seed(config.seed)
    if not is_unused(config.out):
        raise UserError(f"--out {config.out} already holds files: give an empty folder")
    source = read_from(config)
    items = answered(config)
    rows = [Row(item.prompt, item.answer, item.image) for item in items]
    reader = open_reader(source, config.device)
    reader.check(rows, config.parts)
    learnt, held = hold_out([item.unit for item in items], config.validation, config.seed)
    calibrate, measure = split(held, [item.unit for item in items], config.seed)
    texts = reader.read(rows, config.parts, progress=True)
    own = part_of(texts, learnt)
    head = fit_segments(
        own.features, own.mask, labels(texts, items, learnt, config.parts), seed=config.seed,
        groups=[items[i].unit for i in learnt], epochs=config.epochs, ensemble=config.ensemble, hidden=config.hidden,
    )  # fmt: skip
    reward = HallucinationReward(reader, head, source=source, parts=config.parts)
    raw, told, _ = judged(reward, texts, items, calibrate)
    before = judged(reward, texts, items, measure)
    reward.temperature = best_temperature(raw, told)
    threshold = best_threshold(*judged(reward, texts, items, calibrate)[:2])
    figures: dict[str, Any] = {
        "features": config.features,
        "answers": len(learnt),
        "held_out_answers": len(measure),
        "temperature": reward.temperature,
    }
    figures |= measured(before, judged(reward, texts, items, measure), threshold, config.seed)
    reward.save(config.out)
    write_text(json.dumps(figures, indent=1) + "\n", config.out / "metrics.json")
    write_page(reward, rows, measure, figures, config.out)
    low, high = figures["auroc_ci95"]
    print(
        f"misleading parts told from others with AUROC {figures['auroc']:.3f} (95% {low:.3f} … {high:.3f}) on "
        f"{len(measure)} held-out answers; the reward is in {config.out}"
    )
    return figures


def read_from(config: RewardConfig) -> dict[str, Any]:
    """What reads the answers. UserError for an option of other features, or one out of its range."""
    check(config, "crops", lambda value: 1 <= value <= MOST_CROPS, f"1 (none) to {MOST_CROPS}")
    for features, names in OPTIONS.items():
        for name in names if features != config.features else ():
            if getattr(config, name) != getattr(RewardConfig, name):
                raise UserError(
                    f"--{name} got {getattr(config, name)}, which is of --features {features} alone, and --features got "
                    f"{config.features}: leave one of them out"
                )
    own = {name: getattr(config, name) for name in OPTIONS[config.features]}
    if own.get("adapter") is not None:
        own["adapter"] = str(own["adapter"])
    return source_of(config.features, config.model, **own)


def answered(config: RewardConfig) -> list[SegmentedItem]:
    """The marked answers. UserError where one is of steps, or too few can be held out."""
    items = answers_of(config.data)
    if config.unmarked_correct:
        items = [with_rest(item) for item in items]
    items = [item for item in items if item.segments]
    units = len({item.unit for item in items})
    if units < 20:
        raise UserError(
            f"{config.data} has marked answers about {units} prompts and images, allowed are 20 or more: some are held out to "
            "calibrate and to measure"
        )
    return items


def split(held: Sequence[int], units: Sequence[str], seed: int) -> tuple[list[int], list[int]]:
    """The held-out answers in two halves, of different prompts."""
    first, second = hold_out([units[i] for i in held], 0.5, seed + 1)
    return [held[i] for i in first], [held[i] for i in second]


def part_of(texts: TextFeatures, rows: Sequence[int]) -> TextFeatures:
    """Some of the answers."""
    chosen = torch.tensor(list(rows))
    return TextFeatures(texts.features[chosen], texts.mask[chosen], [texts.offsets[i] for i in rows])


def labels(texts: TextFeatures, items: Sequence[SegmentedItem], rows: Sequence[int], parts: Parts) -> list[SpanLabel]:
    """What was said of the parts of some answers, on their tokens; rows are numbered anew.

    The parts, and not the marked spans themselves: where a span ends would tell that it was marked.
    """
    found = []
    for place, i in enumerate(rows):
        answer = items[i].answer or ""
        said = [(span, value) for span in spans_of(answer, parts) if (value := value_of(items[i], span)) is not None]
        tokens = token_spans(texts.offsets[i], [span for span, _ in said], answer)
        found += [SpanLabel(place, *span, value) for span, (_, value) in zip(tokens, said, strict=True)]
    return found


def value_of(item: SegmentedItem, span: tuple[int, int]) -> str | float | None:
    """The worst tag of what was marked in a part, else the mean of its scores; None where nothing was."""
    inside = [each for each in item.segments if each.start < span[1] and span[0] < each.end]
    tags = {each.tag for each in inside if isinstance(each, SegmentLabel)}
    scores = [each.score for each in inside if isinstance(each, SegmentScore)]
    for tag in ("misleading", "irrelevant", "correct"):
        if tag in tags:
            return tag
    return sum(scores) / len(scores) if scores else None


Judged = tuple[np.ndarray, np.ndarray, np.ndarray]
"""(P(misleading), whether it is, number of the answer) for each tagged part."""


def judged(
    reward: HallucinationReward, texts: TextFeatures, items: Sequence[SegmentedItem], rows: Sequence[int]
) -> Judged:
    """What the reward says of the tagged parts of some answers."""
    own = [each for each in labels(texts, items, rows, reward.parts) if isinstance(each.value, str)]
    found = reward.tempered(part_of(texts, rows), [label[:3] for label in own])[:, 0]
    truth = np.array([label.value == "misleading" for label in own])
    return found.double().numpy(), truth, np.array([label.row for label in own])


def best_temperature(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """The temperature of the odds under which what is true is likeliest (Guo et al. 2017)."""
    margins = logit(np.clip(probabilities, 1e-6, 1 - 1e-6))
    return float(np.clip(fit_temperature(margins, truth.astype(float)), *TEMPERATURES))


def best_threshold(probabilities: np.ndarray, truth: np.ndarray, _: np.ndarray | None = None) -> float:
    """The probability from which to call a part misleading, for the highest F1."""
    choices = np.linspace(0.05, 0.95, 91)
    return float(choices[int(np.argmax([f1(probabilities >= choice, truth) for choice in choices]))])


def measured(before: Judged, after: Judged, threshold: float, seed: int) -> dict[str, Any]:
    """AUROC, F1 and calibration error, with 95 % intervals over answers (percentile bootstrap)."""
    probabilities, truth, answers = after
    figures: dict[str, Any] = {"parts": len(truth), "misleading_share": float(truth.mean()), "threshold": threshold}
    functions = {
        "auroc": lambda rows: auroc(probabilities[rows], truth[rows]),
        "f1": lambda rows: f1(probabilities[rows] >= threshold, truth[rows]),
        "ece_before": lambda rows: ece(before[0][rows], truth[rows].astype(float)),
        "ece_after": lambda rows: ece(probabilities[rows], truth[rows].astype(float)),
    }
    of_answer = [np.flatnonzero(answers == answer) for answer in np.unique(answers)]
    generator = np.random.default_rng(seed)
    drawn = [
        np.concatenate([of_answer[i] for i in generator.integers(len(of_answer), size=len(of_answer))])
        for _ in range(300)
    ]
    for name, function in functions.items():
        values = [function(rows) for rows in drawn]
        figures[name] = function(np.arange(len(truth)))
        figures[f"{name}_ci95"] = [float(bound) for bound in np.nanquantile(values, [0.025, 0.975])]
    return figures


def auroc(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """The share of (misleading, other) pairs in which the misleading one has the higher probability; NaN without such pairs."""
    from scipy.stats import rankdata

    positive, negative = int(truth.sum()), int((~truth).sum())
    if not positive or not negative:
        return float("nan")
    ranks = rankdata(probabilities)[truth].sum()
    return float((ranks - positive * (positive + 1) / 2) / (positive * negative))


def f1(said: np.ndarray, truth: np.ndarray) -> float:
    """Of calling parts misleading."""
    return float(2 * (said & truth).sum() / max(1, said.sum() + truth.sum()))


def write_page(
    reward: HallucinationReward, rows: Sequence[Row], shown: Sequence[int], figures: dict[str, Any], out: Path
) -> None:
    """OUT/report.html: the figures, and held-out answers whose words are the redder the likelier they mislead."""
    import jinja2

    from mmrlhf.page import thumbnail_uri

    chosen = [rows[i] for i in shown[:24]]
    answers = []
    for row, judgement in zip(chosen, reward.probabilities(chosen), strict=True):
        parts = [
            {"text": (row.answer or "")[start:end], "share": float(p[0])}
            for (start, end), p in zip(spans_of(row.answer or "", reward.parts), judgement, strict=True)
        ]
        answers.append({"image": thumbnail_uri(row.image) if isinstance(row.image, Path) else None, "parts": parts})
    template = (Path(__file__).parent / "reward.html").read_text(encoding="utf-8")
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(template)
    write_text(page.render(figures=figures, answers=answers), out / "report.html")
