"""Judgements of every kind, as hypothesis draws them, that both Label Studio and Argilla have a place for."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from mmrlhf.answers import AnswerPair
from mmrlhf.data import Pair
from mmrlhf.datasets import reader, writer
from mmrlhf.datasets.judgements import Annotation
from mmrlhf.datasets.rows import Row
from mmrlhf.outcomes import Ranking, Rating
from mmrlhf.points import Point, PointedImage
from mmrlhf.segments import SegmentedItem
from mmrlhf.types import SegmentLabel

CHARACTERS = st.characters(exclude_categories=["Cs"])
TEXTS = st.text(CHARACTERS, max_size=12)
ANSWERS = st.text(CHARACTERS, min_size=1, max_size=12).filter(str.strip)
NAMES = st.sampled_from(
    ["", "ann", "ben@example.org", "3", "ai-judge", "ai-the other", "a=b", "9b2d8c1e-0f0e-4f6c-8a52-5f3a0f6b7a11"]
)
TAGS = st.sampled_from(["correct", "misleading", "irrelevant"])
CRITERIA = st.sampled_from(["", "fit", "Prompt fit", "safety", "a=b", "质量"])


# Not yet made: in the tests beartype draws random numbers where a judgement is made, which a strategy may not.
Draft = Callable[[], Annotation]


def of_all_kinds(images: Sequence[Path], *, corrections: bool, points: bool) -> st.SearchStrategy[list[Draft]]:
    """Lists of judgements on these images."""
    about: dict[str, Any] = {"prompt": TEXTS, "annotator": NAMES, "group": TEXTS}
    labelled = {**about, "criterion": CRITERIA}
    order = st.permutations(list(images))
    compared = {"label_0": st.sampled_from([0.0, 0.5, 1.0]), "margin": st.sampled_from([0.0, 0.5, 2.0]), **labelled}
    safe = st.sampled_from([None, True, False])
    answers = st.lists(ANSWERS, min_size=2, max_size=2, unique=True)
    image = st.sampled_from([None, *images])
    ranks = st.lists(st.sampled_from([1.0, 2.0, 3.0, 10.0, 2.5]), min_size=2, max_size=len(images))
    level = st.integers(2, 6).flatmap(lambda levels: st.tuples(st.integers(1, levels), st.just(levels)))
    cuts = st.lists(st.floats(0, 1), max_size=5)
    unit = st.integers(0, 10**12).map(lambda whole: whole / 10**12)  # as many digits as a percentage keeps
    places = st.lists(st.tuples(unit, unit, ANSWERS), max_size=4)
    pointing = [st.builds(partial, st.just(pointed), st.sampled_from(images), places, **about)] if points else []
    return st.lists(
        st.one_of(
            *pointing,
            st.builds(partial, st.just(pair), order, **compared),
            st.builds(partial, st.just(rating), st.sampled_from(images), level, **labelled),
            st.builds(partial, st.just(ranking), order, ranks.filter(lambda given: len(set(given)) > 1), **labelled),
            st.builds(partial, st.just(answer_pair), answers, image=image, safe_0=safe, safe_1=safe, **compared),
            st.builds(
                partial, st.just(marks), ANSWERS, cuts, TAGS, st.one_of(st.none(), TEXTS) if corrections else st.none(),
                item=st.text(CHARACTERS, min_size=1, max_size=5), image=image, **about,
            ),
        ),
        min_size=1,
        max_size=8,
    )  # fmt: skip


def pair(order: Sequence[Path], **rest: Any) -> Pair:
    return Pair(image_0=order[0], image_1=order[1], **rest)


def rating(image: Path, level: tuple[int, int], **rest: Any) -> Rating:
    return Rating(image=image, rating=level[0], levels=level[1], **rest)


def ranking(order: Sequence[Path], ranks: Sequence[float], **rest: Any) -> Ranking:
    return Ranking(images=tuple(order[: len(ranks)]), ranks=tuple(ranks), **rest)


def answer_pair(answers: Sequence[str], **rest: Any) -> AnswerPair:
    return AnswerPair(answer_0=answers[0], answer_1=answers[1], **rest)


def pointed(image: Path, places: Sequence[tuple[float, float, str]], **rest: Any) -> PointedImage:
    return PointedImage(image=image, points=tuple(Point(*place) for place in places), **rest)


def marks(
    answer: str, cuts: Sequence[float], tag: Any, correction: str | None, *, item: str, **rest: Any
) -> SegmentedItem:
    """An answer with labels on spans that do not overlap."""
    places = sorted({round(cut * len(answer)) for cut in cuts})
    labels = []
    for start, end in zip(places[::2], places[1::2], strict=False):
        right = None if tag == "correct" or correction == answer[start:end] else correction
        labels.append(SegmentLabel(item, start, end, tag, right))
    return SegmentedItem(item, tuple(labels), answer=answer, **rest)


def written_and_read(judgements: Sequence[Annotation], name: str, file: Path) -> list[Annotation]:
    """What a format gives back of judgements, all of which it takes."""
    suited, write = writer(name)
    write([row for judgement in judgements for row in suited(judgement)], file)
    rows = list(reader(name)(file, None))
    faults = [row for row in rows if not isinstance(row, Row)]
    assert not faults, faults
    return [row.judgement for row in rows if isinstance(row, Row)]


def same(first: Sequence[Annotation], second: Sequence[Annotation]) -> bool:
    """Whether they are equal but for their order: tasks bring together what several people said."""
    return Counter(first) == Counter(second)
