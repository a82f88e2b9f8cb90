"""What people said of pictures in a store, as judgements: pairs, rankings, levels by one or several criteria, and vetoes."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

from mmrlhf.data import Pair
from mmrlhf.errors import UserError
from mmrlhf.outcomes import SAFETY, Outcome, Ranking, Rating
from mmrlhf.store import Item, Judgement, LikertJudgement, RankJudgement, Store, Veto
from mmrlhf.types import Preference

LEVELS = 5  # of the rating app's scale


def outcomes_of(store: Store, source: str) -> list[Outcome]:
    """Everything that stands, by one kind of rater or by all: pairs, rankings, scores, levels by criteria, then vetoes.

    A pair and a ranking have their images in the order of the screen, so that a bias for a side can be seen.
    """
    preferences, rankings, scores = store.preferences(), store.rankings(), store.judgements()
    levels, vetoes = store.likert(), store.vetoes()
    items, name = (
        store.items(),
        store.name,
    )  # last: an app that runs may add some, and nothing is said of what is not there
    wanted = ("human", "simulated", "ai") if source == "all" else (source,)
    found: list[Outcome] = [pair_of(p, items, name) for p in preferences if p.source in wanted]
    found += [outcome for r in rankings if r.source in wanted for outcome in ranking_of(r, items, name)]
    found += [rating_of(s, items, name) for s in scores if s.source in wanted]
    found += [rating for j in levels if j.source in wanted for rating in levels_of(j, items, name)]
    return found + vetoes_of([veto for veto in vetoes if veto.source in wanted], items, name)


def pair_of(preference: Preference, items: Mapping[str, Item], store: str) -> Pair:
    """A preference with its images in the order of the screen, the left one first."""
    left, right = paths(preference.shown, items, store)
    label = preference.label if preference.shown == preference.items else 1 - preference.label
    return Pair(preference.prompt, left, right, label, annotator=preference.annotator)


def ranking_of(ranking: RankJudgement, items: Mapping[str, Item], store: str) -> list[Outcome]:
    """An order of images; where all are equal, which a `Ranking` cannot say, the tie of every two."""
    files = tuple(paths(ranking.shown, items, store))
    rank_of = dict(zip(ranking.items, ranking.ranks, strict=True))
    ranks = tuple(float(rank_of[key]) for key in ranking.shown)
    if len(set(ranks)) == 1:
        return [Pair(ranking.prompt, *two, 0.5, annotator=ranking.annotator) for two in combinations(files, 2)]
    return [Ranking(ranking.prompt, files, ranks, annotator=ranking.annotator)]


def rating_of(judgement: Judgement, items: Mapping[str, Item], store: str) -> Rating:
    """A score as a place on the rating app's scale."""
    (path,) = paths([judgement.item], items, store)
    if judgement.score not in range(1, LEVELS + 1):
        raise UserError(
            f"the store {store} has the score {judgement.score:g}, allowed is 1 to {LEVELS}: withdraw that answer"
        )
    return Rating(judgement.prompt, path, int(judgement.score), LEVELS, annotator=judgement.annotator)


def levels_of(judgement: LikertJudgement, items: Mapping[str, Item], store: str) -> list[Rating]:
    """A rating by each criterion; none where a text was judged, which is no image's rating."""
    if judgement.text:
        return []
    (path,) = paths([judgement.item], items, store)
    about: dict[str, Any] = {"levels": judgement.levels, "annotator": judgement.annotator}
    return [
        Rating(judgement.prompt, path, level, criterion=criterion, **about)
        for criterion, level in judgement.scores.items()
    ]


def vetoes_of(vetoes: Iterable[Veto], items: Mapping[str, Item], store: str) -> list[Rating]:
    """The lower of two levels by the criterion `safety`, once for each annotator, prompt and image."""
    said = dict.fromkeys((veto.prompt, veto.item, veto.annotator) for veto in vetoes)
    files = paths([item for _, item, _ in said], items, store)
    return [
        Rating(prompt, path, 1, 2, annotator=annotator, criterion=SAFETY)
        for (prompt, _, annotator), path in zip(said, files, strict=True)
    ]


def is_veto(outcome: Outcome) -> bool:
    """Whether a judgement is what `vetoes_of` makes of a veto."""
    return isinstance(outcome, Rating) and outcome.criterion == SAFETY and (outcome.rating, outcome.levels) == (1, 2)


def paths(keys: Iterable[str], items: Mapping[str, Item], store: str) -> Iterator[Path]:
    """The files of some items. UserError for one that is unknown or gone."""
    for key in keys:
        if key not in items:
            raise UserError(
                f"the store {store} has an answer about {key}, a picture that it does not know: add its item"
            )
        path = Path(items[key].path)
        if not path.is_file():
            raise UserError(f"the picture {path} is gone: put it back, or rate it again from where it is now")
        yield path
