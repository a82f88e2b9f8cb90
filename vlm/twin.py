"""A second state of a policy's weights that needs no second copy of those that are not trained."""

import copy
from typing import Any

from torch import nn

from vlm.policy import VisionLanguagePolicy


def twin(policy: VisionLanguagePolicy) -> VisionLanguagePolicy:
    """A frozen policy with the present weights: it shares the memory of what is not trained, and has its own of what is."""
    return VisionLanguagePolicy(twin_model(policy), policy.reader)


def twin_model(policy: VisionLanguagePolicy) -> Any:
    """The model of `twin`."""
    # Parameters of its own even where the memory is shared: a policy may put other values in place of its own for a while
    shared = {
        id(weight): nn.Parameter(weight.data, requires_grad=False)
        for weight in policy.model.parameters()
        if not weight.requires_grad
    }
    return copy.deepcopy(policy.model, shared).requires_grad_(False).eval()


def twin_start(policy: VisionLanguagePolicy) -> Any:
    """The model that a policy begins from, before any of its training: as `twin_model`, without an adapter."""
    model = twin_model(policy)
    return model.unload() if hasattr(model, "peft_config") else model
