"""`mmrlhf data export`: the answers in a store, or a file of judgements, in the format that another tool reads."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mmrlhf.config import exactly_one
from mmrlhf.data import Pair
from mmrlhf.datasets import WrittenFormat, writer
from mmrlhf.datasets.judgements import Annotation, Judgement, read_annotations
from mmrlhf.datasets.rows import BadRow
from mmrlhf.datasets.stored import is_veto, outcomes_of, paths
from mmrlhf.errors import UserError
from mmrlhf.outcomes import Ranking, strict_pairs
from mmrlhf.points import PointedImage, write_points
from mmrlhf.rater_quality import check_minimum, fails_checks
from mmrlhf.segments import SegmentedItem, write_segments
from mmrlhf.store import Store, open_existing, store_name, task_key
from mmrlhf.store.checks import check_results

FLAT = ("pickapic", "trl")  # formats without a column for the criterion
ExportFormat = Literal[WrittenFormat, "segments", "points"]
WITH_VETOES = ("outcomes", "label-studio", "argilla")  # formats that tell a veto from an answer
WITH_RATINGS = (*WITH_VETOES, "verl-omni")  # formats that hold what was said of single images
WITH_MARKS = ("label-studio", "argilla")  # formats that hold marked answers beside everything else
WITH_POINTS = ("label-studio",)  # and places in images


class NothingThere(UserError):
    """The store has no answer of the kinds that were asked for."""


@dataclass(frozen=True)
class ExportConfig:
    """Write judgements as a file, one row a judgement."""

    out: Path
    """The file to write; paths in a JSONL file are relative to it."""
    store: str | None = None
    """sqlite:///FILE, a path or postgresql://USER@HOST/NAME: what `mmrlhf rate` collected."""
    data: Path | None = None
    """Instead of a store: a PAIRS.jsonl, an OUTCOMES.jsonl, an ANSWERS.jsonl, a SEGMENTS.jsonl or a POINTS.jsonl."""
    format: ExportFormat = "pairs"
    """Of images: pairs (which `mmrlhf reward train` takes), outcomes (rankings, ratings by any criteria and vetoes, too), points
    (places in a store's images that were clicked), pickapic (a parquet file), verl-omni (a parquet file of their prompts, each
    once). Of answers: answers, trl (a parquet file for TRL's trainers), segments (the marked ones of a store, as
    `mmrlhf vlm dense-dpo` takes them). Of all of these: label-studio, argilla (JSON that they import; argilla has no points)."""
    source: str = "all"
    """Of a store: all, or only the answers of one kind of rater: human, simulated or ai."""
    criterion: str | None = None
    """Only what was answered by this criterion; "" is which is better overall."""
    on_fault: Literal["refuse", "skip"] = "refuse"
    """A judgement that the format has no place for ends the export, or is left out and counted."""
    vetoes: Literal["keep", "leave"] = "keep"
    """Of a store: what raters marked as unsafe, as ratings by the criterion safety, or without."""
    min_check_rate: float = 0.0
    """Of a store: without the raters who surely pass less than this share of their check questions, of 5 or more. 0: all."""


def export(config: ExportConfig, say: Callable[[str], None] = print) -> list[Any]:
    """Every answer that stands (superseded and withdrawn ones are left out), in the order given and each pair as it was shown.

    `say` takes the line that tells where the result is.
    """
    exactly_one(store=config.store, data=config.data)
    doubtful = who_fails(config)
    if config.format in ("segments", "points"):
        return export_parts(config, say, doubtful)
    given = numbered(config.data) if config.data is not None else found_in_store(config)
    given = [each for each in given if each[1].annotator not in doubtful]
    if config.criterion is not None:
        given = [each for each in given if getattr(each[1], "criterion", "") == config.criterion]
    suited, write = writer(config.format)
    rows: list[Any] = []
    left_out = 0
    for where, judgement in given:
        try:
            rows += suited(judgement)
        except BadRow as error:
            if config.on_fault == "refuse":
                raise UserError(
                    f"{where} {error}: give another --format than {config.format}, or leave such rows out with --on-fault skip"
                ) from error
            left_out += 1
    check(rows, config, left_out)
    write(rows, config.out)
    say(f"{len(rows)} answers ({left_out} left out): {config.out}")
    return rows


def who_fails(config: ExportConfig) -> set[str]:
    """The raters of the store who fail its check questions."""
    check_minimum(config.min_check_rate, config.store)
    if not config.min_check_rate:
        return set()
    store = opened(str(config.store), config.source)
    try:
        results = check_results(store)
    finally:
        store.close()
    return {name for name, counts in results.items() if fails_checks(*counts, config.min_check_rate)}


