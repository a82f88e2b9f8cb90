"""The answers in a store as a round of judgements, kept beside the reward that learns from them: the next round knows them."""

from dataclasses import replace

from mmrlhf import distributed
from mmrlhf.data import is_unused
from mmrlhf.datasets.export import ExportConfig, export
from mmrlhf.errors import UserError
from mmrlhf.rewards.training.config import TrainConfig

JUDGEMENTS = "judgements.jsonl"


def take_answers(config: TrainConfig) -> tuple[TrainConfig, bool]:
    """(the config with the store's answers of now as --data, a file in --out; whether it was written now).

    A run that is resumed keeps the answers it began with. Those that the reward of --start learned from are the earlier rounds.
    """
    file = config.out / JUDGEMENTS
    earlier = None if config.start is None else config.start / JUDGEMENTS
    replay = config.replay or (earlier if earlier is not None and earlier.is_file() else None)
    found = replace(config, data=file, replay=replay)
    unused = is_unused(config.out)
    distributed.wait()  # until all have looked at the folder
    if not unused:
        if not config.resume:
            raise UserError(f"--out {config.out} already holds files: give an empty folder, or --resume to go on")
        if not file.is_file():
            raise UserError(f"--out {config.out} holds no run on a store's answers: give an empty folder")
        return found, False
    if distributed.is_main_process():
        export(
            ExportConfig(
                file,
                store=config.store,
                source=config.source,
                format="outcomes",
                vetoes="leave",
                min_check_rate=config.min_check_rate,
            )
        )
    distributed.wait()
    return found, True
