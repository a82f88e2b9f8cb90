"""A small CLIPModel with random weights, its tokenizer and preprocessing, in the format of the real ones: 32 px, 24 tokens."""

import json
from pathlib import Path

import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from mmrlhf.data import Pair, write_pairs

SIZE, MAX_LENGTH = 32, 24
MERGES = ["c a", "ca t</w>", "d o", "do g</w>", "r e", "re d</w>"]
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def clip_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIPTokenizer that knows all bytes and a few words."""
    plain = [chr(byte) for byte in (*range(33, 127), *range(161, 173), *range(174, 256))]
    letters = plain + [chr(256 + i) for i in range(256 - len(plain))]
    words = ["".join(merge.split()) for merge in MERGES]
    vocabulary = [*letters, *(letter + "</w>" for letter in letters), *words, "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n")
    return CLIPTokenizer.from_pretrained(folder)


def small_clip(folder: Path, *, seed: int = 0) -> Path:
    """Save a CLIPModel folder and return it: 16 patches, 32 wide, 2 layers a tower."""
    tokenizer = clip_tokenizer(folder / "tokenizer-files")
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": len(tokenizer) - 2, "eos_token_id": len(tokenizer) - 1, "pad_token_id": len(tokenizer) - 1}
    config = CLIPConfig(
        text_config=tower | ends | {"vocab_size": len(tokenizer), "max_position_embeddings": MAX_LENGTH},
        vision_config=tower | {"image_size": SIZE, "patch_size": 8},
        projection_dim=16,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"height": SIZE, "width": SIZE}
    CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=size, image_mean=MEAN, image_std=STD).save_pretrained(
        folder
    )
    return folder


def noisy_colour(path: Path, colour: tuple[float, float, float], generator: torch.Generator, size: int = SIZE) -> Path:
    """Write a picture of one colour under strong noise."""
    noise = 0.2 * torch.randn(size, size, 3, generator=generator)
    pixels = ((torch.tensor(colour) + noise).clamp(0, 1) * 255).round().to(torch.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.numpy()).save(path)
    return path


def warm_pairs(folder: Path, *, prompts: int = 20, each: int = 3, seed: int = 0) -> Path:
    """Pictures and a PAIRS.jsonl by someone who likes red better than blue, calls near ones a tie, and sees no prompt."""
    generator = torch.Generator().manual_seed(seed)
    pairs = []
    for prompt in range(prompts):
        for number in range(each):
            reds = torch.rand(2, generator=generator).tolist()
            first, second = (
                noisy_colour(folder / "images" / f"{prompt}-{number}-{side}.png", (red, 0.5, 1 - red), generator)
                for side, red in enumerate(reds)
            )
            label = 0.5 if abs(reds[0] - reds[1]) < 0.05 else float(reds[0] > reds[1])
            pairs.append(Pair(f"a red cat {prompt}", first, second, label))
    write_pairs(pairs, folder / "pairs.jsonl")
    return folder / "pairs.jsonl"
