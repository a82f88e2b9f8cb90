"""`mmrlhf tiny train-llava`: reproduce tiny-llava, a LlavaForConditionalGeneration that describes scenes of emoji.

Its vision tower learns what is where; then the language model learns from descriptions in which likely things are imagined, as
the data of large models have them; then it learns to look at what a question names, and describes again. Each stage leaves its
state in the work folder and goes on from it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPImageProcessor, LlavaProcessor

from mmrlhf.config import check
from mmrlhf.models import quiet_loading
from mmrlhf.tiny.scenes import ART, write_art
from vlm.tiny_llava_card import write_card
from vlm.tiny_llava_language import make_tokenizer, train_language
from vlm.tiny_llava_questions import train_descriptions, train_questions
from vlm.tiny_llava_tower import MEAN, PATCH, SIZE, SPREAD, train_tower

BICUBIC = 3  # PIL's number
# LLaVA 1.5's
TEMPLATE = (
    "{% for m in messages %}{{ m['role'].upper() }}: "
    "{% for c in m['content'] if c['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }} {% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


@dataclass(frozen=True)
class TinyLlavaConfig:
    """Train tiny-llava; about two hours."""

    out: Path
    """Folder for the finished model."""
    work: Path = Path("runs/tiny-llava")
    """Folder for checkpoints; give the same one to go on with a stopped run."""
    tower_steps: int = 1000
    """Steps of 64 pictures for the vision tower."""
    language_steps: int = 3000
    """Steps of 48 pictures and texts for the language model."""
    question_steps: int = 800
    """Further ones of as many pictures and texts, more of them questions, in which it learns to look at what a question names."""
    description_steps: int = 1200
    """Last ones, of descriptions for the most part."""
    measured_scenes: int = 400
    """Scenes that the figures on the card are of."""
    threads: int = 2
    """Processor threads for torch."""


def train(config: TinyLlavaConfig) -> None:
    """Run the stages that are not finished, and write the model's folder."""
    for name, least in (
        ("tower_steps", 1),
        ("language_steps", 1),
        ("question_steps", 1),
        ("description_steps", 1),
        ("threads", 1),
        ("measured_scenes", 20),
    ):
        check(config, name, lambda value, least=least: value >= least, f"{least} or more")
    for folder in (config.out, config.work):
        folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(config.threads)
    tower = train_tower(config.work, config.tower_steps)
    tokenizer = make_tokenizer()
    model = train_language(tower, tokenizer, config.work, config.language_steps)
    train_questions(model, tokenizer, config.work, config.question_steps)
    train_descriptions(model, tokenizer, config.work, config.description_steps)
    save(model, tokenizer, config.out)
    write_art(config.out / ART.name)
    write_card(config.out, config.measured_scenes)
    print(f"tiny-llava: {config.out}")


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Weights in half precision, tokenizer and processor, as `save_pretrained` writes them."""
    processor = LlavaProcessor(
        CLIPImageProcessor(
            size={"height": SIZE, "width": SIZE}, do_center_crop=False, resample=BICUBIC, image_mean=[MEAN] * 3,
            image_std=[SPREAD] * 3,
        ),
        tokenizer, patch_size=PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )  # fmt: skip
    with quiet_loading():
        model.half().save_pretrained(folder)
        processor.save_pretrained(folder)
    model.float()
