"""Answers to one prompt, read with it once, are as likely, and have the gradients, of answers each behind its own copy."""

import pytest
import torch

from mmrlhf.rewards.language.inputs import Row
from vlm.policy import VisionLanguagePolicy

GENERATOR = torch.Generator().manual_seed(0)
PICTURES = [torch.rand(3, *size, generator=GENERATOR) for size in ((40, 56), (64, 32))]
ROWS = [
    Row("What is it?", "A cat here.", PICTURES[0]),
    Row("Where on earth is it?", "no idea", PICTURES[1]),
    Row("What is it?", "B", PICTURES[0]),
    Row("Where on earth is it?", "there, or so they say", PICTURES[1]),
    Row("What is it?", "no cat", PICTURES[1]),
]


def scored(policy: VisionLanguagePolicy, rows: list[Row], *, share: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Log-probabilities, and the gradients of a sum of them in which each token has a weight of its own."""
    batch = policy.encode(rows, share=share)
    assert (batch.prompts is not None) == share
    found = policy.score(batch, entropy=True)
    weights = torch.rand(found.log_probs.shape, generator=torch.Generator().manual_seed(1))
    loss = (weights * found.log_probs).sum()
    return torch.cat([found.log_probs, found.entropies]).detach(), list(torch.autograd.grad(loss, policy.parameters()))


@pytest.mark.parametrize(
    "rows", [ROWS, [Row("Hm?", answer) for answer in ("A", "B c d", "e f")]], ids=["seen", "blind"]
)
def test_as_if_each_had_its_own_prompt(model: str, rows: list[Row]) -> None:
    policy = VisionLanguagePolicy.load(model, lora_rank=4)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=GENERATOR))
    scored(policy, ROWS, share=True)  # what a model remembers of an earlier batch is not taken for this one's
    (alone, slopes), (together, found) = (scored(policy, rows, share=share) for share in (False, True))
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    for own, expected in zip(found, slopes, strict=True):
        torch.testing.assert_close(own, expected, atol=1e-4, rtol=1e-3)
    assert max(float(each.abs().max()) for each in slopes) > 0.01


@pytest.mark.parametrize(
    "rows", [ROWS, [Row("Hm?", None)] * 3 + [Row("What is it, then?", None)]], ids=["seen", "blind"]
)
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_answers_are_those_of_prompts_read_for_each(
    model: str, rows: list[Row], temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = VisionLanguagePolicy.load(model)
    policy.generate(
        ROWS[:2], seed=0, max_new_tokens=2
    )  # what a model remembers of an earlier batch is not taken for this one's
    reads = []
    policy.network.base_model.register_forward_pre_hook(
        lambda module, given, named: reads.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    together = policy.generate(rows, seed=3, max_new_tokens=8, temperature=temperature)
    assert reads[0][0] == len({(row.prompt, id(row.image)) for row in rows}) and reads[1] == (len(rows), 1)
    monkeypatch.setattr("vlm.policy.can_share", lambda network: False)
    assert policy.generate(rows, seed=3, max_new_tokens=8, temperature=temperature) == together
    assert len(set(together.tokens)) > 1


def test_each_prompt_is_kept_once(model: str) -> None:
    policy = VisionLanguagePolicy.load(model)
    batch = policy.encode(ROWS, share=True)
    assert (
        batch.prompts is not None and batch.prompts.tolist() == [0, 1, 0, 1, 2] and len(batch.inputs["input_ids"]) == 3
    )
    assert policy.encode(ROWS[:2], share=True).prompts is None
    short = policy.encode([ROWS[0]._replace(answer="")] * 2, [(policy.ends[0],)] * 2, share=True)
    alone = policy.encode([ROWS[0]._replace(answer="")] * 2, [(policy.ends[0],)] * 2)
    torch.testing.assert_close(policy.log_probs(short), policy.log_probs(alone), atol=1e-5, rtol=1e-4)


def test_recomputed_blocks_read_each_answer_with_its_prompt(small_llava: str) -> None:
    policy = VisionLanguagePolicy.load(small_llava, lora_rank=4, gradient_checkpointing=True)
    assert policy.encode(ROWS, share=True).prompts is None
