"""A vision-language model as a policy: it answers questions about pictures, every token an action with a log-probability."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mmrlhf.errors import UserError
from mmrlhf.models import pick_device, quiet_loading
from mmrlhf.rewards.language.inputs import Reader, Row
from mmrlhf.rewards.language.tuning import checkpoint_gradients
from vlm.encoding import Encoded, Tokens, answer_tokens, at_answers, encode, encode_prompts, moved, repeated
from vlm.loading import add_lora, load_adapter, load_model, save_adapter, save_model, trained_template
from vlm.shared_prompts import can_share, read_once, shared_states

LOGITS_AT_ONCE = 2**24
"""Entries of the table of logits (tokens × vocabulary) that are held at a time: 64 MB."""


LEAST = -1e9
"""The logit of a token that cannot be."""


class Answers(NamedTuple):
    """What a policy said to some rows: tokens with the mark that ends them (none where they were cut), and the text."""

    tokens: list[tuple[int, ...]]
    texts: list[str]
    ended: list[bool]


class Scored(NamedTuple):
    """Of each token of an answer its log-probability, the entropy of its distribution (nats), and the state it was drawn from.

    0 where there is none.
    """

    log_probs: Float[Tensor, "b t"]
    entropies: Float[Tensor, "b t"]
    states: Float[Tensor, "b t d"]


class VisionLanguagePolicy:
    """`generate` answers, `log_probs` says how likely answers are, `reference` is the model as it was at the start.

    `load` makes one. `model` is one of AutoModelForImageTextToText, or a PeftModel around it.
    """

    def __init__(self, model: Any, reader: Reader, *, full: bool = False, gradient_checkpointing: bool = False) -> None:
        self.model, self.reader = model.eval(), reader
        self.network = model.get_base_model() if hasattr(model, "peft_config") else model
        self.checkpointing = gradient_checkpointing
        self.tokenizer = getattr(reader.processor, "tokenizer", reader.processor)
        self.ends = end_tokens(self.network, self.tokenizer)
        self.banned = picture_tokens(self.network.config)
        # Without an adapter to switch off, the start has to be remembered: the one case with a second copy of the weights.
        self.start = [weight.detach().clone() for weight in self.parameters()] if full else []

    @classmethod
    def load(
        cls,
        model: str,
        *,
        lora_rank: int | None = None,
        lora_alpha: float | None = None,
        adapter: Path | None = None,
        adapter_scale: float = 1.0,
        device: str = "auto",
        dtype: str = "float32",
        gradient_checkpointing: bool = False,
        max_length: int | None = None,
        template: str | None = None,
        seed: int = 0,
    ) -> "VisionLanguagePolicy":
        """A policy from a folder, a hub id or a tiny name.

        `lora_rank` n trains a fresh LoRA of the language model, 0 all its weights and the projector's, None nothing (to answer
        only). `adapter` is a folder of trained LoRA weights: to answer with, or, with `lora_rank`, merged into the start;
        `adapter_scale` is how much of them (see `vlm.loading.load_adapter`). `template` None is that of the run which trained the
        weights, where it had one, else the model's own.
        """
        network, processor = load_model(model, dtype, pick_device(device))
        template = trained_template(adapter or Path(model).parent) if template is None else template
        reader = Reader.make(processor, network.config, template=template, max_length=max_length)
        whole = network
        if adapter is not None:
            whole = load_adapter(network, adapter, merge=lora_rank is not None, scale=adapter_scale)
        if lora_rank == 0 and dtype != "float32":
            raise UserError(
                f"dtype got '{dtype}' with lora_rank 0, allowed is float32: small updates vanish in 16 bits"
            )
        if lora_rank:
            whole = add_lora(whole, lora_rank, lora_alpha, seed)
        elif lora_rank == 0:
            for name, weight in whole.named_parameters():
                weight.requires_grad_("vision_tower" not in name and "visual" not in name)
        return cls(whole, reader, full=lora_rank == 0, gradient_checkpointing=gradient_checkpointing)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.network.parameters()).device

    @property
    def width(self) -> int:
        """How long the states are."""
        return self.network.config.get_text_config().hidden_size

    def parameters(self) -> list[nn.Parameter]:
        """What training changes."""
        return [weight for weight in self.model.parameters() if weight.requires_grad]

    def tokens(self, row: Row) -> Tokens:
        """An answer's tokens, the mark that ends it included; see `vlm.encoding.answer_tokens`."""
        return answer_tokens(self.reader, row, self.ends)

    def encode(
        self, rows: Sequence[Row], answers: Sequence[Sequence[int]] | None = None, *, share: bool = False
    ) -> Encoded:
        """A batch of rows with their own answers, or with those tokens.

        With `share` each prompt is read once, where the model can and no block is to be recomputed in the backward pass.
        """
        answers = [self.tokens(row).ids for row in rows] if answers is None else answers
        share = share and not self.checkpointing and can_share(self.network)
        encoded = encode(self.reader, rows, answers, self.tokenizer.pad_token_id, share=share)
        return encoded.to(self.device, self.network.dtype)

    def score(self, batch: Encoded, *, temperature: float = 1.0, entropy: bool = False) -> Scored:
        """Log-probabilities of a batch's answers, at a temperature; the whole table of logits is never held.

        Entropies are 0 unless asked for.
        """
        states = self.states(batch)
        kept = states[batch.mask]
        head, cap = self.network.get_output_embeddings(), softcap(self.network)
        parts = []
        size = max(1, LOGITS_AT_ONCE // head.weight.shape[0])
        for own, tokens in zip(kept.split(size), batch.answers[batch.mask].split(size), strict=True):
            given = (head, own, tokens, temperature, cap, self.banned, entropy)
            again = len(kept) > size and torch.is_grad_enabled() and own.requires_grad
            parts.append(checkpoint(token_log_probs, *given, use_reentrant=False) if again else token_log_probs(*given))
        found = torch.zeros(2, *batch.mask.shape, device=states.device)
        where = batch.mask.unsqueeze(0).expand_as(found)
        found = found.masked_scatter(where, torch.cat(parts, dim=1)) if parts else found
        return Scored(found[0], found[1], states)

    def states(self, batch: Encoded) -> Float[Tensor, "b t d"]:
        """The last layer's state from which each token of the answers is drawn; 0 where there is none."""
        if batch.prompts is not None:
            return shared_states(self.network, batch) * batch.mask.unsqueeze(-1)
        with self.recomputing():
            hidden = self.network.base_model(**batch.inputs, use_cache=False).last_hidden_state
        return at_answers(hidden, batch.starts - 1, batch.mask)

    def log_probs(self, batch: Encoded, *, temperature: float = 1.0) -> Float[Tensor, "b t"]:
        """log π of each token of a batch's answers; 0 where there is none."""
        return self.score(batch, temperature=temperature).log_probs

    def distributions(
        self, states: Float[Tensor, "n d"], temperature: float, head: nn.Module | None = None
    ) -> Float[Tensor, "n v"]:
        """log π of every token of the vocabulary at some states, by the policy's last layer or the one given; in float32."""
        head = head or self.network.get_output_embeddings()
        return token_distribution(head, states, temperature, softcap(self.network), self.banned)

    @torch.no_grad()
    def generate(
        self,
        rows: Sequence[Row],
        *,
        seed: int,
        max_new_tokens: int = 256,
        temperature: float = 1.0,
        top_p: float = 1.0,
        **how: Any,
    ) -> Answers:
        """An answer a row (its own is not read), drawn at a temperature; 0 takes the likeliest token each time.

        The same rows and seed give the same answers, and a prompt of several rows is read once.
        `how` goes to `generate` of `transformers`.
        """
        numbers = repeated([(row.prompt, row.image) for row in rows])
        share = len(set(numbers)) < len(rows) and can_share(self.network)
        asked = [rows[numbers.index(n)] for n in range(max(numbers) + 1)] if share else rows
        prompts = moved(encode_prompts(self.reader, asked, "left"), self.device, self.network.dtype)
        drawn: dict[str, Any] = {"do_sample": False}
        if temperature:
            drawn = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), quiet_generation(self.network), merged(self.model):
            if share:
                prompts = read_once(self.network, prompts, torch.tensor(numbers, device=self.device))
            torch.manual_seed(seed)
            whole = self.network.generate(
                **prompts, **drawn, **how, max_new_tokens=max_new_tokens, repetition_penalty=1.0,
                pad_token_id=self.tokenizer.pad_token_id, eos_token_id=list(self.ends), suppress_tokens=self.banned,
            )  # fmt: skip
        found = [cut(row, self.ends) for row in whole[:, prompts["input_ids"].shape[1] :].tolist()]
        texts = self.tokenizer.batch_decode([list(row) for row in found], skip_special_tokens=True)
        return Answers(found, [text.strip() for text in texts], [bool(row) and row[-1] in self.ends for row in found])

    @contextlib.contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the policy is the one that training started from."""
        if not self.start:
            with self.model.disable_adapter() if hasattr(self.model, "peft_config") else contextlib.nullcontext():
                yield
            return
        trained = [weight.data for weight in self.parameters()]
        for weight, start in zip(self.parameters(), self.start, strict=True):
            weight.data = start
        try:
            yield
        finally:
            for weight, own in zip(self.parameters(), trained, strict=True):
                weight.data = own

    @contextlib.contextmanager
    def recomputing(self) -> Iterator[None]:
        """Inside, the blocks are recomputed in the backward pass where that was asked for."""
        if not (self.checkpointing and torch.is_grad_enabled()):
            yield
            return
        end = checkpoint_gradients(self.network)
        try:
            yield
        finally:
            end()

    def state_dict(self) -> dict[str, Tensor]:
        """What training changed, for a checkpoint, and the start where it is kept."""
        names = [name for name, weight in self.model.named_parameters() if weight.requires_grad]
        state = {name: weight.detach().clone() for name, weight in zip(names, self.parameters(), strict=True)}
        return state | {f"start.{name}": weight for name, weight in zip(names, self.start, strict=False)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state_dict` gave. UserError where it is that of another model."""
        names = [name for name, weight in self.model.named_parameters() if weight.requires_grad]
        own = dict(zip(names, self.parameters(), strict=True))
        own |= {f"start.{name}": weight for name, weight in zip(names, self.start, strict=False)}
        if own.keys() != state.keys() or any(own[name].shape != value.shape for name, value in state.items()):
            raise UserError("the checkpoint is that of another model: give the model and --lora-rank of that run")
        with torch.no_grad():
            for name, value in state.items():
                own[name].copy_(value)

    def save(self, out: Path) -> Path:
        """Write the adapter for `PeftModel.from_pretrained(model, OUT)`, or, of all weights, OUT/model for `from_pretrained`."""
        if hasattr(self.model, "peft_config"):
            return save_adapter(self.model, out)
        return save_model(self.network, self.reader.processor, out / "model")


