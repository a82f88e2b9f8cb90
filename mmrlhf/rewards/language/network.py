"""A language or vision-language model of `transformers` under a linear head: tokens and pixels in, a score a criterion out."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    AutoProcessor,
    AutoTokenizer,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from mmrlhf.errors import UserError
from mmrlhf.models import quiet_loading, resolve_model
from mmrlhf.precision import fast_autocast

HEAD = "head.safetensors"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CLASSIFIER = "ForSequenceClassification"


class Loaded(NamedTuple):
    """A network, its tokenizer or processor, and whether its head came from the folder."""

    network: "ScoreNetwork"
    processor: Any
    has_head: bool


class ScoreNetwork(nn.Module):
    """`features` are what enters the head: of a causal model the last layer at the last token, of an encoder its pooled output.

    A model of AutoModelForSequenceClassification keeps its own formula, for its last linear layer is taken out of it to be the
    head: the score is the one that plain `transformers` gives. The head computes in float32 whatever the backbone does.
    """

    def __init__(self, backbone: Any, head: nn.Linear, *, sees_images: bool, head_name: str = "") -> None:
        super().__init__()
        self.backbone, self.head = backbone, head.float()
        self.sees_images, self.head_name = sees_images, head_name

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    def features(self, inputs: Mapping[str, Tensor], *, bf16: bool = False) -> Float[Tensor, "b d"]:
        """What the head reads; rows are padded on the right. `bf16`: mixed precision where the device computes in bfloat16."""
        dtype = next(self.backbone.parameters()).dtype
        moved = {
            name: value.to(self.device, dtype if value.is_floating_point() else None) for name, value in inputs.items()
        }
        with fast_autocast(self.device.type) if bf16 else contextlib.nullcontext():
            if not self.sees_images:
                return self.backbone(**moved).logits.float()
            hidden = self.backbone.base_model(**moved, use_cache=False).last_hidden_state
        mask = moved["attention_mask"]
        last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(dim=1)
        return hidden[torch.arange(len(hidden), device=hidden.device), last].float()

    def forward(self, inputs: Mapping[str, Tensor], *, bf16: bool = False) -> Float[Tensor, "b k"]:
        """A score a row and criterion."""
        return self.head(self.features(inputs, bf16=bf16))

    def __getstate__(self) -> dict[str, Any]:
        """Without the hooks by which `transformers` captures hidden states, which cannot be pickled: it puts them back itself."""
        for module in self.modules():
            module.__dict__.pop("_output_capturing_hooks_installed", None)
            for key in [
                key
                for key, hook in module._forward_hooks.items()
                if "output_capturing" in getattr(hook, "__qualname__", "")
            ]:
                del module._forward_hooks[key]
        return self.__dict__.copy()

    def save(self, folder: Path, criteria: Sequence[str]) -> None:
        """Write the model in the format of `transformers`; the head is in it, or, under a vision-language model, beside it."""
        with quiet_loading():
            if self.sees_images:
                self.backbone.save_pretrained(folder)
                save_file({"weight": self.head.weight.detach().cpu().contiguous()}, folder / HEAD)
                return
            config = self.backbone.config
            config.num_labels = len(criteria)
            config.id2label = {i: name or "score" for i, name in enumerate(criteria)}
            config.label2id = {name: i for i, name in config.id2label.items()}
            self.backbone.set_submodule(self.head_name, self.head)
            try:
                self.backbone.save_pretrained(folder)
            finally:
                self.backbone.set_submodule(self.head_name, nn.Identity())


def load_network(model: str | Path, *, dtype: str = "float32", rows: int | None = None, seed: int = 0) -> Loaded:
    """The network in a folder or at a hub id; a head that is not there is made from `seed`.

    `rows`: how many the head must have, and that it must be there (a reward that was saved). UserError where the folder holds
    no language model, a broken one, or a classifier of several labels.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype got '{dtype}', allowed are {', '.join(DTYPES)}")
    where = resolve_model(str(model))
    try:
        config = AutoConfig.from_pretrained(where)
        if sees_images(config, model):
            return load_vision_language(where, DTYPES[dtype], rows, seed)
        return load_text(where, config, DTYPES[dtype], rows, seed)
    except Exception as error:  # what transformers, its hub client and safetensors raise shares no class
        if isinstance(error, UserError):
            raise
        reason = str(error).strip().split("\n")[0][:200]
        raise UserError(
            f"cannot load the language model {model} ({reason}): give a folder with its config, weights and tokenizer, or a "
            "hub id that can be reached"
        ) from error


def sees_images(config: Any, model: str | Path) -> bool:
    """Whether it is a vision-language model; UserError where it is no language model at all."""
    if config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES and not is_classifier(config):
        return True
    if config.model_type not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        raise UserError(
            f"model {model} is a {config.model_type}, allowed is a language model (of AutoModelForSequenceClassification) or a "
            "vision-language model (of AutoModelForImageTextToText)"
        )
    return False


