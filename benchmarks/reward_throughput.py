"""Pairs a second against the straightforward trainer, on the same model, batches and epochs: frozen towers, then all weights.

The straightforward trainer decodes both images of each pair at every step with Pillow and CLIPImageProcessor, runs the image
tower on both and pads each text to the tower's length, as the published preference trainers do. Losses are shown to be equal
before anything is timed.

    python benchmarks/reward_throughput.py            # about ten minutes on 2 CPU cores
    python benchmarks/reward_throughput.py --quick
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from mmrlhf.data import Pair
from mmrlhf.losses import bradley_terry, prompt_weights
from mmrlhf.models import resolve_model
from mmrlhf.rewards.encoders.clip import CLIPBackbone
from mmrlhf.rewards.training.fit import fit_reward
from mmrlhf.rewards.training.towers import fine_tune, make_optimizer, order_by_prompt

TEXT_LENGTH = 77
WORDS = "a red cat on the moon painted by an old master in warm light with many small details and a blue sky".split()


def model_folder(folder: Path, size: int, width: int, layers: int) -> Path:
    """A CLIPModel with random weights: patches of 32, a text tower of 77 tokens, tiny-clip's tokenizer."""
    tokenizer = CLIPTokenizer.from_pretrained(resolve_model("tiny-clip"))
    tower = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers,
             "num_attention_heads": width // 64}  # fmt: skip
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = tower | ends | {"vocab_size": len(tokenizer), "max_position_embeddings": TEXT_LENGTH}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=text, vision_config=tower | {"image_size": size, "patch_size": 32}, projection_dim=width
    )
    CLIPModel(config).save_pretrained(folder)
    tokenizer.model_max_length = TEXT_LENGTH
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size}).save_pretrained(folder)
    return folder


def make_pairs(folder: Path, count: int, uses: float, a_prompt: int, side: int) -> list[Pair]:
    """`count` pairs over so many JPEG files that each is used `uses` times, `a_prompt` pairs of each prompt."""
    generator = torch.Generator().manual_seed(0)
    folder.mkdir(parents=True)
    pairs = []
    for group in range(-(-count // a_prompt)):
        images = []
        for number in range(round(2 * a_prompt / uses)):
            path = folder / f"{group}-{number}.jpg"
            coarse = torch.rand(1, 3, 16, 16, generator=generator)
            picture = (
                F.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1)[0].mul(255).byte().permute(1, 2, 0)
            )
            Image.fromarray(picture.numpy()).save(path, quality=90)
            images.append(path)
        prompt = " ".join(WORDS[i] for i in torch.randint(len(WORDS), (18,), generator=generator).tolist())
        for _ in range(a_prompt):
            first, second = torch.randperm(len(images), generator=generator)[:2].tolist()
            pairs.append(Pair(prompt, images[first], images[second], float(len(pairs) % 2)))
    return pairs[:count]


def plain_margins(backbone: CLIPBackbone, processor: CLIPImageProcessor, batch: Sequence[Pair]) -> torch.Tensor:
    """Both images of each pair decoded and encoded, each text padded to the tower's length."""
    inputs = backbone.tokenizer([pair.prompt for pair in batch], padding="max_length", max_length=TEXT_LENGTH, truncation=True,
                                return_tensors="pt")  # fmt: skip
    text = backbone.model.text_model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).pooler_output
    texts = F.normalize(backbone.model.text_projection(text), dim=-1)
    sides = []
    for side in ("image_0", "image_1"):
        pictures = [Image.open(getattr(pair, side)).convert("RGB") for pair in batch]
        pixels = processor(images=pictures, return_tensors="pt").pixel_values
        pooled = backbone.model.vision_model(pixel_values=pixels).pooler_output
        sides.append((F.normalize(backbone.model.visual_projection(pooled), dim=-1) * texts).sum(-1))
    return backbone.scale * (sides[0] - sides[1])


