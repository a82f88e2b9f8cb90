"""bfloat16 where the processor computes in it; where it only imitates it, float32 is many times as fast."""

import functools

import torch


@functools.cache
def has_bfloat16(device_type: str) -> bool:
    """Whether devices of this type ("cpu", "cuda", …) compute in bfloat16 natively."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device_type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return False
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in ("amx_bf16", "avx512_bf16"))


def fast_autocast(device_type: str) -> torch.autocast:
    """A context of mixed precision in bfloat16, or one that changes nothing where the device has no bfloat16."""
    return torch.autocast(device_type, torch.bfloat16, enabled=has_bfloat16(device_type))