def is_classifier(config: Any) -> bool:
    return any(name.endswith(CLASSIFIER) for name in config.architectures or ())


def load_text(where: str, config: Any, dtype: torch.dtype, rows: int | None, seed: int) -> Loaded:
    """A model of AutoModelForSequenceClassification; one without head, such as a causal language model, gets a fresh one."""
    labels = config.num_labels if is_classifier(config) else 1
    if labels != (rows or 1):
        raise UserError(
            f"model {where} is a classifier of {labels} labels, allowed is {rows or 1}: give a reward model, or a model without "
            "head"
        )
    tokenizer = AutoTokenizer.from_pretrained(where)
    with seeded_loading(seed):
        backbone, found = AutoModelForSequenceClassification.from_pretrained(
            where, num_labels=labels, dtype=dtype, output_loading_info=True
        )
    name = head_name(backbone)
    head = backbone.get_submodule(name)
    fresh = f"{name}.weight" in found["missing_keys"]
    inner = f"{backbone.base_model_prefix}."
    lost = [
        key for key in sorted(found["missing_keys"]) if not fresh or (key.startswith(inner) and "pooler" not in key)
    ]
    check_whole(where, lost, fresh and rows is not None)
    backbone.set_submodule(name, nn.Identity())
    backbone.config.get_text_config().pad_token_id = padding_of(tokenizer, where)
    network = ScoreNetwork(
        backbone, fresh_head(head.in_features, 1, seed, bias=head.bias is not None) if fresh else head,
        sees_images=False, head_name=name,
    )  # fmt: skip
    return Loaded(network.eval().requires_grad_(False), tokenizer, not fresh)


def load_vision_language(where: str, dtype: torch.dtype, rows: int | None, seed: int) -> Loaded:
    """A model of AutoModelForImageTextToText, under the head saved beside it or a fresh one."""
    processor = AutoProcessor.from_pretrained(where)
    padding_of(processor.tokenizer, where)
    with seeded_loading(seed):
        backbone, found = AutoModelForImageTextToText.from_pretrained(where, dtype=dtype, output_loading_info=True)
    check_whole(where, sorted(found["missing_keys"]), False)
    head = fresh_head(backbone.config.get_text_config().hidden_size, rows or 1, seed)
    if rows is not None:
        head.load_state_dict(load_file(Path(where) / HEAD))
    network = ScoreNetwork(backbone, head, sees_images=True)
    return Loaded(network.eval().requires_grad_(False), processor, rows is not None)


@contextlib.contextmanager
def seeded_loading(seed: int) -> Iterator[None]:
    """Inside, what `transformers` makes afresh follows from `seed`, and it reports only errors."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    with torch.random.fork_rng(devices=[]), quiet_loading():
        torch.manual_seed(seed)
        logging.set_verbosity_error()
        try:
            yield
        finally:
            logging.set_verbosity(level)


def check_whole(where: str, lost: Sequence[str], lost_head: bool) -> None:
    if lost or lost_head:
        raise UserError(
            f"the weights in {where} are not whole ({lost[0] if lost else 'the head'} is missing): restore them"
        )


def head_name(backbone: Any) -> str:
    """The last linear layer that gives a number a label: `score`, `classifier`, `classifier.out_proj` …"""
    inner = f"{backbone.base_model_prefix}."
    names = [
        name for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == backbone.config.num_labels and not name.startswith(inner)
    ]  # fmt: skip
    if not names:
        raise UserError(f"{type(backbone).__name__} has no linear head outside its backbone: give another model")
    return names[-1]


def fresh_head(width: int, rows: int, seed: int, *, bias: bool = False) -> nn.Linear:
    """Weights N(0, 1/width), bias 0.

    A last layer is normalised, so features are about √width long: scores then differ by up to 1 and the gradient is of the
    size of the features. (N(0, 1/(width+1)²), as ImageReward has it, makes scores all but equal.)
    """
    head = nn.utils.skip_init(nn.Linear, width, rows, bias=bias)
    with torch.no_grad():
        head.weight.normal_(0, width**-0.5, generator=torch.Generator().manual_seed(seed))
        if bias:
            head.bias.zero_()
    return head


def with_rows(head: nn.Linear, count: int, seed: int) -> nn.Linear:
    """The head with fresh rows after its own."""
    grown = fresh_head(head.in_features, count, seed, bias=head.bias is not None).to(head.weight.device)
    with torch.no_grad():
        grown.weight[: head.out_features] = head.weight
        if head.bias is not None:
            grown.bias[: head.out_features] = head.bias
    return grown.requires_grad_(False)


def padding_of(tokenizer: Any, where: str) -> int:
    """The token that rows are padded with, which is the end of text where a tokenizer has none."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise UserError(f"the tokenizer in {where} has no padding token and no end of text: set its pad_token")
    return tokenizer.pad_token_id
