"""bfloat16 only where the processor has it."""

import pytest
import torch

from mmrlhf import precision


@pytest.mark.parametrize("flag", ["amx_bf16", "avx512_bf16"])
def test_a_processor_with_bfloat16_computes_in_it(flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {flag: True}, raising=False)
    precision.has_bfloat16.cache_clear()
    with precision.fast_autocast("cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    precision.has_bfloat16.cache_clear()


def test_a_processor_without_it_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "amx_bf16": False}, raising=False)
    precision.has_bfloat16.cache_clear()
    with precision.fast_autocast("cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    precision.has_bfloat16.cache_clear()


def test_a_torch_that_does_not_tell_is_taken_to_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    precision.has_bfloat16.cache_clear()
    assert not precision.has_bfloat16("cpu")
    precision.has_bfloat16.cache_clear()
