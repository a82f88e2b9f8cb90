"""Heads say the same of tokens and of the vocabulary, come back from disk equal, and shift what is answered as they should."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from mmrlhf.errors import UserError
from mmrlhf.rewards.language.inputs import Row
from tests.vlm.helpers import pictures
from vlm.policy import VisionLanguagePolicy
from vlm.value_heads import VALUES, ValueHeads, generate_with_values


def random_heads(policy: VisionLanguagePolicy) -> ValueHeads:
    """Heads that have learned something."""
    heads = ValueHeads.fresh(policy, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for i, weight in enumerate(heads.parameters()):
            weight.add_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(i)))
    return heads


def questions(folder: Path) -> list[Row]:
    first, second = pictures(folder, 2)
    return [Row("What?", None, folder / first), Row("Who is it then?", None, folder / second), Row("Why?")]


def test_at_the_start_all_is_zero_and_follows_from_the_generator(small_llava: str) -> None:
    policy = VisionLanguagePolicy.load(small_llava)
    states = torch.randn(5, policy.width, generator=torch.Generator().manual_seed(0))
    heads, again, other = (ValueHeads.fresh(policy, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    q, values = heads.of_vocabulary(states)
    assert not q.any() and not values.any() and q.shape == (5, policy.network.config.text_config.vocab_size)
    first = "q.0.0.weight"
    assert torch.equal(heads.state_dict()[first], again.state_dict()[first])
    assert not torch.equal(heads.state_dict()[first], other.state_dict()[first])
    assert not torch.equal(heads.state_dict()[first], heads.state_dict()["q.1.0.weight"])
    assert torch.equal(heads.state_dict()[first], heads.state_dict()["target.0.0.weight"])
    assert not any(weight.requires_grad for weight in heads.target.parameters())


def test_tokens_have_what_the_vocabulary_has(small_llava: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the part of the table that is held at a time; and so have the gradients."""
    policy = VisionLanguagePolicy.load(small_llava)
    heads = random_heads(policy)
    states = torch.randn(5, policy.width, generator=torch.Generator().manual_seed(0)).requires_grad_()
    tokens = torch.tensor([3, 0, 7, 7, 250])
    table = torch.stack([head(states) for head in heads.q])
    found = heads.of_tokens(states, tokens)
    chosen = table[:, torch.arange(5), tokens]
    torch.testing.assert_close(found.q, chosen)
    torch.testing.assert_close(found.log_sum_exp, table.logsumexp(-1))
    lesser, values = heads.of_vocabulary(states.detach())
    torch.testing.assert_close(found.target_q, lesser[torch.arange(5), tokens])
    slow = torch.minimum(*(head(states)[torch.arange(5), tokens] for head in heads.target))
    torch.testing.assert_close(found.target_q, slow.detach())
    torch.testing.assert_close(found.values, values)
    assert not found.target_q.requires_grad
    (expected,) = torch.autograd.grad((chosen.square() + table.logsumexp(-1)).sum(), states)
    monkeypatch.setattr("vlm.value_heads.LOGITS_AT_ONCE", 2 * table.shape[-1])
    found = heads.of_tokens(states, tokens)
    (gradient,) = torch.autograd.grad((found.q.square() + found.log_sum_exp).sum(), states)
    torch.testing.assert_close(gradient, expected)


def test_the_copies_follow_slowly(small_llava: str) -> None:
    heads = random_heads(VisionLanguagePolicy.load(small_llava))
    q, before = (each.clone() for each in (heads.q[0][2].weight, heads.target[0][2].weight))  # type: ignore[index]
    heads.follow(0.1)
    torch.testing.assert_close(heads.target[0][2].weight, 0.9 * before + 0.1 * q)  # type: ignore[index]
    assert torch.equal(heads.q[0][2].weight, q)  # type: ignore[index]


def test_each_token_is_the_best_by_logits_and_values(model: str, tmp_path: Path) -> None:
    """Greedy answers, token by token, against the states and logits of the whole answer read at once."""
    policy = VisionLanguagePolicy.load(model)
    heads, rows = random_heads(policy), questions(tmp_path)
    how = {"seed": 0, "temperature": 0.0, "max_new_tokens": 6}
    said = generate_with_values(policy, heads, rows, weight=2.0, **how)  # type: ignore[arg-type]
    head = policy.network.get_output_embeddings()
    with torch.no_grad():
        batch = policy.encode(rows, said.tokens)
        states = policy.states(batch)[batch.mask]
        lesser = torch.minimum(*(each(states) for each in heads.target))
        shifted = F.log_softmax(head(states), dim=-1) + 2 * (lesser - heads.v(states))
        shifted[:, policy.banned] = -1e9
    assert shifted.argmax(-1).tolist() == batch.answers[batch.mask].tolist()
    assert said.tokens != policy.generate(rows, **how).tokens  # type: ignore[arg-type]


def test_without_weight_the_answers_are_the_policys_and_nothing_stays(small_llava: str, tmp_path: Path) -> None:
    policy = VisionLanguagePolicy.load(small_llava)
    heads, rows = random_heads(policy), questions(tmp_path)
    own = policy.generate(rows, seed=3, max_new_tokens=5)
    assert generate_with_values(policy, heads, rows, weight=0.0, seed=3, max_new_tokens=5) == own
    assert generate_with_values(policy, heads, rows, weight=5.0, seed=3, max_new_tokens=5) != own
    assert policy.generate(rows, seed=3, max_new_tokens=5) == own
    assert not policy.network.get_output_embeddings()._forward_pre_hooks


def test_they_come_back_from_disk(small_llava: str, small_qwen_vl: str, tmp_path: Path) -> None:
    policy = VisionLanguagePolicy.load(small_llava)
    heads = random_heads(policy)
    heads.save(tmp_path, 2.5)
    again, weight = ValueHeads.load(tmp_path, policy)
    assert weight == 2.5 and [path.name for path in tmp_path.iterdir()] == [VALUES]
    states = torch.randn(4, policy.width, generator=torch.Generator().manual_seed(0))
    for one, other in zip(heads.of_vocabulary(states), again.of_vocabulary(states), strict=True):
        assert torch.equal(one, other)
    for state in ("bytes", "other model", "none"):
        if state == "bytes":
            (tmp_path / "broken").mkdir()
            (tmp_path / "broken" / VALUES).write_bytes(b"no tensors")
        folder = tmp_path / "broken" if state == "bytes" else tmp_path / "gone" if state == "none" else tmp_path
        by = VisionLanguagePolicy.load(small_qwen_vl) if state == "other model" else policy
        with pytest.raises(UserError, match=r"the values in .*values.safetensors do not fit the model \("):
            ValueHeads.load(folder, by)
