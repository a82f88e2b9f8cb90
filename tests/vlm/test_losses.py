"""The losses in closed form and against plain loops; which tokens of a correction count as changed."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vlm.losses import changed_tokens, dense_log_prob, dpo_loss, token_nll


def test_dpo_in_closed_form() -> None:
    chosen, rejected = torch.tensor([-3.0, -5.0]), torch.tensor([-4.0, -4.0])
    start_chosen, start_rejected = torch.tensor([-3.5, -5.0]), torch.tensor([-4.0, -5.0])
    loss, figures = dpo_loss(chosen, rejected, start_chosen, start_rejected, beta=2.0)
    margins = [2 * (0.5 - 0.0), 2 * (0.0 - 1.0)]
    assert float(loss) == pytest.approx(sum(math.log1p(math.exp(-m)) for m in margins) / 2)
    assert figures == pytest.approx(
        {"implicit_accuracy": 0.5, "implicit_margin": -0.5, "chosen_moved": 0.25, "rejected_moved": 0.5}
    )
    smoothed, _ = dpo_loss(chosen, rejected, start_chosen, start_rejected, beta=2.0, label_smoothing=0.1)
    expected = [0.9 * math.log1p(math.exp(-m)) + 0.1 * math.log1p(math.exp(m)) for m in margins]
    assert float(smoothed) == pytest.approx(sum(expected) / 2)


def test_at_the_start_the_loss_is_log_2_and_half_is_right() -> None:
    same = torch.randn(4)
    loss, figures = dpo_loss(same, same - 1, same, same - 1, beta=0.1)
    assert float(loss) == pytest.approx(math.log(2)) and figures["implicit_accuracy"] == 0.5


def test_dense_log_prob_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    log_probs = -torch.rand(3, 7, generator=generator)
    mask = torch.arange(7) < torch.tensor([7, 4, 5]).unsqueeze(1)
    changed = (torch.rand(3, 7, generator=generator) < 0.4) & mask
    for normalize in (True, False):
        found = dense_log_prob(log_probs, mask, changed, 5.0, normalize=normalize)
        for row in range(3):
            kept = [i for i in range(7) if mask[row, i]]
            total = sum((5.0 if changed[row, i] else 1.0) * float(log_probs[row, i]) for i in kept)
            weight = sum(5.0 if changed[row, i] else 1.0 for i in kept)
            assert float(found[row]) == pytest.approx(total / weight if normalize else total, rel=1e-5)
    plain = dense_log_prob(log_probs, mask, changed, 1.0, normalize=False)
    torch.testing.assert_close(plain, (log_probs * mask).sum(1))


def test_changed_tokens_of_replacements_insertions_and_deletions() -> None:
    old, new = [1, 2, 3, 4, 5, 6], [1, 2, 9, 4, 5, 6]
    assert changed_tokens(old, new) == ([i == 2 for i in range(6)], [i == 2 for i in range(6)])
    assert changed_tokens([1, 2, 3], [1, 7, 2, 3]) == ([False] * 3, [False, True, False, False])
    assert changed_tokens([1, 7, 2, 3], [1, 2, 3]) == ([False, True, False, False], [False] * 3)
    # as in the released code: insertions and deletions do not count, short equal stretches between changes do
    assert changed_tokens([1, 2, 3], [1, 7, 2, 3], edits=False) == ([False] * 3, [False] * 4)
    before, after = changed_tokens([1, 2, 3, 8, 4, 5, 6, 7], [1, 2, 3, 9, 4, 5, 0, 7, 7], absorb=3)
    assert before == [False] * 3 + [True] * 5 and after == [False] * 3 + [True] * 6


@given(st.lists(st.integers(0, 4), max_size=12), st.lists(st.integers(0, 4), max_size=12), st.integers(1, 3))
def test_what_is_unchanged_is_the_same_on_both_sides(old: list[int], new: list[int], absorb: int) -> None:
    before, after = changed_tokens(old, new, absorb=absorb)
    assert len(before) == len(old) and len(after) == len(new)
    kept = [token for token, changed in zip(old, before, strict=True) if not changed]
    assert kept == [token for token, changed in zip(new, after, strict=True) if not changed]


def test_token_nll_is_the_mean_over_tokens() -> None:
    log_probs, mask = torch.tensor([[-1.0, -2.0], [-4.0, 0.0]]), torch.tensor([[True, True], [True, False]])
    loss, figures = token_nll(log_probs, mask)
    assert float(loss) == pytest.approx(7 / 3) and figures == {"tokens": 3.0}
