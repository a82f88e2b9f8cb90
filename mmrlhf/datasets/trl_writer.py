"""Pairs of answers as the parquet file that TRL's trainers read: conversational prompt, chosen and rejected, and images.

Conversational, because TRL puts nothing between the prompt and the answer of texts. Texts come in parts, one of them for the
image, where any row has one. The schema carries what `datasets.load_dataset("parquet")` needs to give images as images.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmrlhf.answers import AnswerPair
from mmrlhf.data import replacing
from mmrlhf.datasets.answers import suited as suited_answers
from mmrlhf.datasets.dialogues import Message, parted
from mmrlhf.datasets.judgements import Annotation
from mmrlhf.datasets.records import ROWS_AT_ONCE
from mmrlhf.datasets.rows import BadRow

TEXT = {"dtype": "string", "_type": "Value"}
COLUMNS = ("prompt", "chosen", "rejected")


def suited(judgement: Annotation) -> Sequence[AnswerPair]:
    """Two answers one of which was preferred: TRL has no place for ties and soft labels."""
    (pair,) = suited_answers(judgement)
    if not pair.has_label or pair.label_0 not in (0.0, 1.0):
        what = f"label_0 {pair.label_0:g}" if pair.has_label else "no label"
        raise BadRow(f"has {what}, and TRL wants one answer preferred (label_0 1 or 0)")
    return [pair]


def write(pairs: Sequence[AnswerPair], file: Path) -> None:
    """Write strict pairs; whole or not at all."""
    vision, margins = any(pair.image for pair in pairs), any(pair.margin for pair in pairs)
    schema = schema_of(vision, margins)
    with replacing(file) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for start in range(0, len(pairs), ROWS_AT_ONCE):
            rows = [row_of(pair, vision) for pair in pairs[start : start + ROWS_AT_ONCE]]
            writer.write_table(pa.Table.from_pylist(rows, schema))


def schema_of(vision: bool, margins: bool) -> pa.Schema:
    """The columns, and under the key "huggingface" the features as the package `datasets` writes them."""
    content = pa.list_(pa.struct([("type", pa.string()), ("text", pa.string())])) if vision else pa.string()
    messages = pa.list_(pa.struct([("role", pa.string()), ("content", content)]))
    features: dict[str, Any] = dict.fromkeys(
        COLUMNS, [{"role": TEXT, "content": [{"type": TEXT, "text": TEXT}] if vision else TEXT}]
    )
    fields = [(name, messages) for name in COLUMNS]
    if vision:
        fields.append(("images", pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))))
        features["images"] = {"feature": {"_type": "Image"}, "_type": "Sequence"}
    if margins:
        fields.append(("margin", pa.float64()))
        features["margin"] = {"dtype": "float64", "_type": "Value"}
    return pa.schema(fields, {"huggingface": json.dumps({"info": {"features": features}})})


def row_of(pair: AnswerPair, vision: bool) -> dict[str, Any]:
    """One comparison as a row."""
    messages, answers = parted(pair.prompt, (pair.answer_0, pair.answer_1))
    chosen, rejected = answers if pair.label_0 == 1 else answers[::-1]
    sides: dict[str, Any] = {"prompt": messages}
    sides |= {
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }
    if not vision:
        return sides | {"margin": pair.margin}
    pictures = [] if pair.image is None else [{"bytes": pair.image.read_bytes(), "path": pair.image.name}]
    turns = {name: in_parts(side, bool(pictures) and name == "prompt") for name, side in sides.items()}
    return turns | {"images": pictures, "margin": pair.margin}


def in_parts(messages: Sequence[Message], with_image: bool) -> list[dict[str, Any]]:
    """Messages whose content is a list of parts; the image stands first in the first message of a user."""
    parted = [{"role": m["role"], "content": [{"type": "text", "text": m["content"]}]} for m in messages]
    if with_image:
        first = next((message for message in parted if message["role"] == "user"), parted[0])
        first["content"] = [{"type": "image", "text": None}, *first["content"]]
    return parted
