"""Rows after the checks that every data set undergoes: each image decodes, and no row repeats or contradicts another."""

import io
from hashlib import blake2b
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from mmrlhf.answers import AnswerPair
from mmrlhf.data import Pair
from mmrlhf.datasets import reader
from mmrlhf.datasets.judgements import Judgement, images_of, question_of, verdict_of
from mmrlhf.datasets.rows import Fault, Row, Rows
from mmrlhf.outcomes import Rating
from mmrlhf.points import PointedImage
from mmrlhf.segments import SegmentedItem


def checked(name: str, source: Path, images: Path | None) -> Rows:
    """The rows of a data set of the format `name`; one that fails a check is a fault."""
    decoded: dict[Path, str] = {}
    seen = Seen()
    for row in reader(name)(source, images):
        problem = "" if isinstance(row, Fault) else image_problem(row, decoded) or seen.problem(row)
        yield Fault(row.where, problem) if problem else row


def image_problem(row: Row, decoded: dict[Path, str]) -> str:
    """What is wrong with the row's images, "" where nothing is; `decoded` remembers the answer for each image."""
    images = images_of(row.judgement)
    for place, image in enumerate(images):
        if image not in decoded:
            decoded[image] = undecodable(row.held.get(image, image))
        if decoded[image]:
            return f"image {place} cannot be decoded ({decoded[image]})"
    return "compares an image with itself" if isinstance(row.judgement, Pair) and images[0] == images[1] else ""


def undecodable(image: Path | bytes) -> str:
    """Why the picture cannot be decoded, or ""."""
    try:
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as picture:
            picture.load()
    except UnidentifiedImageError:
        return "no image"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return str(error) or type(error).__name__
    return ""


class Seen:
    """The rows so far, as digests: what each says, and what each annotator answered to each question."""

    def __init__(self) -> None:
        self.rows: dict[bytes, str] = {}
        self.verdicts: dict[bytes, tuple[float, str]] = {}

    def problem(self, row: Row) -> str:
        """Which earlier row this one repeats or contradicts, or "".

        A contradiction is strict answers for either side of a pair, or two ratings of one image, by one annotator. Pairs without
        an annotator count as one annotator's; ratings without are taken as several people's.
        """
        judgement = row.judgement
        if isinstance(judgement, Rating) and not judgement.annotator:
            return ""
        unnamed = "" if judgement.annotator else "; if two people said it, name them in the column annotator"
        if earlier := self.rows.get(key := digest(judgement)):
            return f"repeats {earlier}{unnamed}"
        self.rows[key] = row.where
        if isinstance(judgement, SegmentedItem | PointedImage) or (verdict := strict(judgement)) is None:
            return ""
        question = digest((judgement.annotator, question_of(judgement)))
        first, earlier = self.verdicts.setdefault(question, (verdict, row.where))
        return f"contradicts {earlier}, an answer to the same question{unnamed}" if first != verdict else ""


def strict(judgement: Judgement) -> float | None:
    """The verdict that another one would contradict: a rating, or a side of a pair; None for ties and soft labels."""
    verdict = verdict_of(judgement)
    return None if isinstance(judgement, Pair | AnswerPair) and verdict not in (0.0, 1.0) else verdict


def digest(value: object) -> bytes:
    """16 bytes that stand for a value with a faithful `repr`."""
    return blake2b(repr(value).encode("utf-8", "surrogatepass"), digest_size=16).digest()