def found_in_store(config: ExportConfig) -> list[tuple[str, Annotation]]:
    """What a store has for the format."""
    url = str(config.store)
    marked: list[tuple[str, Annotation]] = []
    if config.format in WITH_MARKS:
        marked = [(f"marked answer {number}", item) for number, item in enumerate(marks(url, config.source), start=1)]
    if config.format in WITH_POINTS:
        marked += [(f"points {number}", item) for number, item in enumerate(pointed(url, config.source), start=1)]
    vetoes = config.vetoes == "keep" and config.format in WITH_VETOES
    try:
        return [*answers(url, config.source, ratings=config.format in WITH_RATINGS, vetoes=vetoes), *marked]
    except NothingThere:
        if marked:
            return marked
        raise


def export_parts(
    config: ExportConfig, say: Callable[[str], None], doubtful: set[str]
) -> list[SegmentedItem] | list[PointedImage]:
    """The marked answers of a store as a SEGMENTS.jsonl, or its points as a POINTS.jsonl; those without a mark are in it, too."""
    what = "marked answers" if config.format == "segments" else "images with points"
    if config.store is None or config.criterion is not None:
        raise UserError(f"--format {config.format} takes {what}: give --store, and neither --data nor --criterion")
    found = marks(config.store, config.source) if config.format == "segments" else pointed(config.store, config.source)
    rows: list[Any] = [row for row in found if row.annotator not in doubtful]
    if not rows:
        raise UserError(
            f"no {what} (source: {config.source}) in {store_name(config.store)}: collect some with `mmrlhf rate "
            f"--mode {config.format}`"
        )
    (write_segments if config.format == "segments" else write_points)(rows, config.out)
    say(f"{len(rows)} {what}: {config.out}")
    return rows


def pointed(url: str, source: str) -> list[PointedImage]:
    """The images of a store in which somebody looked for something to point at."""
    store = opened(url, source)
    try:
        said, name = [judgement for judgement in store.points() if source in ("all", judgement.source)], store.name
        items = store.items()
    finally:
        store.close()
    files = list(paths([judgement.item for judgement in said], items, name))
    return [
        PointedImage(judgement.prompt, file, judgement.points, annotator=judgement.annotator)
        for judgement, file in zip(said, files, strict=True)
    ]


def marks(url: str, source: str) -> list[SegmentedItem]:
    """The marked answers of a store, those without a mark, too."""
    store = opened(url, source)
    try:
        marked, name = [judgement for judgement in store.segments() if source in ("all", judgement.source)], store.name
        items = store.items()
    finally:
        store.close()
    rows = []
    for judgement in marked:
        (image,) = paths([judgement.item], items, name)
        key = task_key(judgement.prompt, judgement.item, judgement.text)
        labels = tuple(replace(label, item=key) for label in judgement.segments)
        about: dict[str, Any] = {"prompt": judgement.prompt, "answer": judgement.text, "image": image}
        rows.append(SegmentedItem(key, labels, **about, annotator=judgement.annotator))
    return rows


def numbered(file: Path) -> list[tuple[str, Annotation]]:
    """The judgements of a file, each with what to call it."""
    return [(f"judgement {number} of {file}", row) for number, row in enumerate(read_annotations(file), start=1)]


def check(rows: list[Any], config: ExportConfig, left_out: int) -> None:
    """UserError where there is nothing to write, or criteria would be mixed up."""
    if not rows:
        raise UserError(f"nothing to write as {config.format} ({left_out} judgements do not suit it): give other data")
    criteria = sorted({getattr(row, "criterion", "") for row in rows})
    if config.format in FLAT and len(criteria) > 1:
        raise UserError(
            f"the judgements are by the criteria {criteria}, which {config.format} cannot tell apart: choose one with --criterion"
        )


def answers(url: str, source: str, *, ratings: bool = False, vetoes: bool = False) -> list[tuple[str, Judgement]]:
    """What is in a store by one kind of rater, or by all, each with what to call it; see `outcomes_of`.

    Without `ratings` (of single images) rankings become their strict pairs; `vetoes` are ratings, too, and have to be asked for.
    """
    store = opened(url, source)
    name = store.name
    try:
        said = [outcome for outcome in outcomes_of(store, source) if vetoes or not is_veto(outcome)]
    finally:
        store.close()
    found: list[Judgement] = []
    for outcome in said:
        if isinstance(outcome, Ranking) and not ratings:
            found += strict_pairs(outcome)
        elif ratings or isinstance(outcome, Pair):
            found.append(outcome)
    if not found:
        what = "answers" if ratings else "answers to pairs"
        raise NothingThere(
            f"no {what} (source: {source}) in {name}: collect some with `mmrlhf rate`, or give --format segments or points "
            "for those of its modes"
        )
    return [(f"answer {number} of {name}", judgement) for number, judgement in enumerate(found, start=1)]


def opened(url: str, source: str) -> Store:
    """A store that exists. UserError where it does not, or `source` is no kind of rater."""
    allowed = ("all", "human", "simulated", "ai")
    if source not in allowed:
        raise UserError(f"--source got '{source}', allowed is {', '.join(allowed)}")
    return open_existing(url, "mmrlhf rate --store")
