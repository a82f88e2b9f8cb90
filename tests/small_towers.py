"""Small SiglipModel, open_clip and DINOv2 models with random weights, in the layouts of the published ones."""

import json
from io import BytesIO
from itertools import permutations
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from sentencepiece import SentencePieceTrainer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    BitImageProcessor,
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipTokenizer,
)

from tests.small_clip import small_clip

SIZE, MAX_TOKENS = 32, 16
WORDS = ["<pad>", "</s>", "<unk>", "a", "red", "cat", "dog", "much", "longer"]
VISION = {"image_size": SIZE, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}
TEXT = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
# image tower 128 wide with 2 heads of 64, text tower 64 wide with 1: what the shapes alone tell
SMALL_HPS = {
    "embed_dim": 16,
    "vision_cfg": VISION | {"width": 128, "head_width": 64},
    "text_cfg": TEXT | {"width": 64, "heads": 1, "mlp_ratio": 3.0},
}


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Knows a few words in lower case, ends each prompt with </s> and gives no mask, as SigLIP's."""
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    ends = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_input_names=["input_ids"], **ends)


def sentencepiece_tokenizer(folder: Path) -> SiglipTokenizer:
    """SigLIP's own kind: pieces learnt by sentencepiece, </s> (1) as end and as padding, and no <pad>."""
    texts = [" ".join(words) for words in permutations(["a", "red", "cat", "dog", "much", "longer"], 4)]
    pieces = BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=pieces, vocab_size=40, hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2,
        bos_id=-1, minloglevel=2,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(pieces.getvalue())
    return SiglipTokenizer(str(folder / "spiece.model"), model_max_length=MAX_TOKENS)


def small_siglip(folder: Path, *, resample: int = 3, tokenizer: Any = None) -> Path:
    """Save a SiglipModel folder and return it: 16 patches, 32 wide, 2 layers a tower, 16 tokens."""
    tokenizer = tokenizer or word_tokenizer()
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = SiglipConfig(
        text_config=tower | {"vocab_size": len(tokenizer), "max_position_embeddings": MAX_TOKENS},
        vision_config=tower | {"image_size": SIZE, "patch_size": 8},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SiglipModel(config)
    model.logit_scale.data.fill_(3.0)
    model.logit_bias.data.fill_(-2.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"height": SIZE, "width": SIZE}
    SiglipImageProcessor(size=size, resample=resample).save_pretrained(folder)
    return folder


def small_open_clip(
    folder: Path, architecture: dict[str, Any] | None = None, preprocessing: dict[str, Any] | None = None
) -> Path:
    """Write a folder in open_clip's layout and return it: by default 16 patches, 64 and 32 wide, 2 layers a tower."""
    config = architecture or {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT}
    folder.mkdir(parents=True, exist_ok=True)
    kind = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(**{name: value for name, value in config.items() if name != "custom_text"})
    settings = {"model_cfg": config, "preprocess_cfg": preprocessing or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(settings))
    save_file(
        {name: part.contiguous() for name, part in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    if "hf_tokenizer_name" in config["text_cfg"]:
        word_tokenizer().save_pretrained(folder)
    return folder


def small_dinov2(folder: Path, *, registers: bool = False, resample: int = 3) -> Path:
    """Save a Dinov2Model folder and return it: learnt at 56 px, takes the middle 42 of 48, 9 patches, 32 wide, 2 layers."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if registers:
            Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**sizes)).save_pretrained(folder)
        else:
            Dinov2Model(Dinov2Config(**sizes)).save_pretrained(folder)
    BitImageProcessor(
        size={"shortest_edge": 48}, crop_size={"height": 42, "width": 42}, resample=resample,
        image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(folder)  # fmt: skip
    return folder


def clip_of_width(folder: Path, width: int) -> Path:
    """A small CLIPModel's folder whose embeddings have `width` numbers, as ViT-L/14's 768."""
    small_clip(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPModel(CLIPConfig.from_pretrained(folder, projection_dim=width)).save_pretrained(folder)
    return folder


def hps_model(architecture: dict[str, Any]) -> open_clip.CLIP:
    """A model of open_clip with random weights, the same at each call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return open_clip.CLIP(**architecture).eval()


def write_hps(folder: Path) -> Path:
    """The file of an `hps_model` as HPS_v2.1_compressed.pt is: half precision under "state_dict"."""
    file = folder / "HPS_v2.1_compressed.pt"
    torch.save({"state_dict": {name: part.half() for name, part in hps_model(SMALL_HPS).state_dict().items()}}, file)
    return file


def aesthetic_head(width: int = 768) -> nn.Sequential:
    """LAION's published network, with its sizes and its places in the sequence."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(width, 1024), (1024, 128), (128, 64), (64, 16), (16, 1)]
    linears = [nn.Linear(inputs, outputs) for inputs, outputs in sizes]
    for linear in linears:
        linear.weight.data.normal_(std=1.5 / linear.in_features**0.5, generator=generator)
        linear.bias.data.normal_(generator=generator)
    one, two, three, four, five = linears
    return nn.Sequential(one, nn.Dropout(0.2), two, nn.Dropout(0.2), three, nn.Dropout(0.1), four, five).eval()


def write_aesthetic(folder: Path) -> Path:
    """The file of an `aesthetic_head` under its published name and keys."""
    file = folder / "sac+logos+ava1-l14-linearMSE.pth"
    torch.save({f"layers.{name}": part for name, part in aesthetic_head().state_dict().items()}, file)
    return file
