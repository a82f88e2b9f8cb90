"""`mmrlhf data export`: the answers in a store, or a file of judgements, in the format that another tool reads."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mmrlhf.data import Pair
from mmrlhf.datasets import WrittenFormat, writer
from mmrlhf.datasets.judgements import Judgement, read_judgements
from mmrlhf.datasets.rows import BadRow
from mmrlhf.errors import UserError
from mmrlhf.outcomes import Rating
from mmrlhf.segments import SegmentedItem, write_segments
from mmrlhf.store import Item, Store, store_exists, task_key
from mmrlhf.types import Preference

LEVELS = 5  # of the rating app's scale
FLAT = ("pickapic", "trl")  # formats without a column for the criterion
ExportFormat = Literal[WrittenFormat, "segments"]
WITH_RATINGS = ("outcomes", "verl-omni")  # formats that hold what was said of single images


@dataclass(frozen=True)
class ExportConfig:
    """Write judgements as a file, one row a judgement."""

    out: Path
    """The file to write; paths in a JSONL file are relative to it."""
    store: str | None = None
    """sqlite:///FILE, a path or postgresql://USER@HOST/NAME: what `mmrlhf rate` collected."""
    data: Path | None = None
    """Instead of a store: a PAIRS.jsonl, an OUTCOMES.jsonl or an ANSWERS.jsonl."""
    format: ExportFormat = "pairs"
    """Of images: pairs (which `mmrlhf reward train` takes), outcomes (ratings too), pickapic (a parquet file), verl-omni (a
    parquet file of their prompts, each once). Of answers: answers, trl (a parquet file for TRL's trainers), segments (the
    marked ones of a store, as `mmrlhf vlm dense-dpo` takes them)."""
    source: str = "all"
    """Of a store: all, or only the answers of one kind of rater: human, simulated or ai."""
    criterion: str | None = None
    """Only what was answered by this criterion; "" is which is better overall."""
    on_fault: Literal["refuse", "skip"] = "refuse"
    """A judgement that the format has no place for ends the export, or is left out and counted."""


def export(config: ExportConfig) -> list[Any]:
    """Every answer that stands (superseded and withdrawn ones are left out), in the order given and each pair as it was shown."""
    if (config.store is None) == (config.data is None):
        raise UserError("got " + ("both" if config.data else "neither") + " of --store and --data: give one of them")
    if config.format == "segments":
        return export_segments(config)
    if config.data is not None:
        given: list[tuple[str, Judgement]] = numbered(config.data)
    else:
        given = answers(str(config.store), config.source, ratings=config.format in WITH_RATINGS)
    if config.criterion is not None:
        given = [(where, judgement) for where, judgement in given if judgement.criterion == config.criterion]
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
    print(f"{len(rows)} answers ({left_out} left out): {config.out}")
    return rows


def export_segments(config: ExportConfig) -> list[SegmentedItem]:
    """The marked answers of a store as a SEGMENTS.jsonl; those without a mark are in it, too."""
    if config.store is None or config.criterion is not None:
        raise UserError("--format segments takes marked answers: give --store, and neither --data nor --criterion")
    store, source = opened(config.store, config.source), config.source
    name = store.name
    try:
        items, marked = store.items(), store.segments()
    finally:
        store.close()
    rows = []
    for judgement in marked:
        if source in ("all", judgement.source):
            (image,) = paths([judgement.item], items, name)
            key = task_key(judgement.prompt, judgement.item, judgement.text)
            labels = tuple(replace(label, item=key) for label in judgement.segments)
            about: dict[str, Any] = {"prompt": judgement.prompt, "answer": judgement.text, "image": image}
            rows.append(SegmentedItem(key, labels, **about, annotator=judgement.annotator))
    if not rows:
        raise UserError(
            f"no marked answers (source: {source}) in {name}: collect some with `mmrlhf rate --mode segments`"
        )
    write_segments(rows, config.out)
    print(f"{len(rows)} marked answers: {config.out}")
    return rows


def numbered(file: Path) -> list[tuple[str, Judgement]]:
    """The judgements of a file, each with what to call it."""
    return [(f"judgement {number} of {file}", row) for number, row in enumerate(read_judgements(file), start=1)]


def check(rows: list[Any], config: ExportConfig, left_out: int) -> None:
    """UserError where there is nothing to write, or criteria would be mixed up."""
    if not rows:
        raise UserError(f"nothing to write as {config.format} ({left_out} judgements do not suit it): give other data")
    criteria = sorted({row.criterion for row in rows})
    if config.format in FLAT and len(criteria) > 1:
        raise UserError(
            f"the judgements are by the criteria {criteria}, which {config.format} cannot tell apart: choose one with --criterion"
        )


def answers(url: str, source: str, *, ratings: bool = False) -> list[tuple[str, Judgement]]:
    """What is in a store by one kind of rater, or by all, each with what to call it: pairs, then `ratings` of single images."""
    store = opened(url, source)
    name = store.name
    try:
        items, preferences, scores = store.items(), store.preferences(), store.judgements() if ratings else []
    finally:
        store.close()
    found: list[Judgement] = [pair_of(p, items, name) for p in preferences if source in ("all", p.source)]
    for s in scores:
        if source in ("all", s.source):
            (path,) = paths([s.item], items, name)
            found.append(Rating(s.prompt, path, level_of(s.score, name), LEVELS, annotator=s.annotator))
    if not found:
        what = "answers" if ratings else "answers to pairs"
        raise UserError(f"no {what} (source: {source}) in {name}: collect some with `mmrlhf rate`")
    return [(f"answer {number} of {name}", judgement) for number, judgement in enumerate(found, start=1)]


def opened(url: str, source: str) -> Store:
    """A store that exists. UserError where it does not, or `source` is no kind of rater."""
    allowed = ("all", "human", "simulated", "ai")
    if source not in allowed:
        raise UserError(f"--source got '{source}', allowed is {', '.join(allowed)}")
    if not store_exists(url):
        raise UserError(f"no store at {url.removeprefix('sqlite:///')}: give the one that `mmrlhf rate --store` wrote")
    return Store(url)


def pair_of(preference: Preference, items: dict[str, Item], store: str) -> Pair:
    """A preference with its images in the order of the screen, the left one first, so that a bias for a side can be seen."""
    left, right = paths(preference.shown, items, store)
    label = preference.label if preference.shown == preference.items else 1 - preference.label
    return Pair(preference.prompt, left, right, label, annotator=preference.annotator)


def paths(keys: Any, items: dict[str, Item], store: str) -> Iterator[Path]:
    """The files of some items. UserError for one that is unknown or gone."""
    for key in keys:
        if key not in items:
            raise UserError(
                f"the store {store} has an answer about {key}, a picture that it does not know: add its item"
            )
        path = Path(items[key].path)
        if not path.is_file():
            raise UserError(f"the picture {path} is gone: put it back, or rate it again from where it is now")
        yield path


def level_of(score: float, store: str) -> int:
    """A score as a place on the rating app's scale."""
    if score not in range(1, LEVELS + 1):
        raise UserError(f"the store {store} has the score {score:g}, allowed is 1 to {LEVELS}: withdraw that answer")
    return int(score)