def plain_epoch(folder: Path, backbone: CLIPBackbone, pairs: Sequence[Pair], optimizer: torch.optim.Optimizer | None,
                batch_size: int, epoch: int) -> float:  # fmt: skip
    """The mean loss of one pass in the order that ours takes; without an optimizer nothing but the forward passes."""
    processor = CLIPImageProcessor.from_pretrained(folder)
    weights, total = prompt_weights([pair.prompt for pair in pairs]), 0.0
    order = order_by_prompt(pairs, torch.Generator().manual_seed(epoch))
    for rows in order.split(batch_size):
        batch = [pairs[row] for row in rows.tolist()]
        with torch.set_grad_enabled(optimizer is not None):
            loss, _ = bradley_terry(
                plain_margins(backbone, processor, batch), torch.tensor([p.label_0 for p in batch]), weights[rows]
            )
        if optimizer is not None:
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(backbone.model.parameters(), 1.0)
            optimizer.step()
        total += float(loss.detach()) * len(batch)
    return total / len(pairs)


def unfrozen(folder: Path, pairs: Sequence[Pair], epochs: int, batch_size: int) -> tuple[float, float]:
    """(seconds of the straightforward trainer, of ours), after the losses of the epochs were found equal."""
    backbone = CLIPBackbone.load(folder)
    optimizer = make_optimizer(backbone.model.requires_grad_(True), 3e-6, 0.3)
    started = time.perf_counter()
    plain = [plain_epoch(folder, backbone, pairs, optimizer, batch_size, epoch) for epoch in range(epochs)]
    theirs = time.perf_counter() - started
    lines: list[dict[str, float]] = []
    started = time.perf_counter()
    fine_tune(pairs, [], CLIPBackbone.load(folder), seed=0, epochs=epochs, learning_rate=3e-6, weight_decay=0.3,
              batch_size=batch_size, warmup_steps=0, patience=epochs, progress=False, on_epoch=lines.append)  # fmt: skip
    ours = time.perf_counter() - started
    for epoch, (expected, line) in enumerate(zip(plain, lines, strict=True)):
        assert abs(expected - line["loss"]) < 2e-3 * abs(expected), (epoch, expected, line["loss"])
    return theirs, ours


def frozen(folder: Path, pairs: Sequence[Pair], epochs: int, batch_size: int) -> tuple[float, float]:
    """(seconds of one straightforward epoch's forward passes times `epochs`, of our heads with the embedding of all images)."""
    backbone = CLIPBackbone.load(folder)
    started = time.perf_counter()
    plain_epoch(folder, backbone, pairs, None, batch_size, 0)
    theirs = (time.perf_counter() - started) * epochs
    started = time.perf_counter()
    fit_reward(pairs, backbone, seed=0, epochs=epochs, batch_size=batch_size, validation=0.0, progress=False)
    return theirs, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    size, width, layers, count, side, batch_size = (64, 64, 1, 16, 96, 8) if quick else (224, 512, 4, 240, 512, 24)
    print(
        f"{torch.get_num_threads()} threads, images of {side} px, model of {layers} layers of {width}, batches of {batch_size}"
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = model_folder(Path(temporary) / "clip", size, width, layers)
        for name, uses, a_prompt in (("images recur (3.7 uses an image)", 3.7, 8), ("images never recur", 1, 1)):
            pairs = make_pairs(Path(temporary) / f"uses-{uses}", count, uses, a_prompt, side)
            files = len({path for pair in pairs for path in (pair.image_0, pair.image_1)})
            theirs, ours = unfrozen(folder, pairs, 2, batch_size)
            print(f"all weights, {name}: {theirs / ours:.2f} times as many pairs a second "
                  f"({count} pairs, {files} files, 2 epochs, losses equal)", flush=True)  # fmt: skip
            theirs, ours = frozen(folder, pairs, 10, batch_size)
            print(
                f"frozen towers, {name}: {theirs / ours:.1f} times, 10 epochs, the embedding of all images included",
                flush=True,
            )


if __name__ == "__main__":
    main()
