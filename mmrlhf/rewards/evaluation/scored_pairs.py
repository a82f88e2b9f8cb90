"""The pairs that somebody judged, with a reward's scores of their images or answers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mmrlhf.answers import AnswerPair, Comparison
from mmrlhf.data import Item, Pair
from mmrlhf.errors import UserError
from mmrlhf.rewards.score import score_items
from mmrlhf.types import Reward


@dataclass(frozen=True)
class ScoredPairs:
    """Labelled pairs on which the reward does not abstain, and how many of each other kind there were."""

    pairs: Sequence[Comparison]
    scores: Float[np.ndarray, "n 2"]
    abstained: int
    unlabelled: int

    @property
    def margins(self) -> Float[np.ndarray, " n"]:
        return self.scores[:, 0] - self.scores[:, 1]

    @property
    def labels(self) -> Float[np.ndarray, " n"]:
        return np.array([pair.label_0 for pair in self.pairs])

    @property
    def units(self) -> list[str]:
        return [pair.unit for pair in self.pairs]


def score_pairs(
    reward: Reward, pairs: Sequence[Comparison], *, batch_size: int = 32, progress: bool = False
) -> ScoredPairs:
    """Score both sides of the labelled pairs. UserError where none is left that has a label and two scores."""
    labelled = [pair for pair in pairs if pair.has_label]
    if not labelled:
        raise UserError(f"none of {len(pairs)} pairs has a label: give pairs that somebody judged")
    scores = pair_scores(reward, labelled, batch_size=batch_size, progress=progress)
    kept = ~np.isnan(scores).any(axis=1)
    if not kept.any():
        raise UserError(
            f"the reward abstains on all {len(labelled)} pairs: give pairs that it can judge, or another reward"
        )
    own = [pair for pair, is_kept in zip(labelled, kept, strict=True) if is_kept]
    return ScoredPairs(own, scores[kept], len(labelled) - len(own), len(pairs) - len(labelled))


def pair_scores(
    reward: Reward, pairs: Sequence[Comparison], *, batch_size: int = 32, progress: bool = False
) -> Float[np.ndarray, "n 2"]:
    """The scores of both sides, NaN where the reward abstains. UserError for answers and a reward that reads none."""
    if any(isinstance(pair, AnswerPair) for pair in pairs):
        from mmrlhf.rewards.language.comparisons import answer_scores
        from mmrlhf.rewards.language.model import LanguageReward

        if not isinstance(reward, LanguageReward):
            raise UserError(
                f"the pairs compare answers, and {type(reward).__name__} reads none: give a reward trained on answers"
            )
        return answer_scores(reward, pairs, batch_size=batch_size, progress=progress)
    return score_items(reward, pair_items(pairs), batch_size=batch_size, progress=progress).reshape(-1, 2)


def pair_margins(
    reward: Reward, pairs: Sequence[Comparison], *, batch_size: int = 32, progress: bool = False
) -> Float[np.ndarray, " n"]:
    """Score of the first minus score of the second, NaN where the reward abstains on either."""
    scores = pair_scores(reward, pairs, batch_size=batch_size, progress=progress)
    return scores[:, 0] - scores[:, 1]


def pair_items(pairs: Sequence[Comparison]) -> list[Item]:
    """Both images of each pair, one pair after the other; of answers nothing."""
    images = [pair for pair in pairs if isinstance(pair, Pair)]
    return [Item(pair.prompt, image) for pair in images for image in (pair.image_0, pair.image_1)]
