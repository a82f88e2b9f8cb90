"""tiny-llava's words: the tokenizer, and the language model that learns from descriptions and short questions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlavaConfig, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from mmrlhf.tiny.scene_text import DESCRIBE, describe, question
from mmrlhf.tiny.scenes import Scene, random_scene
from vlm.tiny_llava_tower import PATCHES, pixels, run_steps

TOKENS = 1024
SPECIAL = ("<pad>", "<s>", "</s>", "<image>")
ASKED, TURNS, SHORT = 0.3, 8, 4.0
"""The share of training texts that are short questions, how many of them one after the other, and what a token of their
answers weighs beside one of a description: a picture's eight answers have a few tokens, its description has fifty."""


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
        loss = answers_loss(model, training_texts(scenes, tokenizer, generator), images, tokenizer.pad_token_id)
        return loss, f"{float(loss.detach()):.3f}"

    run_steps("language model", model, loss_of, steps, learning_rate, work / "language.pt")
    return model.eval()


class Text(NamedTuple):
    """Tokens of a conversation about a picture, and what each weighs in the loss: 0 outside the answers."""

    tokens: list[int]
    weights: list[float]
    asks: bool = False
    """Whether it is questions, not a description."""


def answered_by_likelihood(scene: Scene, generator: np.random.Generator) -> tuple[str, str]:
    """A short question and its answer, in which likely things are imagined."""
    return question(scene, generator, imagined=True)


def training_texts(
    scenes: list[Scene],
    tokenizer: Any,
    generator: np.random.Generator,
    asked_share: float = ASKED,
    ask: Callable[[Scene, np.random.Generator], tuple[str, str]] = answered_by_likelihood,
) -> list[Text]:
    """For each scene a description, or several short questions one after the other, as `ask` draws them."""
    texts = []
    for scene in scenes:
        short = generator.random() < asked_share
        if short:
            turns = [ask(scene, generator) for _ in range(TURNS)]
        else:
            turns = [(DESCRIBE, describe(scene, generator, imagined=True))]
        text = Text([tokenizer.bos_token_id], [0.0], short)
        for number, (asked, answer) in enumerate(turns):
            picture = "" if number else f"{'<image>' * PATCHES**2}\n"
            said = tokenizer(f" {answer}", add_special_tokens=False).input_ids
            head = tokenizer(f"USER: {picture}{asked} ASSISTANT:", add_special_tokens=False).input_ids
            text.tokens.extend([*head, *said, tokenizer.eos_token_id])
            text.weights.extend([0.0] * len(head) + [SHORT if short else 1.0] * (len(said) + 1))
        texts.append(text)
    return texts


def answers_loss(
    model: Any,
    texts: list[Text],
    images: Float[Tensor, "b 3 96 96"],
    padding: int,
    watch: Callable[[Any, list[int]], None] | None = None,
) -> Float[Tensor, ""]:
    """The weighted mean cost of a token; `watch` sees the model's output for each half, with attention, and whose it is."""
    loss, total = torch.zeros(()), sum(sum(text.weights) for text in texts)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i].tokens))
    for half in (order[: len(texts) // 2], order[len(texts) // 2 :]):  # short texts are not padded to the longest
        tokens, weights = padded([texts[i] for i in half], padding)
        found = model(
            input_ids=tokens, attention_mask=(tokens != padding).long(), pixel_values=images[half],
            output_attentions=watch is not None,
        )  # fmt: skip
        if watch is not None:
            watch(found, half)
        costs = F.cross_entropy(found.logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
        loss = loss + (costs * weights[:, 1:].flatten()).sum() / total
    return loss


def padded(texts: list[Text], padding: int) -> tuple[Int[Tensor, "b t"], Float[Tensor, "b t"]]:
    """Tokens and weights, padded on the right."""
    tokens, weights = ([torch.tensor(each[i]) for each in texts] for i in (0, 1))
    return (
        nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=padding),
        nn.utils.rnn.pad_sequence(weights, batch_first=True),
    )
