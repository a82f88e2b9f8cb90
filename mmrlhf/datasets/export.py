"""`mmrlhf data export`: the answers in a store, or a file of pairs, in the format that another tool reads."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmrlhf.data import Pair, read_pairs
from mmrlhf.datasets import writer
from mmrlhf.errors import UserError
from mmrlhf.store import Store


@dataclass(frozen=True)
class ExportConfig:
    """Write pair judgements as a file of pairs, one row a judgement."""

    out: Path
    """The file to write; paths in a PAIRS.jsonl are relative to it."""
    store: str | None = None
    """sqlite:///FILE or a path: what `mmrlhf rate` collected."""
    data: Path | None = None
    """Instead of a store: a PAIRS.jsonl."""
    format: Literal["pairs", "pickapic"] = "pairs"
    """pairs: PAIRS.jsonl, which `mmrlhf reward train` takes; pickapic: a parquet file in Pick-a-Pic's columns."""
    source: str = "all"
    """Of a store: all, or only the answers of one kind of rater: human, simulated or ai."""


def export(config: ExportConfig) -> list[Pair]:
    """Every answer that stands (superseded and withdrawn ones are left out), in the order given."""
    if (config.store is None) == (config.data is None):
        raise UserError("got " + ("both" if config.data else "neither") + " of --store and --data: give one of them")
    pairs = read_pairs(config.data) if config.data is not None else answers(str(config.store), config.source)
    writer(config.format)(pairs, config.out)
    print(f"{len(pairs)} answers: {config.out}")
    return pairs


def answers(url: str, source: str) -> list[Pair]:
    """The pair judgements of a store by one kind of rater, or by all."""
    allowed = ("all", "human", "simulated", "ai")
    if source not in allowed:
        raise UserError(f"--source got '{source}', allowed is {', '.join(allowed)}")
    file = Path(url.removeprefix("sqlite:///"))
    if not file.is_file():
        raise UserError(f"no store at {file}: give the one that `mmrlhf rate --store` wrote")
    store = Store(url)
    try:
        items, preferences = store.items(), store.preferences()
    finally:
        store.close()
    wanted = [p for p in preferences if source in ("all", p.source)]
    if not wanted:
        raise UserError(f"no answers to pairs (source: {source}) in {file}: collect some with `mmrlhf rate`")
    pairs = []
    for preference in wanted:
        if missing := [key for key in preference.items if key not in items]:
            raise UserError(
                f"the store {file} has an answer about {missing[0]}, a picture that it does not know: add its item"
            )
        first, second = (Path(items[key].path) for key in preference.items)
        for path in (first, second):
            if not path.is_file():
                raise UserError(f"the picture {path} is gone: put it back, or rate it again from where it is now")
        pairs.append(Pair(preference.prompt, first, second, preference.label))
    return pairs