def token_log_probs(
    head: nn.Module,
    states: Float[Tensor, "n d"],
    tokens: Int[Tensor, " n"],
    temperature: float,
    cap: float | None,
    banned: list[int],
    entropy: bool,
) -> Float[Tensor, "2 n"]:
    """Log-probability of each token, and the entropy (nats) of its distribution, or 0 unless asked for; in float32."""
    normalised = token_distribution(head, states, temperature, cap, banned)
    found = normalised.gather(1, tokens.unsqueeze(1)).squeeze(1)
    spread = -(normalised.exp() * normalised).sum(-1) if entropy else torch.zeros_like(found)
    return torch.stack([found, spread])


def token_distribution(
    head: nn.Module, states: Float[Tensor, "n d"], temperature: float, cap: float | None, banned: list[int]
) -> Float[Tensor, "n v"]:
    """log π of every token of the vocabulary; in float32."""
    logits = head(states).float()
    if cap is not None:
        logits = cap * (logits / cap).tanh()
    logits = (logits / temperature).index_fill(1, torch.tensor(banned, device=logits.device, dtype=torch.long), LEAST)
    return F.log_softmax(logits, dim=-1)


def picture_tokens(config: Any) -> list[int]:
    """The tokens that stand for pictures, which no answer may hold: models would look for pictures in it."""
    names = ("image_token_id", "image_token_index", "video_token_id", "video_token_index", "vision_start_token_id")
    return sorted({token for name in names if isinstance(token := getattr(config, name, None), int) and token >= 0})


