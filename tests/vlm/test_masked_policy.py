"""What a masked policy draws is what it scores: nothing outside the nucleus of another one, and the rest more likely for that."""

from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import TopPLogitsWarper

from mmrlhf.rewards.language.inputs import Row
from tests.vlm.test_rollouts import moved
from vlm import masked_policy
from vlm.masked_policy import MaskAsItGoes, MaskedPolicy, nucleus
from vlm.policy import Answers, VisionLanguagePolicy
from vlm.twin import twin

P, T = 0.6, 0.8
ASKED = [Row(prompt, None, torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(i)))
         for i, prompt in enumerate(("What?", "Who is it?", "Where is the man?") * 3)]  # fmt: skip


@pytest.fixture(params=[0, 4])
def policy(model: str, request: pytest.FixtureRequest) -> MaskedPolicy:
    """One that has moved since its masking policy was renewed."""
    loaded = VisionLanguagePolicy.load(model, lora_rank=request.param)
    policy = MaskedPolicy(moved(loaded), twin(loaded), P)
    moved(policy)
    return policy


class Recorded(MaskAsItGoes):
    """Keeps the logits that it let through."""

    kept: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.kept.append(super().__call__(input_ids, scores))
        return self.kept[-1]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.Tensor]]:
    """The masked logits of each step."""
    monkeypatch.setattr(masked_policy, "MaskAsItGoes", Recorded)
    Recorded.kept = []
    yield Recorded.kept


def drawn(policy: MaskedPolicy, asked: Sequence[Row] = ASKED) -> Answers:
    return policy.generate(asked, seed=3, max_new_tokens=6, temperature=T)


@torch.no_grad()
@pytest.mark.parametrize("seen", [True, False])
def test_recomputed_log_probs_are_those_it_drew_from(
    policy: MaskedPolicy, recorded: list[torch.Tensor], seen: bool
) -> None:
    asked = ASKED if seen else [row._replace(image=None) for row in ASKED]
    answers = drawn(policy, asked)
    scored = policy.score(policy.encode(asked, answers.tokens, share=True), temperature=T, entropy=True)
    logits = torch.stack(recorded, dim=1)
    for i, tokens in enumerate(answers.tokens):
        log_probs = (logits[i, : len(tokens)] / T).log_softmax(-1)
        expected = log_probs.gather(1, torch.tensor(tokens).unsqueeze(1)).squeeze(1)
        torch.testing.assert_close(scored.log_probs[i, : len(tokens)], expected, atol=1e-4, rtol=1e-4)
        spread = torch.distributions.Categorical(logits=log_probs).entropy()
        torch.testing.assert_close(scored.entropies[i, : len(tokens)], spread, atol=1e-4, rtol=1e-4)
    with policy.unmasked():
        free = policy.score(policy.encode(asked, answers.tokens), temperature=T)
    kept = (free.log_probs - scored.log_probs)[scored.log_probs < 0]
    assert (kept < 1e-4).all() and kept.exp().mean() < 0.9  # a mask takes something away
    assert torch.equal(free.states, policy.states(policy.encode(asked, answers.tokens)))


@torch.no_grad()
def test_nothing_is_said_outside_the_nucleus_of_the_masking_policy(policy: MaskedPolicy) -> None:
    """Read again from the beginning, without a cache, by another's top-p."""
    answers = drawn(policy)
    outside_of_its_own = 0
    for row, tokens in zip(ASKED, answers.tokens, strict=True):
        for count in range(len(tokens)):
            batch = policy.encode([row], [tokens[: count + 1]])
            kept = []
            for each in (policy.masking, policy):
                logits = each.network(**batch.inputs).logits[:, batch.starts[0] + count - 1] / T
                logits[:, each.banned] = -1e9
                kept.append(TopPLogitsWarper(P)(None, logits)[0])
            assert kept[0][tokens[count]] > float("-inf") or tokens[count] in policy.always
            outside_of_its_own += bool(kept[1][tokens[count]] == float("-inf"))
    assert outside_of_its_own  # it is not its own nucleus


@torch.no_grad()
def test_without_the_mask_it_is_the_policy(policy: MaskedPolicy) -> None:
    plain = VisionLanguagePolicy(policy.model, policy.reader)
    with policy.unmasked():
        assert drawn(policy).tokens == plain.generate(ASKED, seed=3, max_new_tokens=6, temperature=T).tokens
    batch = policy.encode(ASKED, drawn(policy).tokens)
    with policy.reference():
        found = policy.log_probs(batch, temperature=T)
        assert not policy.masked
    assert policy.masked and found.isfinite().all() and (found > -1e3).all()
    policy.top_p = 1.0
    torch.testing.assert_close(policy.log_probs(batch), plain.log_probs(batch), atol=1e-5, rtol=1e-4)
    assert drawn(policy).tokens == plain.generate(ASKED, seed=3, max_new_tokens=6, temperature=T).tokens


def test_gradients_are_those_of_the_distribution_within_the_mask(
    small_llava: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All at once, or a part of the logits at a time."""
    loaded = VisionLanguagePolicy.load(small_llava, lora_rank=4)
    policy = MaskedPolicy(loaded, twin(loaded), P)
    moved(policy)
    batch = policy.encode(ASKED, drawn(policy).tokens)
    gradients = []
    for size in (2**24, 1000):
        monkeypatch.setattr(masked_policy, "LOGITS_AT_ONCE", size)
        scored = policy.score(batch, temperature=T, entropy=True)
        gradients.append(torch.autograd.grad((scored.log_probs + scored.entropies).sum(), policy.parameters()))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
    # the probabilities within the mask add up to 1, so that the mean of the score function is 0
    state, head = torch.randn(1, policy.width), policy.network.get_output_embeddings()
    logits = head(state).detach().requires_grad_()
    allowed = nucleus(logits.detach().log_softmax(-1), P)
    log_probs = logits.masked_fill(~allowed, -1e9).log_softmax(-1)
    (slope,) = torch.autograd.grad((log_probs.exp().detach() * log_probs)[allowed].sum(), logits)
    assert slope.abs().max() < 1e-6


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=12, unique=True), st.floats(0.01, 1.0))
def test_the_nucleus_is_the_least_that_has_the_probability(logits: list[float], top_p: float) -> None:
    log_probs = torch.tensor([logits], dtype=torch.float64).log_softmax(-1)
    kept, probabilities = nucleus(log_probs, top_p)[0], log_probs[0].exp()
    assert float(probabilities[kept].sum()) >= top_p - 1e-9
    assert top_p == 1 or float(probabilities[kept].sum() - probabilities[kept].min()) < top_p + 1e-9
    assert kept.all() or probabilities[kept].min() >= probabilities[~kept].max()


def test_the_nucleus_by_hand() -> None:
    log_probs = torch.tensor([[0.1, 0.5, 0.3, 0.1], [0.97, 0.01, 0.01, 0.01]]).log()
    assert nucleus(log_probs, 0.6).tolist() == [[False, True, True, False], [True, False, False, False]]
    assert nucleus(log_probs, 1.0).all()
