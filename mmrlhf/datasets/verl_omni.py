"""Prompts as the parquet file that verl-omni's trainers which draw their own images read: Flow-GRPO, DiffusionNFT, online DPO.

The columns are those that its own preparing scripts write. Pairs, encoded for its offline DPO, are `diffusion.verl_omni`'s.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmrlhf.data import replacing
from mmrlhf.datasets.outcomes import suited
from mmrlhf.outcomes import Outcome

__all__ = ["suited", "write"]

SOURCE = "mmrlhf"
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
EXTRA = [("split", pa.string()), ("index", pa.int64()), ("raw_prompt", pa.string())]
SHARED = [
    ("data_source", pa.string()),
    ("prompt", MESSAGES),
    ("negative_prompt", MESSAGES),
    ("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.string())])),
]
SCHEMA = pa.schema([*SHARED, ("ability", pa.string()), ("extra_info", pa.struct(EXTRA))])


def write(judgements: Iterable[Outcome], file: Path) -> None:
    """Write each prompt once, in the order of its first judgement, with nothing for a negative prompt; whole or not at all."""
    prompts = list(dict.fromkeys(judgement.prompt for judgement in judgements))
    rows = [prompt_row(prompt, index, file.stem) for index, prompt in enumerate(prompts)]
    with replacing(file) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), temporary)


def prompt_row(prompt: str, index: int, split: str, negative: str = " ") -> dict[str, Any]:
    """What the trainers read of a prompt; the reward's function gets it whole as the ground truth."""
    return {
        "data_source": SOURCE,
        "prompt": message(prompt),
        "negative_prompt": message(negative),
        "reward_model": {"style": "model", "ground_truth": prompt},
        "ability": "preference_alignment",
        "extra_info": {"split": split, "index": index, "raw_prompt": prompt},
    }


def message(text: str) -> Sequence[dict[str, str]]:
    """A conversation of one message of the user."""
    return [{"role": "user", "content": text}]