def softcap(network: Any) -> float | None:
    """The bound that some models (Gemma) put on their logits."""
    return getattr(network.config.get_text_config(), "final_logit_softcapping", None)


def end_tokens(network: Any, tokenizer: Any) -> tuple[int, ...]:
    """The tokens that end an answer, that of the tokenizer first."""
    told = getattr(network.generation_config, "eos_token_id", None)
    every = [tokenizer.eos_token_id, *(told if isinstance(told, list | tuple) else [told])]
    return tuple(dict.fromkeys(int(token) for token in every if token is not None))


def cut(tokens: Sequence[int], ends: Sequence[int]) -> tuple[int, ...]:
    """Up to and with the first token that ends an answer."""
    last = next((i for i, token in enumerate(tokens) if token in ends), len(tokens) - 1)
    return tuple(tokens[: last + 1])


@contextlib.contextmanager
def merged(model: Any) -> Iterator[None]:
    """Inside, float32 weights hold their LoRA, which saves its products at each token; then they are as before, bit for bit.

    Weights of fewer bits would lose small updates, so that theirs stay beside them.
    """
    layers = [own for own in model.modules() if hasattr(own, "lora_A") and hasattr(own, "get_delta_weight")]
    kept = [own.get_base_layer().weight for own in layers]
    if not layers or any(own.disable_adapters or own.merged for own in layers) or kept[0].dtype != torch.float32:
        yield
        return
    before = [weight.data for weight in kept]
    for own, weight in zip(layers, kept, strict=True):
        weight.data = weight.data + sum(own.get_delta_weight(name) for name in own.active_adapters)
    try:
        with model.disable_adapter():
            yield
    finally:
        for weight, data in zip(kept, before, strict=True):
            weight.data = data


@contextlib.contextmanager
def quiet_generation(network: Any) -> Iterator[None]:
    """Inside, `generate` does not tell which of its settings it does not need."""
    import transformers

    level = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    with quiet_loading():
        try:
            yield
        finally:
            transformers.utils.logging.set_verbosity(level)
