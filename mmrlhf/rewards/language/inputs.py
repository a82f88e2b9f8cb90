"""Prompts, answers and pictures as the tokens and pixels that a model reads; nothing is cut off unasked."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from mmrlhf.errors import UserError
from mmrlhf.images import load_image, readable, to_pil

CHAT, PAIR, PLAIN = "chat", "pair", "{prompt}\n\n{answer}"
TOO_LONG = ("refuse", "truncate", "drop")
TooLong = Literal["refuse", "truncate", "drop"]
UNLIMITED = 10**7  # tokenizers that know no limit say 10^30
ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)  # EXIF: a viewer swaps width and height


class Row(NamedTuple):
    """What is scored: an answer to a prompt (None: the prompt itself), about an image where there is one."""

    prompt: str
    answer: str | None = None
    image: Path | Float[Tensor, "3 h w"] | None = None


class Reader:
    """Rows in, a batch padded on the right out.

    `template` is "chat" (that of the tokenizer or processor), "pair" (prompt and answer as an encoder's two texts), or a text
    with {prompt} and {answer} in it, and maybe the model's mark of an image (<image>), which else stands in front. A row of more
    than `max_length` tokens, its image's included, is refused, loses the start of its prompt ("truncate": never any of its
    answer) or is left out ("drop").
    """

    def __init__(self, processor: Any, *, template: str, max_length: int, too_long: str = "refuse") -> None:
        self.processor, self.template, self.max_length, self.too_long = processor, template, max_length, too_long
        self.image_lengths: dict[tuple[int, int], int] = {}

    @classmethod
    def make(
        cls, processor: Any, config: Any, *, template: str | None = None, max_length: int | None = None,
        too_long: str = "refuse",
    ) -> "Reader":  # fmt: skip
        """With the model's own template and length for what is None. UserError for a value that is not allowed."""
        if too_long not in TOO_LONG:
            raise UserError(f"--too-long got '{too_long}', allowed are {', '.join(TOO_LONG)}")
        limits = [getattr(tokenizer_of(processor), "model_max_length", None),
                  getattr(config.get_text_config(), "max_position_embeddings", None)]  # fmt: skip
        limit = min([int(n) for n in limits if n and n < UNLIMITED], default=UNLIMITED)
        if max_length is not None and not 1 <= max_length <= limit:
            raise UserError(f"--max-length got {max_length}, allowed is 1 to the {limit} tokens that the model reads")
        template = default_template(processor) if template is None else template
        check_template(template, processor)
        return cls(processor, template=template, max_length=max_length or limit, too_long=too_long)

    @property
    def sees_images(self) -> bool:
        return hasattr(self.processor, "image_processor")

    def encode(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Tokens, mask and pixels of rows that fit (see `fitted`)."""
        padded: dict[str, Any] = {"padding": True, "padding_side": "right", "return_tensors": "pt"}
        if not self.sees_images:
            return dict(self.tokens(rows, **padded))
        texts = [self.text(row) for row in rows]
        return self.process(texts, [picture(row.image) for row in rows if row.image is not None], **padded)

    def fitted(self, rows: Sequence[Row]) -> tuple[list[Row], list[int]]:
        """(rows that fit, their numbers): what is too long is refused, cut or left out."""
        lengths = self.lengths(rows)
        over = [n > self.max_length for n in lengths]
        if any(over) and self.too_long == "refuse":
            raise UserError(
                f"{sum(over)} of {len(rows)} texts are longer than the {self.max_length} tokens that are read (the longest has "
                f"{max(lengths)}): shorten them, or give --too-long truncate (prompts lose their start) or drop"
            )
        if self.too_long == "drop":
            kept = [number for number, long in enumerate(over) if not long]
            return [rows[number] for number in kept], kept
        short = [self.shortened(row) if long else row for row, long in zip(rows, over, strict=True)]
        return short, list(range(len(rows)))

    def lengths(self, rows: Sequence[Row]) -> list[int]:
        """How many tokens each row has, with those of its image."""
        counted = self.tokens(rows)["input_ids"] if rows else []
        return [
            len(ids) + (0 if row.image is None else self.image_length(size_of(row.image)))
            for ids, row in zip(counted, rows, strict=True)
        ]

    def image_length(self, size: tuple[int, int]) -> int:
        """How many tokens an image of (height, width) adds to its placeholder."""
        if size not in self.image_lengths:
            mark = self.processor.image_token
            seen = self.process([mark], [Image.new("RGB", (size[1], size[0]))], return_tensors="pt")
            self.image_lengths[size] = seen["input_ids"].shape[1] - len(tokenizer_of(self.processor)(mark).input_ids)
        return self.image_lengths[size]

    def shortened(self, row: Row) -> Row:
        """The row with the end of its prompt, as much as fits beside the answer. UserError where the answer does not fit."""
        tokenizer = tokenizer_of(self.processor)
        ids = tokenizer(row.prompt, add_special_tokens=False).input_ids
        cut = 0
        while (over := self.lengths([row])[0] - self.max_length) > 0:
            if cut == len(ids):
                raise UserError(
                    f"the answer {row.answer!r:.60} has {over} tokens more than the {self.max_length} that are read, even "
                    "without its prompt: shorten it, or give --too-long drop"
                )
            cut = min(cut + over, len(ids))
            row = row._replace(prompt=tokenizer.decode(ids[cut:]))
        return row

    def tokens(self, rows: Sequence[Row], **settings: Any) -> Any:
        """What the tokenizer gives; an image is one placeholder."""
        tokenizer = tokenizer_of(self.processor)
        if self.template == PAIR:
            answers = [row.answer for row in rows if row.answer is not None]
            return tokenizer([row.prompt for row in rows], answers or None, **settings)
        texts = [self.text(row) for row in rows]
        # not verbose: of what is too long the callers tell by themselves
        return tokenizer(texts, add_special_tokens=self.adds_special(texts), verbose=False, **settings)

    def process(self, texts: list[str], pictures: list[Image.Image], **settings: Any) -> dict[str, Tensor]:
        """What the processor gives. UserError where it cannot read a picture."""
        try:
            return dict(
                self.processor(
                    text=texts, images=pictures or None, add_special_tokens=self.adds_special(texts), **settings
                )
            )
        except ValueError as error:
            sizes = ", ".join(sorted({f"{p.width}×{p.height}" for p in pictures}))
            reason = str(error).strip().split("\n")[0][:200]
            raise UserError(
                f"the model's processor refuses pictures of {sizes} ({reason}): resize or leave out"
            ) from error

    def adds_special(self, texts: Sequence[str]) -> bool:
        """Whether the tokenizer should put its own marks around: not where a chat template has done so."""
        if self.template != CHAT:
            return True
        begin = tokenizer_of(self.processor).bos_token
        return self.sees_images and not (begin and texts[0].startswith(begin))

    def text(self, row: Row) -> str:
        """The row as one text, with a placeholder for its image. UserError for a placeholder without an image."""
        row = self.without_mark(row)
        if self.template != CHAT:
            words = {"{prompt}": row.prompt, "{answer}": row.answer or ""}
            filled = re.sub(r"\{prompt\}|\{answer\}", lambda found: words[found[0]], self.template)
            filled = filled if row.answer is not None else filled.rstrip()
            return self.with_mark(filled, row.image is not None)
        messages: list[dict[str, Any]] = [{"role": "user", "content": row.prompt}]
        messages += [] if row.answer is None else [{"role": "assistant", "content": row.answer}]
        if self.sees_images:
            for message in messages:
                message["content"] = [{"type": "text", "text": message["content"]}]
            messages[0]["content"][:0] = [] if row.image is None else [{"type": "image"}]
        return self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=row.answer is None)

    def with_mark(self, text: str, has_image: bool) -> str:
        """What a template of one's own made, with a placeholder for the image: where the template has it, else in front."""
        mark = self.processor.image_token if self.sees_images or has_image else ""
        if mark and mark in self.template:
            return text if has_image else text.replace(mark, "").lstrip()
        return f"{mark}\n{text}" if has_image else text

    def without_mark(self, row: Row) -> Row:
        """Data sets often write the placeholder into the prompt; ours stands where the template wants it."""
        mark = self.processor.image_token if self.sees_images else None
        if mark is None or mark not in row.prompt + (row.answer or ""):
            return row
        if row.image is None:
            raise UserError(
                f"the text {row.prompt!r:.60} holds {mark} but has no image: give the image, or remove {mark}"
            )
        answer = None if row.answer is None else row.answer.replace(mark, "")
        return row._replace(prompt=row.prompt.replace(mark, "").strip(), answer=answer)


def tokenizer_of(processor: Any) -> Any:
    return getattr(processor, "tokenizer", processor)


def default_template(processor: Any) -> str:
    """The chat template where there is one, an encoder's pair of texts, else prompt and answer with a line between."""
    if getattr(processor, "chat_template", None):
        return CHAT
    is_encoder = not hasattr(processor, "image_processor") and processor.sep_token and processor.cls_token
    return PAIR if is_encoder else PLAIN


def check_template(template: str, processor: Any) -> None:
    if template == CHAT and not getattr(processor, "chat_template", None):
        raise UserError("--template got 'chat', but the model has no chat template: leave --template out")
    if template == PAIR and hasattr(processor, "image_processor"):
        raise UserError("--template got 'pair', which is for encoders of two texts: leave --template out")
    if template not in (CHAT, PAIR) and not {"{prompt}", "{answer}"} <= set(re.findall(r"\{\w+\}", template)):
        raise UserError(
            f"--template got {template!r}, allowed is chat, pair, or a text with {{prompt}} and {{answer}} in it"
        )


def picture(image: Path | Float[Tensor, "3 h w"]) -> Image.Image:
    """An 8-bit picture, which every processor takes."""
    return to_pil(load_image(image) if isinstance(image, Path) else image)


def size_of(image: Path | Float[Tensor, "3 h w"]) -> tuple[int, int]:
    """(height, width); of a file from its header alone."""
    if isinstance(image, torch.Tensor):
        return int(image.shape[1]), int(image.shape[2])
    with readable(str(image)), Image.open(image) as file:
        width, height = file.size
        return (width, height) if file.getexif().get(ORIENTATION) in SIDEWAYS else (height, width)
