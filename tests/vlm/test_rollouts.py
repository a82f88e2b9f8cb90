"""An epoch's prompts, answers and their log-probabilities; what is measured of them, and why nothing is learnt."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from mmrlhf.errors import UserError
from mmrlhf.rewards.language.inputs import Row
from tests.vlm.helpers import pictures, write_rows
from vlm import rollouts
from vlm.answer_rewards import Judgement, SpanReward
from vlm.policy import VisionLanguagePolicy
from vlm.preference_data import read_prompts
from vlm.rollouts import (
    Measured,
    Rollout,
    RolloutConfig,
    answer,
    answer_kl,
    answer_kl_now,
    diagnose,
    measure,
    prompts_of,
    prompts_that_fit,
    rollout_figures,
    totals,
    validate_rollouts,
)

NAN = float("nan")


def questions(folder: Path, count: int = 2) -> Path:
    """A file of questions about random pictures."""
    names = pictures(folder, count)
    rows = [{"prompt": ("What?", "Who is it?")[i % 2], "image": name, "id": i} for i, name in enumerate(names)]
    return write_rows(rows, folder / "prompts.jsonl")


def letters(rows: Sequence[Row]) -> list[Judgement]:
    """A point for each letter."""
    return [
        Judgement(
            tuple(SpanReward(i, i + 1, 1.0) for i, c in enumerate(row.answer or "") if c.isascii() and c.isalpha())
        )
        for row in rows
    ]


@pytest.fixture
def config(small_llava: str, tmp_path: Path) -> RolloutConfig:
    return RolloutConfig(model=small_llava, prompts=questions(tmp_path), reward="x", out=tmp_path / "run",
                         sample_batch_size=3, max_new_tokens=5, temperature=0.8)  # fmt: skip


def moved(policy: VisionLanguagePolicy) -> VisionLanguagePolicy:
    """The policy after an update of some kind."""
    with torch.no_grad():
        for i, weight in enumerate(policy.parameters()):
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(i)))
    return policy


def test_each_prompt_comes_once_before_any_comes_again() -> None:
    prompts = [Row(str(i)) for i in range(5)]
    drawn = [row.prompt for epoch in range(10) for row in prompts_of(prompts, epoch, 3, seed=0)]
    passes = [drawn[first : first + 5] for first in range(0, 30, 5)]
    assert all(sorted(each) == list("01234") for each in passes) and len({tuple(each) for each in passes}) > 3
    assert len(prompts_of(prompts, 1, 12, seed=0)) == 12
    assert [row.prompt for epoch in range(10) for row in prompts_of(prompts, epoch, 3, seed=1)] != drawn


def test_answers_follow_from_seed_and_epoch(config: RolloutConfig) -> None:
    policy = VisionLanguagePolicy.load(config.model, lora_rank=4)
    asked = read_prompts(config.prompts) * 3
    first, again, other = (answer(policy, asked, letters, config, epoch) for epoch in (0, 0, 1))
    assert first.tokens == again.tokens and first.rows == again.rows != other.rows
    assert [row.prompt for row in first.rows] == [row.prompt for row in asked]
    assert all(len(tokens) == 5 or ended for tokens, ended in zip(first.tokens, first.ended, strict=True))
    assert first.judgements == letters(first.rows)


def test_a_reward_must_judge_as_it_should(config: RolloutConfig) -> None:
    policy, asked = VisionLanguagePolicy.load(config.model), read_prompts(config.prompts)
    with pytest.raises(UserError, match="the reward gave 1 judgements for 2 answers"):
        answer(policy, asked, lambda rows: letters(rows)[:1], config, 0)
    with pytest.raises(UserError, match="the reward judged the characters 0 to 1000 of an answer"):
        answer(policy, asked, lambda rows: [Judgement((SpanReward(0, 1000, 1.0),))] * len(rows), config, 0)


def test_measured_is_what_each_answer_has_alone(model: str, config: RolloutConfig) -> None:
    policy = VisionLanguagePolicy.load(model, lora_rank=4)
    start = VisionLanguagePolicy.load(model)
    moved(policy)
    rollout = answer(policy, read_prompts(config.prompts) * 2, letters, config, 0)
    rollout = rollout._replace(tokens=[tokens[: i + 2] for i, tokens in enumerate(rollout.tokens)])
    found = measure(policy, rollout, config, states=True)
    assert found.mask.sum(1).tolist() == [len(tokens) for tokens in rollout.tokens]
    for i, (row, tokens) in enumerate(zip(rollout.rows, rollout.tokens, strict=True)):
        with torch.no_grad():
            alone = policy.score(policy.encode([row], [tokens]), temperature=0.8, entropy=True)
            before = start.log_probs(start.encode([row], [tokens]), temperature=0.8)
        whole = (found.log_probs, found.reference, found.entropies, found.states)
        for got, expected in zip(whole, (alone.log_probs, before, alone.entropies, alone.states), strict=True):
            torch.testing.assert_close(got[i, : len(tokens)], expected[0], atol=1e-4, rtol=1e-4)
            assert (got[i, len(tokens) :] == 0).all()
    only = measure(policy, rollout, config, own=False)
    torch.testing.assert_close(only.reference, found.reference)
    assert (only.log_probs == 0).all() and only.states.shape[-1] == 0


def test_the_kl_of_an_answer(config: RolloutConfig) -> None:
    log_probs, reference = torch.tensor([[-1.0, -2.0], [-3.0, 0.0]]), torch.tensor([[-1.5, -4.0], [-2.0, 0.0]])
    assert answer_kl(log_probs, reference) == pytest.approx((0.5 + 2 - 1) / 2)
    policy = VisionLanguagePolicy.load(config.model, lora_rank=4)
    rollout = answer(policy, read_prompts(config.prompts), letters, config, 0)
    old = measure(policy, rollout, config)
    assert torch.equal(old.log_probs, old.reference) and answer_kl_now(policy, rollout, old, config) == 0
    moved(policy)
    now = measure(policy, rollout, config).log_probs
    expected = ((now - old.reference).exp() * (now - old.reference)).sum() / 2  # what was drawn from is the start
    assert answer_kl_now(policy, rollout, old, config) == pytest.approx(float(expected), rel=1e-4)
    drawn = answer(policy, read_prompts(config.prompts), letters, config, 0)
    fresh = measure(policy, drawn, config)
    assert answer_kl_now(policy, drawn, fresh, config) == pytest.approx(answer_kl(fresh.log_probs, fresh.reference))


def test_figures_leave_abstentions_out(config: RolloutConfig) -> None:
    judgements = [Judgement((), value) for value in (1.0, NAN, 4.0)]
    rollout = Rollout([Row("a", "b")] * 3, [(1,), (1, 2), (1, 2, 3)], [True, False, False], judgements)
    assert rollout_figures(rollout) == {
        "samples": 3, "reward_mean": 2.5, "reward_std": 1.5, "abstained": 1, "length_mean": 2, "ended": 1 / 3,
    }  # fmt: skip
    strict = RolloutConfig(model="m", prompts=Path("p"), reward="x", out=Path("o"), missing_end_penalty=0.5)
    worth = totals(rollout, strict).tolist()
    assert worth[0] == 1 and math.isnan(worth[1]) and worth[2] == 3.5


def line(**changed: Any) -> dict[str, Any]:
    good = {"reward_mean": 1.0, "reward_std": 0.5, "clip_fraction": 0.1, "updates": 4, "ended": 0.9, "kl": 2.0,
            "length_mean": 20.0}  # fmt: skip
    return good | changed


@pytest.mark.parametrize(
    ("changed", "name", "words"),
    [
        ({"reward_std": 0.0}, "flat reward", "raise --temperature"),
        ({"clip_fraction": 0.0}, "no step", "no ratio left the clip range 0.2"),
        ({"clip_fraction": 0.9}, "always clipped", "lower --learning-rate"),
        ({"ended": 0.0}, "all answers cut", "cut at --max-new-tokens 5"),
        ({"kl": 30.0}, "far from the start", "30 nats, over 1 a token"),
        ({"zero_spread_groups": 0.75}, "flat groups", "in 75% of the groups"),
    ],
)
def test_why_nothing_is_learnt(config: RolloutConfig, changed: dict[str, Any], name: str, words: str) -> None:
    assert diagnose([line()] * 5, config) == {}
    found = diagnose([line(**changed)] * 3, config)
    assert list(found) == [name] and words in found[name]
    assert diagnose([line(clip_fraction=0.0, updates=1)] * 5, config) == {}  # ratios of the first update are 1
    assert diagnose([line(**changed), line()], config) == {}


def test_bad_input_is_told_in_one_line(config: RolloutConfig, tmp_path: Path) -> None:
    def changed(**change: Any) -> RolloutConfig:
        return RolloutConfig(**{name: getattr(config, name) for name in config.__dataclass_fields__} | change)

    for change, words in (
        ({"temperature": 0.0}, "--temperature got 0.0, allowed is above 0: a policy that does not vary cannot learn"),
        ({"max_new_tokens": 0}, "--max-new-tokens got 0, allowed is 1 or more"),
        ({"sample_batch_size": 0}, "--sample-batch-size got 0"),
        ({"clip_range": 0.0}, "--clip-range got 0.0, allowed is above 0"),
        ({"missing_end_penalty": -1.0}, "--missing-end-penalty got -1.0, allowed is 0 or more"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            validate_rollouts(changed(**change))
    policy, asked = VisionLanguagePolicy.load(config.model, max_length=50), read_prompts(config.prompts)
    lengths = policy.reader.lengths(asked)
    with pytest.raises(UserError, match=r"1 of 2 prompts have no room for --max-new-tokens \d+ in the 50 tokens"):
        prompts_that_fit(policy, asked, changed(max_new_tokens=50 - min(lengths)))
    kept = prompts_that_fit(policy, asked, changed(max_new_tokens=50 - min(lengths), too_long="drop"))
    assert kept == [asked[lengths.index(min(lengths))]]
    with pytest.raises(UserError, match="2 of 2 prompts have no room"):
        prompts_that_fit(policy, asked, changed(max_new_tokens=50, too_long="drop"))
    with pytest.raises(UserError, match="prompts.jsonl row 1 lacks prompt: write"):
        read_prompts(write_rows([{"image": "0.png"}], tmp_path / "prompts.jsonl"))


def test_a_token_of_an_update_counts_alike_in_whatever_part() -> None:
    lengths, values = torch.tensor([1, 3]), (torch.tensor([5.0]), torch.tensor([1.0, 2.0, 3.0]))

    def loss_of(_: float, places: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
        mean = torch.cat([values[i] for i in places.tolist()]).mean()
        return mean, {"mean": float(mean), "ratio_max": 2.0}

    parts = [rollouts.token_weighted(loss_of, lengths, 2.0, torch.tensor(rows)) for rows in ([0], [1], [0, 1])]
    assert float(parts[0][0] / 2 + parts[1][0] / 2) == pytest.approx(float(parts[2][0])) == pytest.approx(11 / 4)
    assert parts[1][1] == {"mean": 6.0, "ratio_max": 2.0, "tokens": 3.0}


def measured(mask: list[list[bool]], log_probs: list[list[float]], reference: list[list[float]]) -> Measured:
    """Log-probabilities by hand."""
    kept = torch.tensor(mask)
    shown = torch.tensor(log_probs), torch.tensor(reference), torch.zeros(kept.shape)
    return Measured(kept, *shown, torch.zeros(*kept.shape, 0))
