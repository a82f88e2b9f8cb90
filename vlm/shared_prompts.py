"""Several answers to one prompt without reading it again for each: its keys and values are computed once and serve them all.

What comes out is what reading each answer behind its own copy of the prompt gives, gradients included, up to rounding. A prompt
with a picture is hundreds of tokens, so this saves most of the work of groups of answers, and up to half of that of pairs.
"""

import inspect
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlm.encoding import Encoded


def can_share(network: Any) -> bool:
    """Whether the model keeps plain keys and values, every one of them: no sliding windows, no states of recurrent layers."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    layers = DynamicCache(config=network.config.get_text_config()).layers
    return all(type(layer) is DynamicLayer for layer in layers)


def shared_states(network: Any, batch: Encoded) -> Float[Tensor, "b t d"]:
    """The last layer's state from which each token of the answers is drawn; arbitrary where there is none."""
    from transformers import DynamicCache

    assert batch.prompts is not None
    base, own = network.base_model, batch.prompts
    cache = DynamicCache(config=network.config.get_text_config())
    given = {cache_name(base): cache, "use_cache": True}
    hidden = base(**batch.inputs, **given).last_hidden_state
    first = hidden[own, batch.starts - 1].unsqueeze(1)
    if batch.answers.shape[1] == 1:
        return first
    cache.batch_select_indices(own)
    told = batch.mask[:, :-1]
    seen = torch.cat([batch.inputs["attention_mask"][own], told.to(batch.inputs["attention_mask"].dtype)], dim=1)
    places = batch.starts.unsqueeze(1) + torch.arange(told.shape[1], device=told.device)
    # models whose pictures take other places than they have tokens; without a picture it is that of an earlier batch
    shift = getattr(base, "rope_deltas", None)
    if shift is not None and "pixel_values" in batch.inputs:
        places = (places + shift.to(places.device)[own]).expand(3, -1, -1)
    rest = base(input_ids=batch.answers[:, :-1], attention_mask=seen, position_ids=places, **given).last_hidden_state
    return torch.cat([first, rest], dim=1)


def read_once(network: Any, prompts: dict[str, Tensor], own: Int[Tensor, " b"]) -> dict[str, Any]:
    """What `generate` of `transformers` goes on from where row i has prompt `own[i]`, each read once but for its last token.

    `prompts` are padded on the left.
    """
    from transformers import DynamicCache

    base, ids, mask = network.base_model, prompts["input_ids"], prompts["attention_mask"]
    cache = DynamicCache(config=network.config.get_text_config())
    given = {name: value[:, :-1] if value.shape[:2] == ids.shape else value for name, value in prompts.items()}
    moves = hasattr(base, "rope_deltas")  # whether pictures take other places than they have tokens
    if not (moves and "pixel_values" in prompts):
        given["position_ids"] = (mask[:, :-1].cumsum(-1) - 1).clamp(min=0)
        if moves:  # not that of an earlier batch
            base.rope_deltas = ids.new_zeros(len(ids), 1)
    base(**given, **{cache_name(base): cache, "use_cache": True})
    cache.batch_select_indices(own)
    if moves:
        base.rope_deltas = base.rope_deltas[own]
    return {"input_ids": ids[own], "attention_mask": mask[own], cache_name(base): cache}


def cache_name(base: Any) -> str:
    """What the model calls the keys and values that it is given."""
    return "cache" if "cache" in inspect.signature(base.forward).parameters else "past_key_values"
