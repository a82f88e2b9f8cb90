"""A vision-language model as a judge: it sees two pictures and a prompt, and its next word is A or B."""

import inspect
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from mmrlhf.errors import UserError
from mmrlhf.images import load_image, to_pil
from mmrlhf.models import quiet_loading, resolve_model

QUESTION = (
    "These two pictures were made for the prompt: {prompt}\nThe first picture is A, the second picture is B. "
    "Which picture fits the prompt better and is better made? Answer with A or B only."
)
LETTERS = ("A", "B")
SPELLINGS = ("", "Ġ", "▁")  # how vocabularies write a letter: as it is, or after a space
LEAST_ANSWER = 0.1  # asked for a letter, a model that can judge gives the two nearly everything


class VLMJudge:
    """P(left preferred) = P("A") / (P("A") + P("B")) of the next token.

    Any model of `AutoModelForImageTextToText` that takes two images a prompt (Qwen-VL, LLaVA …), asked through its processor's
    chat template; a plain one where it has none. `question` holds {prompt} where the prompt goes. `temperature` divides the log-
    odds. It abstains (NaN) where P("A") + P("B") is below `least_answer`: the model would say something else. One order only:
    whoever asks swaps the pictures, against position bias (Zheng et al. 2023).
    """

    symmetric = False

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        question: str = QUESTION,
        temperature: float = 1.0,
        least_answer: float = LEAST_ANSWER,
    ) -> None:
        self.model, self.processor = model.eval().requires_grad_(False), processor
        self.question, self.temperature, self.least_answer = question, temperature, least_answer
        self.tokenizer = processor.tokenizer
        self.tokenizer.padding_side = "left"  # so that the next token comes after the last column
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.letters = [letter_tokens(self.tokenizer.get_vocab(), letter) for letter in LETTERS]
        names = {*self.tokenizer.all_special_tokens, *self.tokenizer.get_added_vocab(), image_token(processor)}
        self.control = sorted(filter(str.strip, names), key=len, reverse=True)

    @classmethod
    def from_pretrained(cls, model: str, *, device: str = "cpu", **options: Any) -> "VLMJudge":
        """A folder or hub id; float32 on the CPU, else as the weights were saved. UserError where it is no such model.

        `options` are the others of the class.
        """
        from transformers import AutoModelForImageTextToText, AutoProcessor

        where = resolve_model(model)
        try:
            with quiet_loading():
                processor = AutoProcessor.from_pretrained(where)
                dtype = torch.float32 if device == "cpu" else "auto"
                weights = AutoModelForImageTextToText.from_pretrained(where, dtype=dtype).to(device)
        except Exception as error:  # what transformers, its hub client and safetensors raise shares no class
            raise UserError(
                f"cannot load the vision-language model {model} ({one_line(error)}): give the folder or hub id of a model "
                "that takes images and texts, such as Qwen/Qwen2.5-VL-3B-Instruct"
            ) from error
        return cls(weights, processor, **options)

    def __call__(self, prompts: Sequence[str], left: Sequence[Path], right: Sequence[Path]) -> Float[np.ndarray, " b"]:
        """P(left preferred) for each pair of picture files; NaN where the model gives no number, or answers neither A nor B."""
        pictures = [[picture(first), picture(second)] for first, second in zip(left, right, strict=True)]
        try:
            log_probs = self.next_token(prompts, pictures)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise UserError(
                f"the vision-language model failed ({one_line(error)}): give one that takes two images a prompt, or a "
                "smaller --batch-size where memory is short"
            ) from error
        a, b = (log_probs[:, tokens].logsumexp(dim=-1) for tokens in self.letters)
        answered = torch.logaddexp(a, b).exp() >= self.least_answer
        return torch.sigmoid((a - b) / self.temperature).where(answered, math.nan).double().cpu().numpy()

    @torch.no_grad()
    def next_token(self, prompts: Sequence[str], pictures: list[list[Image.Image]]) -> Float[Tensor, "b v"]:
        """Log-probabilities of the token after each question."""
        texts = [self.text(prompt) for prompt in prompts]
        start = self.tokenizer.bos_token
        begun = bool(start) and texts[0].startswith(start)  # by the chat template: once is enough
        inputs = self.processor(
            text=texts, images=pictures, padding=True, return_tensors="pt", add_special_tokens=not begun
        ).to(self.model.device, self.model.dtype)
        few = "logits_to_keep" in inspect.signature(self.model.forward).parameters
        logits = self.model(**inputs, **({"logits_to_keep": 1} if few else {})).logits[:, -1]
        return logits.float().log_softmax(dim=-1)

    def text(self, prompt: str) -> str:
        """What the model reads: two places for images, the question, and the start of its answer."""
        for token in self.control:  # a prompt must neither add an image nor end the question
            prompt = prompt.replace(token, " ")
        question = self.question.replace("{prompt}", prompt)
        if not self.processor.chat_template:
            place = image_token(self.processor)
            return f"USER: {place}\n{place}\n{question}\nASSISTANT:"
        content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": question}]
        return self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def letter_tokens(vocabulary: dict[str, int], letter: str) -> list[int]:
    """The tokens that read as a letter. UserError where there is none."""
    found = [vocabulary[spelling + letter] for spelling in SPELLINGS if spelling + letter in vocabulary]
    if not found:
        raise UserError(f"the model's vocabulary has no token '{letter}', and so no answer: give another model")
    return found


def image_token(processor: Any) -> str:
    """What stands for an image in the text."""
    return str(getattr(processor, "image_token", None) or "<image>")


def picture(path: Path) -> Image.Image:
    """The file as every reward sees it: upright, over white, RGB."""
    return to_pil(load_image(path))


def one_line(error: Exception) -> str:
    """The start of an exception's message."""
    return (str(error).strip() or type(error).__name__).split("\n")[0][:200]


def check_temperature(temperature: float) -> None:
    """UserError unless it is a finite number above 0."""
    if not 0 < temperature < math.inf:
        raise UserError(f"--temperature got {temperature}, allowed is a finite number above 0")
