"""Small language and vision-language models with random weights, in the folders of the real ones: 32 wide, 2 layers."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

WORDS = "what is it the a cat dog kind rude red blue one two user bot assistant : .".split()
SPECIAL = ["<pad>", "<unk>", "<s>", "</s>", "<image>", "<video>", "<start>", "<end>"]
WIDTH, LENGTH = 32, 64
TEXT_TEMPLATE = (
    "{% for m in messages %}{{ '<s>' + m['role'] + ' : ' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>bot : ' }}{% endif %}"
)
IMAGE_TEMPLATE = (
    "{% for m in messages %}{{ '<s>' + m['role'] + ' : ' }}{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<start><image><end>' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ '</s>' }}{% endfor %}{% if add_generation_prompt %}{{ '<s>bot : ' }}{% endif %}"
)


def word_tokenizer(**settings: Any) -> PreTrainedTokenizerFast:
    """A token a word, of a few that it knows."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(SPECIAL + WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        extra_special_tokens={"image_token": "<image>", "video_token": "<video>", "start": "<start>", "end": "<end>"},
        **({"pad_token": "<pad>", "model_max_length": LENGTH} | settings),
    )  # fmt: skip


def llama_config(**changes: Any) -> LlamaConfig:
    return LlamaConfig(
        **{
            "vocab_size": len(SPECIAL + WORDS), "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": LENGTH, "pad_token_id": None, "bos_token_id": 2,
            "eos_token_id": 3,
        } | changes
    )  # fmt: skip


def small_llama(folder: Path, *, chat: bool = True, seed: int = 0, **tokenizer: Any) -> Path:
    """A LlamaForCausalLM: no head, no padding token in its config."""
    torch.manual_seed(seed)
    LlamaForCausalLM(llama_config()).save_pretrained(folder)
    words = word_tokenizer(**tokenizer)
    words.chat_template = TEXT_TEMPLATE if chat else None
    words.save_pretrained(folder)
    return folder


def small_bert(folder: Path, seed: int = 0) -> Path:
    """A BertForSequenceClassification with one label, which reads prompt and answer as a pair of texts."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(SPECIAL + WORDS), hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=LENGTH, pad_token_id=0, num_labels=1,
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    torch.nn.init.normal_(model.classifier.bias)
    model.save_pretrained(folder)
    names = ["input_ids", "token_type_ids", "attention_mask"]
    words = word_tokenizer(cls_token="<s>", sep_token="</s>", model_input_names=names)
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    words.save_pretrained(folder)
    return folder


def small_llava(folder: Path, *, chat: bool = True, seed: int = 0) -> Path:
    """A LlavaForConditionalGeneration: 16 patches of a 32 px picture before the words."""
    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=2, num_attention_heads=2, image_size=32,
        patch_size=8,
    )  # fmt: skip
    LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=llama_config(), image_token_id=SPECIAL.index("<image>"),
                    vision_feature_layer=-1)
    ).save_pretrained(folder)  # fmt: skip
    pixels = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    LlavaProcessor(
        pixels, word_tokenizer(), patch_size=8, vision_feature_select_strategy="default",
        chat_template=IMAGE_TEMPLATE if chat else None, num_additional_image_tokens=1,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def small_qwen(folder: Path, seed: int = 0) -> Path:
    """A Qwen2VLForConditionalGeneration, whose pictures have as many tokens as their size asks for."""
    torch.manual_seed(seed)
    text = {
        "vocab_size": len(SPECIAL + WORDS), "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": LENGTH, "bos_token_id": 2,
        "eos_token_id": 3, "pad_token_id": 0,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0},
    }  # fmt: skip
    vision = {"depth": 2, "embed_dim": WIDTH, "hidden_size": WIDTH, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2}
    ids = {f"{name}_token_id": SPECIAL.index(f"<{token}>") for name, token in
           [("image", "image"), ("video", "video"), ("vision_start", "start"), ("vision_end", "end")]}  # fmt: skip
    Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision, **ids)).save_pretrained(
        folder
    )
    size = {"shortest_edge": 64, "longest_edge": 1024}
    pixels = {"patch_size": 4, "temporal_patch_size": 2, "merge_size": 2, "size": size}
    Qwen2VLProcessor(
        Qwen2VLImageProcessor(**pixels), word_tokenizer(), Qwen2VLVideoProcessor(**pixels), chat_template=IMAGE_TEMPLATE
    ).save_pretrained(folder)
    return folder
