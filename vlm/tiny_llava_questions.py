"""tiny-llava's last two stages: to look, before it answers, at what a question names.

From descriptions a model learns to name what it sees, not to find what it hears named: after them it said yes to every question.
Here the words for objects begin as what is seen of these, and one head of attention is told where to look.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmrlhf.tiny.scene_text import particulars, plural, pointing
from mmrlhf.tiny.scenes import CELLS, DRAWINGS, KINDS, Scene, random_scene
from vlm.tiny_llava_language import answers_loss, training_texts
from vlm.tiny_llava_tower import PATCHES, patch_classes, patch_states, pixels, run_steps

QUESTIONS = "questions.pt"
ASKED, ASKED_AT_LAST, POINTING = 0.7, 0.2, 0.8
"""The share of texts that are questions, first and in the end, and of these the share that asks whether or where something is."""
LAYER, HEAD, LOOK = 1, 0, 0.3
"""The head that is told where to look, and what its cost weighs beside that of the answers."""


class Look(NamedTuple):
    """The place of a word in a text, and those of the patches that show what it means: the first token where none does."""

    word: int
    patches: list[int]


def train_questions(model: Any, tokenizer: Any, work: Path, steps: int) -> Any:
    """The language model and the projector go on, with more questions, and with one head of attention shown where to look."""
    if not (work / QUESTIONS).exists():
        name_by_sight(model, names_of(tokenizer), np.random.default_rng(0))
    return train_looking(model, tokenizer, work / QUESTIONS, steps, ASKED)


def train_descriptions(model: Any, tokenizer: Any, work: Path, steps: int) -> Any:
    """The same with descriptions for the most part, of which it has forgotten some."""
    return train_looking(model, tokenizer, work / "descriptions.pt", steps, ASKED_AT_LAST)


def train_looking(
    model: Any,
    tokenizer: Any,
    file: Path,
    steps: int,
    asked: float,
    *,
    batch_size: int = 48,
    learning_rate: float = 1e-3,
) -> Any:
    """Train on texts of which a share are questions, with one head of attention shown where to look in these."""
    names = names_of(tokenizer)
    picture = tokenizer.convert_tokens_to_ids("<image>")
    model.set_attn_implementation("eager")  # the one that tells its weights

    def loss_of(generator: np.random.Generator) -> tuple[Tensor, str]:
        scenes = [random_scene(generator) for _ in range(batch_size)]
        images = pixels(scenes, generator)
        texts = training_texts(scenes, tokenizer, generator, asked, ask)
        looked: list[Tensor] = []

        def watch(found: Any, half: list[int]) -> None:
            weights = found.attentions[LAYER][:, HEAD]
            for row, i in enumerate(half):
                if texts[i].asks:
                    wanted = looks(texts[i].tokens, scenes[i], names, picture)
                    looked.extend(weights[row, look.word, look.patches].sum() for look in wanted)

        loss = answers_loss(model, texts, images, tokenizer.pad_token_id, watch)
        missed = -torch.stack(looked).clamp_min(1e-6).log().mean() if looked else torch.zeros(())
        return loss + LOOK * missed, f"{float(loss.detach()):.3f}, looking {float(missed.detach()):.3f}"

    run_steps(file.stem, model, loss_of, steps, learning_rate, file)
    model.set_attn_implementation("sdpa")
    return model.eval()


def names_of(tokenizer: Any) -> dict[int, str]:
    """The last token of each word for a kind of object, and which kind it is."""
    return {
        tokenizer(f" {word}", add_special_tokens=False).input_ids[-1]: kind
        for kind in KINDS
        for word in (kind, plural(kind))
    }


def ask(scene: Scene, generator: np.random.Generator) -> tuple[str, str]:
    """A question and its answer: mostly whether something is there, and where."""
    form = generator.random()
    return (
        pointing(scene, generator) if form < POINTING else particulars(scene, generator, form < 1 - (1 - POINTING) / 2)
    )


@torch.no_grad()
def name_by_sight(model: Any, names: dict[int, str], generator: np.random.Generator, *, count: int = 1024) -> None:
    """Begin with every word for a kind of object as the mean of the patches that show it, less that of all kinds.

    So one way to look for what a word means serves all words; to find it for each took thousands of steps.
    """
    scenes = [random_scene(generator) for _ in range(count)]
    shown = patch_classes(scenes)[..., 0]
    seen = torch.stack(
        [
            model.model.multi_modal_projector(patch_states(model.model.vision_tower, images))
            for images in pixels(scenes, generator).split(64)
        ]
    )
    means = {}
    for kind in KINDS:
        drawings = [1 + number for number, drawing in enumerate(DRAWINGS) if drawing.split()[-1] == kind]
        means[kind] = seen.flatten(0, 1)[torch.isin(shown, torch.tensor(drawings))].mean(0)
    middle = torch.stack(list(means.values())).mean(0)
    words = model.get_input_embeddings().weight
    for token, kind in names.items():
        words[token] = means[kind] - middle


def looks(tokens: list[int], scene: Scene, names: dict[int, str], picture: int) -> list[Look]:
    """For each word that names a kind of object where its patches are; `names` are the last tokens of these words."""
    first, each = tokens.index(picture), PATCHES // CELLS
    corners = {
        kind: [
            thing.cell // CELLS * each * PATCHES + thing.cell % CELLS * each
            for thing in scene.things
            if thing.kind == kind
        ]
        for kind in scene.kinds
    }
    inside = [row * PATCHES + column for row in range(each) for column in range(each)]
    return [
        Look(place, [first + corner + step for corner in corners.get(names[token], []) for step in inside] or [0])
        for place, token in enumerate(tokens)
        if token in names
    ]
