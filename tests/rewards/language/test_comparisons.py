"""Pairs as rows: each different one once, and margins that are differences of scores."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mmrlhf.answers import AnswerPair
from mmrlhf.calibration import ece
from mmrlhf.data import Pair
from mmrlhf.errors import UserError
from mmrlhf.rewards.calibrate import fit_temperature
from mmrlhf.rewards.evaluation.scored_pairs import pair_margins
from mmrlhf.rewards.language.comparisons import answer_margins, asked_weights, compare, criteria_of
from mmrlhf.rewards.language.model import LanguageReward
from tests.rewards.language.pairs import colour_pairs, kind_pairs, naming_pairs


def test_each_different_row_is_there_once(tmp_path: Path) -> None:
    first, second = colour_pairs(tmp_path, 2, 0)
    same_file = Path(shutil.copy(first.image_0, tmp_path / "copy.png"))
    pairs: list[Pair | AnswerPair] = [first, replace(first, image_0=same_file, image_1=second.image_0, label_0=0.5, margin=0.2),
             AnswerPair(first.prompt, "kind", "rude", 0.25, image=same_file),
             AnswerPair(first.prompt, "kind", "rude", 1.0, criterion="safety")]  # fmt: skip
    table = compare(pairs, ("", "safety"))
    assert len(table.rows) == len(set(table.rows)) == 7
    assert table.compared[0, 0] == table.compared[1, 0]
    assert table.rows[int(table.compared[2, 1])] == (first.prompt, "rude", first.image_0)
    assert table.rows[int(table.compared[3, 0])] == (first.prompt, "kind", None)
    assert table.criterion.tolist() == [0, 0, 0, 1] and table.labels.tolist() == [first.label_0, 0.5, 0.25, 1.0]
    torch.testing.assert_close(table.wanted, torch.tensor([0.0, 0.2, 0.0, 0.0]))
    assert criteria_of(pairs) == ("", "safety")
    with pytest.raises(
        UserError, match="got the criterion 'safety', allowed are '', 'fit': make the reward with a head"
    ):
        compare(pairs, ("", "fit"))


def test_a_question_about_many_images_is_many_prompts(tmp_path: Path) -> None:
    pairs = naming_pairs(tmp_path, 4, 0)
    assert asked_weights([*pairs, pairs[0]]).tolist() == pytest.approx([0.125, 0.25, 0.25, 0.25, 0.125])


def test_margins_are_differences_of_scores(folders: dict[str, Path], tmp_path: Path) -> None:
    reward = LanguageReward.from_pretrained(folders["llama"], criteria=("", "safety")).with_temperature(0.5)
    pairs = [replace(pair, criterion="safety" if i % 3 == 0 else "") for i, pair in enumerate(kind_pairs(9, 0))]
    margins = answer_margins(reward, pairs, batch_size=4)
    for pair, margin in zip(pairs, margins, strict=True):
        scores = reward.scores([pair.prompt] * 2, [pair.answer_0, pair.answer_1])[reward.criteria.index(pair.criterion)]
        assert margin == pytest.approx(float(scores[0] - scores[1]), abs=1e-4)
    labels = np.array([pair.label_0 for pair in pairs])
    assert fit_temperature(margins, labels) > 0 and 0 <= ece(1 / (1 + np.exp(-margins)), labels) <= 1


def test_margins_of_images_are_those_of_every_reward(folders: dict[str, Path], tmp_path: Path) -> None:
    reward = LanguageReward.from_pretrained(folders["qwen"])
    pairs: list[Pair] = colour_pairs(tmp_path, 5, 0)
    np.testing.assert_allclose(answer_margins(reward, pairs), pair_margins(reward, pairs), atol=1e-5)


def test_a_pair_with_a_row_that_is_dropped_abstains(folders: dict[str, Path]) -> None:
    reward = LanguageReward.from_pretrained(folders["llama"], too_long="drop")
    pairs = [*kind_pairs(2, 0), AnswerPair("it", "kind", "rude " * 80, 1.0)]
    assert np.isnan(answer_margins(reward, pairs)).tolist() == [False, False, True]
    text_only = LanguageReward.from_pretrained(folders["bert"])
    with pytest.raises(UserError, match="got images for a BertForSequenceClassification, which reads text only"):
        answer_margins(text_only, [replace(pairs[0], image=Path("a.png"))])
