"""Pairs of answers, or of images, as rows to read and which of them each pair compares; and a reward's margins on pairs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from mmrlhf import distributed
from mmrlhf.answers import AnswerPair, Comparison
from mmrlhf.errors import UserError
from mmrlhf.images import content_hash
from mmrlhf.losses import prompt_weights
from mmrlhf.rewards.language.inputs import Reader, Row
from mmrlhf.rewards.language.model import LanguageReward


@dataclass(frozen=True)
class Comparisons:
    """The different rows, and for each pair the two it compares, the row of the head that judges, and its label."""

    rows: list[Row]
    compared: Int[Tensor, "n 2"]
    criterion: Int[Tensor, " n"]
    labels: Float[Tensor, " n"]
    wanted: Float[Tensor, " n"]  # by how much the preferred should win


def compare(pairs: Sequence[Comparison], criteria: Sequence[str]) -> Comparisons:
    """Each different (prompt, answer, image by its content) is a row once. UserError for a criterion that has no head."""
    if unknown := sorted({pair.criterion for pair in pairs} - set(criteria)):
        raise UserError(
            f"pairs got the criterion '{unknown[0]}', allowed are {', '.join(repr(name) for name in criteria)}: make the reward "
            "with a head for it"
        )
    originals = originals_of(pairs)
    sides = [rows_of(pair, originals) for pair in pairs]
    number = {row: i for i, row in enumerate(dict.fromkeys(row for side in sides for row in side))}
    return Comparisons(
        list(number),
        torch.tensor([[number[first], number[second]] for first, second in sides], dtype=torch.long).reshape(-1, 2),
        torch.tensor([list(criteria).index(pair.criterion) for pair in pairs], dtype=torch.long),
        torch.tensor([pair.label_0 for pair in pairs]),
        torch.tensor([pair.margin for pair in pairs]),
    )


def rows_of(pair: Comparison, originals: dict[Path, Path] | None = None) -> tuple[Row, Row]:
    """The two rows that a pair compares: two answers (about one image), or two images for a prompt."""
    if isinstance(pair, AnswerPair):
        image = pair.image if pair.image is None or originals is None else originals[pair.image]
        return Row(pair.prompt, pair.answer_0, image), Row(pair.prompt, pair.answer_1, image)
    first, second = (path if originals is None else originals[path] for path in (pair.image_0, pair.image_1))
    return Row(pair.prompt, None, first), Row(pair.prompt, None, second)


def originals_of(pairs: Sequence[Comparison]) -> dict[Path, Path]:
    """For each image file the first one of the same content."""
    paths = dict.fromkeys(row.image for pair in pairs for row in rows_of(pair) if isinstance(row.image, Path))
    hashes = {path: content_hash(path.read_bytes()) for path in paths}
    first = {name: path for path, name in reversed(hashes.items())}
    return {path: first[name] for path, name in hashes.items()}


def asked(pair: Comparison) -> str:
    """What a pair is about, to weigh and order by: the prompt and, of answers, the image ("Describe this." is not one prompt)."""
    return f"{pair.prompt}\n{pair.image or ''}" if isinstance(pair, AnswerPair) else pair.prompt


def asked_weights(pairs: Sequence[Comparison]) -> Float[Tensor, " n"]:
    """Every prompt counts alike: see `mmrlhf.losses.prompt_weights`."""
    return prompt_weights([asked(pair) for pair in pairs])


def criteria_of(pairs: Sequence[Comparison]) -> tuple[str, ...]:
    """The criteria that pairs ask for, "" (which is better overall) first where it is among them."""
    return tuple(sorted({pair.criterion for pair in pairs}))


def pairs_that_fit(pairs: Sequence[Comparison], reader: Reader, name: str) -> list[Comparison]:
    """The pairs whose rows a model can read; one line says what is cut or left out. UserError where the reader refuses them."""
    rows = list(dict.fromkeys(row for pair in pairs for row in rows_of(pair)))
    long = {row for row, length in zip(rows, reader.lengths(rows), strict=True) if length > reader.max_length}
    if not long:
        return list(pairs)
    if reader.too_long != "drop":
        reader.fitted(rows)  # refuses, or makes sure that every answer fits
        kept, done = list(pairs), "their prompts lose the start"
    else:
        kept = [pair for pair in pairs if not long & set(rows_of(pair))]
        done = f"{len(pairs) - len(kept)} of {len(pairs)} pairs are left out"
    if distributed.is_main_process():
        print(
            f"note: {len(long)} of {len(rows)} texts in the {name} pairs are longer than {reader.max_length} tokens: {done}"
        )
    return kept


def answer_margins(
    reward: LanguageReward, pairs: Sequence[Comparison], *, batch_size: int = 16, progress: bool = False
) -> Float[np.ndarray, " n"]:
    """Score of the first less score of the second; see `answer_scores`."""
    scores = answer_scores(reward, pairs, batch_size=batch_size, progress=progress)
    return scores[:, 0] - scores[:, 1]


@torch.no_grad()
def answer_scores(
    reward: LanguageReward, pairs: Sequence[Comparison], *, batch_size: int = 16, progress: bool = False
) -> Float[np.ndarray, "n 2"]:
    """The scores of both sides by each pair's own criterion; NaN where the reward drops a row as too long.

    Each different row is read once, beside rows of like length.
    """
    reward.check_images([row for pair in pairs for row in rows_of(pair)])
    table = compare(pairs, reward.criteria)
    fitted, kept = reward.reader.fitted(table.rows)
    scores = torch.full((len(table.rows), len(reward.criteria)), torch.nan, dtype=torch.float64)
    order = sorted(range(len(kept)), key=lambda i: len(fitted[i].prompt) + len(fitted[i].answer or ""))
    for start in tqdm(range(0, len(order), batch_size), desc="score", unit="batch", disable=not progress):
        part = order[start : start + batch_size]
        found = reward.network(reward.reader.encode([fitted[i] for i in part])) / reward.temperature
        scores[[kept[i] for i in part]] = found.double().cpu()
    return scores[table.compared, table.criterion.unsqueeze(1)].numpy()
