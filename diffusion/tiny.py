"""`mmrlhf tiny train`: reproduce tiny-sd, tiny-clip and tiny-judge from registry packages alone, and measure them.

Every stage leaves its result in the work folder and goes on from it, so that a stopped command continues.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from diffusion.tiny_figures import measure
from diffusion.tiny_unet import encode_latents, encode_prompts, save_pipeline, train_unet
from diffusion.tiny_vae import polish_decoder, reconstruct, train_vae
from mmrlhf.checkpoint import load_checkpoint, save_checkpoint
from mmrlhf.data import write_text
from mmrlhf.errors import UserError
from mmrlhf.tiny import clip as tiny_clip
from mmrlhf.tiny import teacher as tiny_teacher
from mmrlhf.tiny import text as tiny_text
from mmrlhf.tiny.card import write_cards
from mmrlhf.tiny.emoji import (
    DRAWABLE,
    Concept,
    art_of,
    catalogue,
    fluent_art,
    load_art,
    noto_path,
    split_concepts,
)
from mmrlhf.tiny.judge import Judge
from mmrlhf.tiny.teacher import JointHeads


@dataclass(frozen=True)
class TinyConfig:
    """Train the tiny models; hours on two cores."""

    out: Path
    """Folder for the finished models."""
    work: Path = Path("runs/tiny")
    """Folder for checkpoints and caches; give the same one to go on with a stopped run."""
    vae_steps: int = 3000
    """Steps of 64 pictures for the autoencoder."""
    decoder_steps: int = 600
    """Further steps of its decoder alone."""
    text_steps: int = 2500
    """Steps of 256 texts for the text tower, twice."""
    joint_text_steps: int = 3000
    """Further steps of tiny-clip's, for the joint space."""
    phrases: int = 40_000
    """Random phrases that tiny-clip's text tower reads in its second half."""
    unet_steps: int = 3300
    """Steps of 128 latents for the denoiser."""
    vision_steps: int = 4600
    """Steps of 128 pictures for the vision tower."""
    views: int = 6
    """Pictures of each drawing that the teacher looks at."""
    scenes: int = 28_000
    """Pictures of one or two drawings, turned and recoloured, that the teacher looks at too."""
    num_steps: int = 12
    """Denoising steps of the sampled figures."""
    guidance_scale: float = 2.0
    """Classifier-free guidance of the sampled figures."""
    threads: int = 2
    """Processor threads for torch."""


def train(config: TinyConfig) -> dict[str, Any]:
    """Run every stage that is not finished, write the model folders with their cards, and return the figures."""
    claim_folders(config)
    torch.set_num_threads(config.threads)
    learn, held_out = split_concepts(catalogue())
    heads, features, images = teacher_stage(config, learn)
    tokenizer, text = text_stage(config, learn, held_out, heads)
    drawn = [concept for concept in learn if concept.group in DRAWABLE and not concept.variant]
    art = art_of(learn, both=True)
    vae = train_vae(art, config.work, steps=config.vae_steps)
    vae = polish_decoder(vae, art, config.work, steps=config.decoder_steps)
    judge_heads = judge_stage(learn, vae, config.work / "judge.pt")
    unet_and_save(config, drawn, vae, tokenizer)
    clip_and_save(config, learn, text, tokenizer, heads, features, images)
    judge_and_save(config, drawn, judge_heads)
    figures = measure(config.out, drawn, held_out, heads, config.num_steps, config.guidance_scale)
    write_cards(config.out, figures)
    print(f"models and figures: {config.out}")
    return figures


def claim_folders(config: TinyConfig) -> None:
    """Make both folders now, not after hours. UserError for a value out of range, or a work folder of other settings."""
    plain = {key: value for key, value in dataclasses.asdict(config).items() if key not in ("out", "work", "threads")}
    for name, value in {**plain, "threads": config.threads}.items():
        if not value > 0:
            raise UserError(f"--{name.replace('_', '-')} got {value}, allowed is above 0")
    for folder in (config.out, config.work):
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file: give a folder for --out and another for --work")
        folder.mkdir(parents=True, exist_ok=True)
    recorded = config.work / "config.json"
    if not recorded.exists():
        write_text(json.dumps(plain, indent=1) + "\n", recorded)
    found = json.loads(recorded.read_text())
    if different := [key for key, value in plain.items() if found.get(key) != value]:
        key = different[0]
        raise UserError(
            f"--work {config.work} holds a run with other settings ({key} was {found.get(key)}, now {plain[key]}): repeat "
            "them, or give another folder"
        )


