"""`mmrlhf data export`: the store's answers as a PAIRS.jsonl, which `mmrlhf reward train` reads."""

from dataclasses import dataclass
from pathlib import Path

from mmrlhf.data import Pair, write_pairs
from mmrlhf.errors import UserError
from mmrlhf.store import Store


@dataclass(frozen=True)
class ExportConfig:
    """Write the pair judgements of a store as a file of pairs, one line a judgement."""

    store: str
    """sqlite:///FILE or a path: what `mmrlhf rate` collected."""
    out: Path
    """PAIRS.jsonl to write; paths in it are relative to the file."""
    source: str = "all"
    """all, or only the answers of one kind of rater: human, simulated or ai."""


def export(config: ExportConfig) -> list[Pair]:
    """Every answer that stands (superseded and withdrawn ones are left out), in the order given."""
    allowed = ("all", "human", "simulated", "ai")
    if config.source not in allowed:
        raise UserError(f"--source got '{config.source}', allowed is {', '.join(allowed)}")
    file = Path(config.store.removeprefix("sqlite:///"))
    if not file.is_file():
        raise UserError(f"no store at {file}: give the one that `mmrlhf rate --store` wrote")
    store = Store(config.store)
    try:
        items, preferences = store.items(), store.preferences()
    finally:
        store.close()
    wanted = [p for p in preferences if config.source in ("all", p.source)]
    if not wanted:
        raise UserError(f"no answers to pairs (source: {config.source}) in {file}: collect some with `mmrlhf rate`")
    pairs = []
    for preference in wanted:
        first, second = (Path(items[key].path) for key in preference.items)
        for path in (first, second):
            if not path.is_file():
                raise UserError(f"the picture {path} is gone: put it back, or rate it again from where it is now")
        pairs.append(Pair(preference.prompt, first, second, preference.label))
    write_pairs(pairs, config.out)
    print(f"{len(pairs)} answers: {config.out}")
    return pairs
