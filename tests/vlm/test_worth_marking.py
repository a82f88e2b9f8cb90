"""What an answer is worth, in closed form and by brute force, and the choice of the best."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from mmrlhf.rewards.language.inputs import Row
from mmrlhf.rewards.segments.head import SegmentHead
from mmrlhf.rewards.segments.reward import SegmentReward
from vlm.policy import VisionLanguagePolicy
from vlm.segment_reward import HallucinationReward
from vlm.spans import spans_of
from vlm.state_features import StateReader
from vlm.worth_marking import (
    answer_disagreement,
    answers_worth,
    choose,
    expected_wrong,
    head_disagreement,
    questions_of,
)


@pytest.fixture
def judge(small_llava: str) -> HallucinationReward:
    """A reward of three members that has learnt nothing."""
    policy = VisionLanguagePolicy.load(small_llava, device="cpu")
    head = SegmentHead(policy.width, members=3, hidden=8, generator=torch.Generator().manual_seed(0))
    for weight in (head.scorer.first, head.scorer.last):  # far from 0, where all members agree
        torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(1))
    return HallucinationReward(StateReader(policy), SegmentReward(head), source={})


@pytest.fixture
def rows(picture_file: Path) -> list[Row]:
    """Answers of one to three sentences, and an empty one."""
    return [Row("What?", text, picture_file) for text in ("A B A. x B B.", "A x.", "", "B B. A A x A. A.")]


def test_what_no_other_answer_says_counts() -> None:
    texts = ["A cow is here. It is red.", "A cow is here.", "a cow is here. A pig is here.", "Something else."]
    found = answer_disagreement(texts, torch.tensor([0, 0, 0, 1]))
    # words and signs: {a, cow, is, here, .}, {it, is, red, .}, {a, pig, is, here, .}
    red = 1 - np.mean([2 / 7, max(2 / 7, 2 / 7)])  # shares "is" and "." of seven with each of the others' sentences
    pig = 1 - np.mean([max(4 / 6, 2 / 7), 4 / 6])
    torch.testing.assert_close(found, torch.tensor([red, 0.0, pig, 0.0], dtype=torch.float32))


def test_disagreement_does_not_depend_on_other_questions_or_order() -> None:
    texts = ["A b. C d.", "A b.", "E f.", "A c. C d.", "", "A b. A b."]
    questions = torch.tensor([0, 1, 0, 1, 0, 1])
    found = answer_disagreement(texts, questions)
    for question in (0, 1):
        places = torch.nonzero(questions == question).flatten().flip(0)
        alone = answer_disagreement([texts[i] for i in places.tolist()], torch.zeros(len(places), dtype=torch.long))
        torch.testing.assert_close(alone, found[places])
    assert found[4] == 0  # nothing said, nothing to repeat
    assert found[2] == pytest.approx(
        1 - (1 / 5 + 0) / 2
    )  # shares the full stop of five with one, and nothing with silence


@given(
    some.lists(some.tuples(some.integers(0, 5), some.floats(-3, 3, width=32)), min_size=1, max_size=20),
    some.integers(1, 8),
)
def test_the_best_answer_of_each_of_the_best_questions(answers: list[tuple[int, float]], budget: int) -> None:
    questions = torch.tensor([question for question, _ in answers])
    worth = torch.tensor([value for _, value in answers], dtype=torch.float32)
    chosen = choose(worth, questions, budget)
    best: dict[int, float] = {}
    for question, value in answers:
        best[question] = max(value, best.get(question, value))
    assert [float(worth[i]) for i in chosen] == sorted(best.values(), reverse=True)[:budget]
    assert len({int(questions[i]) for i in chosen}) == len(chosen) == min(budget, len(best))


def test_of_equals_the_earlier() -> None:
    assert choose(torch.tensor([1.0, 2.0, 2.0, 1.0, 1.0]), torch.tensor([0, 1, 1, 2, 0]), 2) == [1, 0]


def test_expected_wrong_parts_by_hand(judge: HallucinationReward, rows: list[Row]) -> None:
    expected = []
    for row in rows:
        answer = row.answer or ""
        texts = judge.reader.read([row], "sentence")
        total = 0.0
        for start, end in spans_of(answer, "sentence"):
            own = [i for i, (a, b) in enumerate(texts.offsets[0]) if a < end and b > start]
            spans = [(0, own[0], own[-1] + 1)]
            total += float(judge.head.tag_probabilities(texts.features, spans, texts.mask)[0, 0])
        expected.append(total)
    torch.testing.assert_close(expected_wrong(judge, rows), torch.tensor(expected), atol=1e-4, rtol=1e-4)
    assert expected[2] == 0 < min(expected[i] for i in (0, 1, 3))


def test_head_disagreement_by_hand(judge: HallucinationReward, rows: list[Row]) -> None:
    expected = []
    for row in rows:
        answer = row.answer or ""
        texts = judge.reader.read([row], "sentence")
        members = judge.head.members(texts.features, texts.mask).numpy()
        total = 0.0
        for start, end in spans_of(answer, "sentence"):
            own = [i for i, (a, b) in enumerate(texts.offsets[0]) if a < end and b > start]
            total += float(np.std(members[:, 0, own].mean(axis=1)))
        expected.append(total)
    found = head_disagreement(judge, rows)
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-4, rtol=1e-4)
    assert found[2] == 0 < float(found[[0, 1, 3]].min())


def test_members_that_agree_are_worth_nothing(judge: HallucinationReward, rows: list[Row]) -> None:
    with torch.no_grad():
        for weight in judge.head.head.scorer.parameters():
            if weight.dim() and len(weight) == 3:
                weight.copy_(weight[:1].expand_as(weight))
    torch.testing.assert_close(head_disagreement(judge, rows), torch.zeros(4), atol=1e-5, rtol=0)


def test_each_strategy_and_the_first_round_without_a_reward(judge: HallucinationReward, rows: list[Row]) -> None:
    generator = torch.Generator()

    def worth(strategy: str, reward: HallucinationReward | None) -> torch.Tensor:
        return answers_worth(strategy, rows, reward, generator.manual_seed(3))  # type: ignore[arg-type]

    torch.testing.assert_close(worth("hallucination", judge), expected_wrong(judge, rows))
    torch.testing.assert_close(worth("heads", judge), head_disagreement(judge, rows))
    by_answers = answer_disagreement([row.answer or "" for row in rows], torch.zeros(4, dtype=torch.long))
    for strategy, reward in (("answers", judge), ("answers", None), ("hallucination", None), ("heads", None)):
        torch.testing.assert_close(worth(strategy, reward), by_answers)
    drawn = worth("random", None)
    assert torch.equal(drawn, torch.rand(4, generator=generator.manual_seed(3)))


def test_a_question_is_a_prompt_about_a_picture(tmp_path: Path) -> None:
    one, other = tmp_path / "1.png", tmp_path / "2.png"
    asked = [Row("What?", "A", one), Row("What?", "A", other), Row("Who?", "A", one), Row("What?", "B", one)]
    assert questions_of(asked).tolist() == [0, 1, 2, 0]
