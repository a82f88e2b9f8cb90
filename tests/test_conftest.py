"""The shapes written at function boundaries are checked while the tests run: a wrong one fails at the call."""

import pytest
import torch
from jaxtyping import TypeCheckError

from mmrlhf.images import grid, to_pil
from mmrlhf.types import Preference, Rollout


def test_a_wrong_shape_fails_at_the_call() -> None:
    assert to_pil(torch.zeros(3, 2, 4)).size == (4, 2)
    with pytest.raises(TypeCheckError, match="image"):
        to_pil(torch.zeros(2, 4))


def test_a_wrong_type_fails_at_the_call() -> None:
    with pytest.raises(TypeCheckError, match="columns"):
        grid(torch.zeros(2, 3, 4, 4), "two")  # type: ignore[arg-type]


def test_records_are_checked_too() -> None:
    right = {"prompt": "a cat", "label": 1.0, "annotator": "ann", "source": "human", "shown": ("a", "b")}
    assert Preference(items=("a", "b"), **right).label == 1.0  # type: ignore[arg-type]
    with pytest.raises(TypeCheckError):
        Preference(items=["a", "b", "c"], **right)  # type: ignore[arg-type]


def test_a_rollout_can_be_built_and_taken_apart() -> None:
    steps = torch.zeros(2, 5)
    latents = torch.zeros(2, 5, 4, 8, 8)
    rollout = Rollout(("a", "b"), latents, latents, steps.long(), steps, torch.zeros(2, 3, 64, 64), latents[:, 0])
    assert Rollout(*rollout).log_probs.shape == (2, 5)
    assert rollout._replace(prompts=("c", "d")).prompts == ("c", "d")


def test_one_thread() -> None:
    assert torch.get_num_threads() == 1
