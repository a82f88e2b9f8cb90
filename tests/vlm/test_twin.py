"""A second state of a policy's weights: it is what the policy was, whatever becomes of that, and costs what is trained alone."""

import pytest
import torch

from mmrlhf.rewards.language.inputs import Row
from tests.vlm.test_rollouts import moved
from vlm.policy import VisionLanguagePolicy, merged
from vlm.twin import twin, twin_start

ROWS = [Row("What?", "A B"), Row("Who is it?", "x")]


@pytest.mark.parametrize("rank", [0, 4])
def test_it_stays_what_the_policy_was(model: str, rank: int) -> None:
    policy = moved(VisionLanguagePolicy.load(model, lora_rank=rank))
    batch = policy.encode(ROWS)
    before = policy.log_probs(batch).detach()
    second = twin(policy)
    moved(policy)
    assert torch.equal(second.log_probs(batch), before) and not torch.allclose(policy.log_probs(batch), before)
    with merged(policy.model):
        assert torch.equal(second.log_probs(batch), before)
    assert second.parameters() == []


def test_it_shares_the_memory_of_what_is_not_trained(small_llava: str) -> None:
    policy = VisionLanguagePolicy.load(small_llava, lora_rank=4)
    own = {weight.data_ptr(): weight.requires_grad for weight in policy.model.parameters()}
    theirs = [weight.data_ptr() for weight in twin(policy).model.parameters()]
    new = [pointer for pointer in theirs if pointer not in own]
    assert len(new) == len(policy.parameters()) < len(theirs)
    assert not any(own[pointer] for pointer in theirs if pointer in own)


@pytest.mark.parametrize("rank", [0, 4])
def test_the_start_has_no_adapter(small_llava: str, rank: int) -> None:
    policy = VisionLanguagePolicy.load(small_llava, lora_rank=rank)
    batch = policy.encode(ROWS)
    with policy.reference():
        expected = policy.log_probs(batch).detach()
    model = twin_start(policy)
    assert not any("lora" in name for name, _ in model.named_parameters())
    moved(policy)
    start = VisionLanguagePolicy(model, policy.reader)
    torch.testing.assert_close(start.log_probs(batch), expected)
