"""PKU-SafeRLHF (Ji et al. 2023): two answers a row, which is better, which is safer, and whether each is safe.

BeaverTails' classification rows ({"prompt", "response", "is_safe"}) hold one answer and so no pair: they are faults here.
"""

from pathlib import Path
from typing import Any

from mmrlhf.answers import AnswerPair
from mmrlhf.datasets.records import records
from mmrlhf.datasets.rows import BadRow, Row, Rows, differing, rows_of, text
from mmrlhf.outcomes import SAFETY

RESPONSES = ("response_0", "response_1")
CRITERIA = {"better_response_id": "", "safer_response_id": SAFETY}
FLAGS = ("is_response_0_safe", "is_response_1_safe")


def read(source: Path, images: Path | None) -> Rows:
    """Of each row a pair on helpfulness (criterion "") and one on safety, where it says which is better and which is safer."""
    found = records(source, ("prompt",), (*RESPONSES, *CRITERIA, *FLAGS))
    return rows_of(found, lambda where, record: [Row(where, pair) for pair in pairs(record)])


def pairs(record: dict[str, Any]) -> list[AnswerPair]:
    """A pair for each criterion by which the row is labelled; -1 or nothing means that it is not."""
    if not all(name in record for name in RESPONSES):
        raise BadRow(
            "holds no two answers: give rows with response_0 and response_1, BeaverTails' of one answer are no pairs"
        )
    prompt = text(record, "prompt")
    first, second = differing([text(record, name) for name in RESPONSES])
    for name in FLAGS:
        if not isinstance(record.get(name), bool | None):
            raise BadRow(f"{name} got {record[name]!r}, allowed is true or false")
    safe_0, safe_1 = (record.get(name) for name in FLAGS)
    found = []
    for name, criterion in CRITERIA.items():
        value = record.get(name)
        if isinstance(value, bool) or value not in (0, 1, -1, None):
            raise BadRow(f"{name} got {value!r}, allowed are 0 and 1, the number of a response")
        if value in (0, 1):
            label = 1.0 - value
            found.append(AnswerPair(prompt, first, second, label, criterion=criterion, safe_0=safe_0, safe_1=safe_1))
    if not found:
        raise BadRow(f"has neither {' nor '.join(CRITERIA)}")
    return found
