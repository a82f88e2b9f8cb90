"""A policy that can only say what lies in the nucleus of another one: what it draws, and how likely that is."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mmrlhf.rewards.language.inputs import Row
from vlm.encoding import Encoded, encode_prompts, moved
from vlm.policy import LEAST, LOGITS_AT_ONCE, Answers, Scored, VisionLanguagePolicy, softcap, token_distribution
from vlm.shared_prompts import cache_name


class MaskedPolicy(VisionLanguagePolicy):
    """A policy whose tokens outside the `top_p` nucleus of `masking` have no probability, but for the tokenizer's special ones.

    `reference` is the start without a mask. Masking and policy may share weights.
    """

    def __init__(self, policy: VisionLanguagePolicy, masking: VisionLanguagePolicy, top_p: float) -> None:
        super().__init__(policy.model, policy.reader, gradient_checkpointing=policy.checkpointing)
        self.start = policy.start
        self.masking, self.top_p, self.masked = masking, top_p, True
        self.always = sorted({*self.ends, *self.tokenizer.all_special_ids} - {*self.banned})

    def score(self, batch: Encoded, *, temperature: float = 1.0, entropy: bool = False) -> Scored:
        """As that of a policy. A token of an answer counts as allowed: it was drawn, so only rounding can have it outside."""
        if not self.masked:
            return super().score(batch, temperature=temperature, entropy=entropy)
        states = self.states(batch)
        with torch.no_grad():
            lagged = self.masking.states(batch)[batch.mask]
        kept, parts = states[batch.mask], []
        size = max(1, LOGITS_AT_ONCE // self.network.get_output_embeddings().weight.shape[0])
        pieces = (kept.split(size), lagged.split(size), batch.answers[batch.mask].split(size))
        for own, behind, tokens in zip(*pieces, strict=True):
            given = (self, own, behind, tokens, temperature, entropy)
            grad = torch.is_grad_enabled() and own.requires_grad
            parts.append(
                checkpoint(masked_log_probs, *given, use_reentrant=False) if grad else masked_log_probs(*given)
            )
        found = torch.zeros(2, *batch.mask.shape, device=states.device)
        where = batch.mask.unsqueeze(0).expand_as(found)
        found = found.masked_scatter(where, torch.cat(parts, dim=1)) if parts else found
        return Scored(found[0], found[1], states)

    def allowed(self, states: Float[Tensor, "n d"], temperature: float) -> Bool[Tensor, "n v"]:
        """What can be said, from the masking policy's states."""
        head = self.masking.network.get_output_embeddings()
        found = nucleus(self.masking.distributions(states, temperature, head), self.top_p)
        found[:, self.always] = True
        return found

    def generate(
        self, rows: Sequence[Row], *, seed: int, max_new_tokens: int = 256, temperature: float = 1.0, top_p: float = 1.0,
        **how: Any,
    ) -> Answers:  # fmt: skip
        """As that of a policy, within the mask."""
        if self.masked:
            prompts = moved(encode_prompts(self.reader, rows, "left"), self.device, self.network.dtype)
            how["logits_processor"] = [
                *how.get("logits_processor", ()),
                MaskAsItGoes(self, prompts, temperature or 1.0),
            ]
        return super().generate(
            rows, seed=seed, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, **how
        )

    @contextlib.contextmanager
    def unmasked(self) -> Iterator[None]:
        """Inside, there is no mask."""
        before, self.masked = self.masked, False
        try:
            yield
        finally:
            self.masked = before

    @contextlib.contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the policy is the one that training started from, without a mask."""
        with self.unmasked(), super().reference():
            yield


class MaskAsItGoes:
    """Takes from the logits of the token that comes next what the masking policy does not allow; it reads along."""

    def __init__(self, policy: MaskedPolicy, prompts: dict[str, Tensor], temperature: float) -> None:
        from transformers import DynamicCache

        self.policy, self.temperature = policy, temperature
        self.base, self.prompts, self.seen = policy.masking.network.base_model, prompts, prompts["attention_mask"]
        self.cache = DynamicCache(config=policy.network.config.get_text_config())

    def __call__(self, input_ids: Int[Tensor, "b l"], scores: Float[Tensor, "b v"]) -> Float[Tensor, "b v"]:
        new = self.prompts
        if begun := self.cache.get_seq_length() > 0:
            self.seen = F.pad(self.seen, (0, 1), value=1)
            new = {"input_ids": input_ids[:, -1:], "attention_mask": self.seen}
        given = new | self.places(begun) | {cache_name(self.base): self.cache, "use_cache": True}
        allowed = self.policy.allowed(self.base(**given).last_hidden_state[:, -1], self.temperature)
        return scores.masked_fill(~allowed[:, : scores.shape[1]], float("-inf"))

    def places(self, begun: bool) -> dict[str, Tensor]:
        """Where the tokens that are read now stand, what is padded on the left not counted."""
        places = (self.seen.cumsum(-1) - 1).clamp(min=0)
        # models whose pictures take other places than they have tokens: they find those of a prompt by themselves
        if hasattr(self.base, "rope_deltas") and "pixel_values" in self.prompts:
            return {"position_ids": (places[:, -1:] + self.base.rope_deltas).expand(3, -1, -1)} if begun else {}
        return {"position_ids": places[:, -1:] if begun else places}


def masked_log_probs(
    policy: MaskedPolicy,
    states: Float[Tensor, "n d"],
    lagged: Float[Tensor, "n d"],
    tokens: Int[Tensor, " n"],
    temperature: float,
    entropy: bool,
) -> Float[Tensor, "2 n"]:
    """Log-probability of each token within the mask, and the entropy (nats) there, or 0 unless asked for."""
    with torch.no_grad():
        allowed = policy.allowed(lagged, temperature).scatter(1, tokens.unsqueeze(1), True)
    own = policy.distributions(states, temperature)
    normalised = F.log_softmax(own.masked_fill(~allowed, LEAST), dim=-1)
    found = normalised.gather(1, tokens.unsqueeze(1)).squeeze(1)
    spread = -(normalised.exp() * normalised).sum(-1) if entropy else torch.zeros_like(found)
    return torch.stack([found, spread])


def distribution(
    policy: VisionLanguagePolicy, states: Float[Tensor, "n d"], temperature: float
) -> Float[Tensor, "n v"]:
    """log π of every token of the vocabulary, no other policy asked."""
    head, cap = policy.network.get_output_embeddings(), softcap(policy.network)
    return token_distribution(head, states, temperature, cap, policy.banned)


def nucleus(log_probs: Float[Tensor, "n v"], top_p: float) -> Bool[Tensor, "n v"]:
    """The fewest tokens whose probabilities add up to at least `top_p`, the likeliest first (Holtzman et al. 2020)."""
    if top_p == 1:
        return torch.ones_like(log_probs, dtype=torch.bool)
    probabilities, order = log_probs.exp().sort(dim=-1, descending=True, stable=True)
    before = probabilities.cumsum(-1) - probabilities
    return torch.zeros_like(log_probs, dtype=torch.bool).scatter(1, order, before < top_p)
