"""`mmrlhf data validate`: every fault of a preference data set with its row, before anything is trained on it."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from mmrlhf.datasets import Format
from mmrlhf.datasets.checked import checked
from mmrlhf.datasets.rows import Fault
from mmrlhf.errors import UserError


@dataclass(frozen=True)
class ValidateConfig:
    """List every row that cannot be used; exit status 2 where there is one."""

    source: Path
    """The data set, as `mmrlhf data import` takes it."""
    format: Format = "pairs"
    """pairs, outcomes, answers, pickapic, hpd, imagereward, folder, hh, saferlhf, rlhfv, trl, label-studio or argilla."""
    images: Path | None = None
    """Where the source's image files are; by default beside it."""


def validate(config: ValidateConfig) -> list[Fault]:
    """Print a line a fault. UserError with their number where there are any, or where there is no row at all."""
    faults, annotators = [], Counter[str]()
    for row in tqdm(checked(config.format, config.source, config.images), desc="validate", unit="row"):
        if isinstance(row, Fault):
            faults.append(row)
            tqdm.write(f"{row.where}: {row.problem}")
        else:
            annotators[row.judgement.annotator] += 1
    if len(annotators) == 1:
        who = next(iter(annotators))
        print(
            f"note: {f'one annotator only ({who})' if who else 'no annotator is named'}: agreement cannot be measured"
        )
    count = annotators.total()
    if faults or not count:
        raise UserError(
            f"{config.source} has {len(faults)} faults beside {count} usable judgements: mend the rows listed, or leave them "
            "out with `mmrlhf data import --on-fault skip`"
        )
    print(f"{count} judgements without a fault: {config.source}")
    return faults
