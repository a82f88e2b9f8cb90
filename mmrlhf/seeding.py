"""Generators that depend on numbers alone, so that a resumed run and a comparison before and after draw the same."""

import numpy as np
import torch


def seeded(*numbers: int) -> torch.Generator:
    """A CPU generator for these numbers (a seed, an epoch, an index…), unrelated to that of any others."""
    entropy = [len(numbers)]  # the count, as numpy ignores zeros at the end
    for number in numbers:
        entropy += [number % 2**32, (number >> 32) % 2**32]
    state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]) & (2**63 - 1))