def text_stage(
    config: TinyConfig, learn: list[Concept], held_out: list[Concept], heads: JointHeads
) -> tuple[CLIPTokenizer, CLIPTextModelWithProjection]:
    """The tokenizer and tiny-clip's text tower, distilled from MiniLM on names, keywords and common words.

    tiny-sd takes the tower as it is then; tiny-clip's learns on, from phrases, so that it also reads names it never saw,
    and at last from more words yet, for the joint space alone.
    """
    if not (config.work / "tokenizer" / "tokenizer_config.json").exists():
        tiny_text.save_tokenizer(config.work / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(config.work / "tokenizer")
    hidden = {concept.name for concept in held_out}
    names, phrases, joint = (config.work / name for name in ("text", "text-phrases", "text-joint"))
    if not names.exists():
        train_text(tokenizer, known_texts(learn, hidden), names, steps=config.text_steps, learning_rate=2e-3)
    if not phrases.exists():
        texts = random_phrases(learn, hidden, config.phrases)
        train_text(tokenizer, texts, phrases, steps=config.text_steps, learning_rate=1e-3, start=names)
    if not joint.exists():
        texts = random_phrases(learn, hidden, config.phrases) + rarer_texts(learn, hidden, config.phrases // 2)
        steps = config.joint_text_steps
        train_text(tokenizer, texts, joint, steps=steps, learning_rate=1.5e-3, start=phrases, heads=heads)
    tower: Any = CLIPTextModelWithProjection.from_pretrained(joint)
    return tokenizer, tower.eval()


def known_texts(learn: list[Concept], hidden: set[str]) -> list[str]:
    """Names (thrice, and in a sentence), keywords and common words, without the held-out names."""
    names = [concept.name for concept in learn]
    words = [word for word in tiny_text.common_words() if word not in hidden]
    return names * 3 + keywords(learn, hidden) + words + [f"a picture of a {name}" for name in names]


def keywords(learn: list[Concept], hidden: set[str]) -> list[str]:
    """The concepts' keywords, without the held-out names."""
    return sorted({word for concept in learn for word in concept.keywords} - hidden)


def random_phrases(learn: list[Concept], hidden: set[str], count: int) -> list[str]:
    """Names (thrice), the words of names and keywords and common words, and random phrases of these words."""
    spoken = {word for concept in learn for name in (concept.name, *concept.keywords) for word in name.split()}
    words = sorted({*spoken, *tiny_text.common_words()})
    texts = [text for text in tiny_text.word_pairs(words, count) + words if text not in hidden]
    return [concept.name for concept in learn] * 3 + texts


def rarer_texts(learn: list[Concept], hidden: set[str], count: int) -> list[str]:
    """Keywords (twice), the whole words of MiniLM's vocabulary, and random phrases of these words."""
    words = [word for word in tiny_text.teacher_words() if word not in hidden]
    phrases = [text for text in tiny_text.word_pairs(words, count, seed=1) if text not in hidden]
    return keywords(learn, hidden) * 2 + words + phrases


def train_text(tokenizer: CLIPTokenizer, texts: list[str], folder: Path, **settings: Any) -> None:
    """Distil MiniLM's embeddings of the texts into a text tower, and save it."""
    unique = sorted(set(texts))
    rows = {text: i for i, text in enumerate(unique)}
    targets = tiny_teacher.text_features(unique)[torch.tensor([rows[text] for text in texts])]
    tower: Any = tiny_text.train_text_tower(tokenizer, texts, targets, **settings)
    partial = folder.with_name(f"{folder.name}.partial")  # the folder's name says that it is finished
    tower.save_pretrained(partial)
    partial.rename(folder)


def teacher_stage(config: TinyConfig, learn: list[Concept]) -> tuple[JointHeads, Tensor, Tensor]:
    """(heads, EfficientNet features, pictures): views of the concepts that Twemoji and Noto draw, then random scenes."""
    both = [concept for concept in learn if noto_path(concept.hexcode)]
    noto = torch.stack([load_art(path) for concept in both if (path := noto_path(concept.hexcode))])
    views = torch.cat(
        [tiny_clip.render_views(art_of(both), config.views, 0), tiny_clip.render_views(noto, config.views, 1)]
    )
    scenes = tiny_clip.render_scenes(art_of(learn, both=True), config.scenes)
    cache = config.work / "features.pt"
    state = load_checkpoint(cache)
    if state is None:
        network = tiny_teacher.load_efficientnet()
        features = [tiny_teacher.image_features(network, view) for view in (*views, scenes)]
        state = {"views": torch.stack(features[:-1]), "scenes": features[-1]}
        state["texts"] = tiny_teacher.text_features([concept.name for concept in both])
        save_checkpoint(state, cache)
    heads = tiny_teacher.train_heads(state["views"], state["texts"])
    return heads, torch.cat([*state["views"], state["scenes"]]), torch.cat([*views, scenes])


def judge_stage(learn: list[Concept], vae: AutoencoderKL, cache: Path) -> JointHeads:
    """The judge's heads, trained on Noto and Fluent drawings of the concepts that both draw.

    Two thirds of its pictures went through tiny-sd's autoencoder, whose softness is not to count against a sample.
    """
    both = [concept for concept in learn if noto_path(concept.hexcode) and fluent_art(concept.hexcode) is not None]
    state = load_checkpoint(cache)
    if state is None:
        network = tiny_teacher.load_efficientnet()
        noto = torch.stack([load_art(path) for concept in both if (path := noto_path(concept.hexcode))])
        fluent = torch.stack([art for concept in both if (art := fluent_art(concept.hexcode)) is not None])
        features = []
        for seed, art in enumerate((noto, fluent)):
            sharp, *others = tiny_clip.render_views(art, 3, seed=31 + seed).float() / 255
            views = [sharp, *(reconstruct(vae, view) for view in others)]
            features += [tiny_teacher.image_features(network, view) for view in views]
        state = {"images": torch.stack(features)}
        save_checkpoint(state, cache)
    texts = tiny_teacher.text_features([concept.name for concept in both])
    return tiny_teacher.train_heads(state["images"], texts, steps=1600, dropout=0.5, seed=1)


def unet_and_save(config: TinyConfig, drawn: list[Concept], vae: AutoencoderKL, tokenizer: CLIPTokenizer) -> None:
    """The denoiser on the latents of the drawn concepts, and the finished tiny-sd folder."""
    text_encoder = CLIPTextModel.from_pretrained(config.work / "text").eval()
    cache = config.work / "latents.pt"
    state = load_checkpoint(cache)
    if state is None:
        state = {"latents": encode_latents(vae, art_of(drawn), views=12)}
        save_checkpoint(state, cache)
    latents = state["latents"]
    vae.register_to_config(scaling_factor=float(1 / latents.std()))
    names = [concept.name for concept in drawn]
    hidden = encode_prompts(tokenizer, text_encoder, names)
    empty = encode_prompts(tokenizer, text_encoder, [""])
    unet = train_unet(latents / latents.std(), hidden, empty, config.work, steps=config.unet_steps)
    save_pipeline(unet, vae, text_encoder, tokenizer, config.out / "tiny-sd")
    (config.out / "tiny-sd" / "prompts.txt").write_text("\n".join(names) + "\n")
    vae.float()


def clip_and_save(
    config: TinyConfig,
    learn: list[Concept],
    text: CLIPTextModelWithProjection,
    tokenizer: CLIPTokenizer,
    heads: JointHeads,
    features: Tensor,
    images: Tensor,
) -> None:
    """The vision tower by distillation, and the finished tiny-clip folder."""
    model = tiny_clip.build_clip(text, heads)
    names = [concept.name for concept in learn if noto_path(concept.hexcode)]
    with torch.no_grad():
        embedded = model.get_text_features(**tiny_text.tokenize(tokenizer, names)).pooler_output
    texts = F.normalize(embedded, dim=-1)
    tiny_clip.train_vision_tower(model, images, features, heads, texts, config.work, steps=config.vision_steps)
    model.half().save_pretrained(config.out / "tiny-clip")
    tokenizer.save_pretrained(config.out / "tiny-clip")
    tiny_clip.image_processor().save_pretrained(config.out / "tiny-clip")


def judge_and_save(config: TinyConfig, drawn: list[Concept], heads: JointHeads) -> None:
    """EfficientNet-Lite0 with the judge's head, and the text embeddings of tiny-sd's prompts."""
    names = [concept.name for concept in drawn]
    head = {
        "weight": heads.image.weight.data, "bias": heads.image.bias.data,
        "mean": heads.image_mean, "std": heads.image_std,
        "texts": heads.embed_texts(tiny_teacher.text_features(names)),
    }  # fmt: skip
    Judge(tiny_teacher.load_efficientnet(), head, names).save(config.out / "tiny-judge")
