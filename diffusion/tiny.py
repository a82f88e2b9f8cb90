"""`mmrlhf tiny train`: reproduce tiny-sd, tiny-clip and tiny-judge from registry packages alone, and measure them.

Every stage leaves its result in the work folder and goes on from it, so that a stopped command continues.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from transformers import CLIPModel, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from diffusion.tiny_unet import encode_latents, encode_prompts, save_pipeline, train_unet
from diffusion.tiny_vae import polish_decoder, reconstruction_psnr, train_vae
from mmrlhf.checkpoint import load_checkpoint, save_checkpoint
from mmrlhf.images import grid, save_image
from mmrlhf.tiny import clip as tiny_clip
from mmrlhf.tiny import teacher as tiny_teacher
from mmrlhf.tiny import text as tiny_text
from mmrlhf.tiny.card import write_cards
from mmrlhf.tiny.emoji import (
    DRAWABLE,
    Concept,
    catalogue,
    composite,
    fluent_art,
    load_art,
    noto_path,
    random_backgrounds,
    split_concepts,
    twemoji_path,
)
from mmrlhf.tiny.judge import Judge
from mmrlhf.tiny.teacher import JointHeads, recall_at

JUDGE_VIEWS = 4


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
    phrases: int = 40_000
    """Random phrases that tiny-clip's text tower reads in its second half."""
    unet_steps: int = 3300
    """Steps of 128 latents for the denoiser."""
    vision_steps: int = 2500
    """Steps of 128 pictures for the vision tower."""
    views: int = 6
    """Pictures of each drawing that the teacher looks at."""
    num_steps: int = 20
    """Denoising steps of the sampled figures."""
    guidance_scale: float = 3.0
    """Classifier-free guidance of the sampled figures."""
    threads: int = 2
    """Processor threads for torch."""


def train(config: TinyConfig) -> dict[str, Any]:
    """Run every stage that is not finished, write the model folders with their cards, and return the figures."""
    torch.set_num_threads(config.threads)
    config.work.mkdir(parents=True, exist_ok=True)
    learn, held_out = split_concepts(catalogue())
    tokenizer, text = text_stage(config, learn, held_out)
    heads, features, images = teacher_stage(config, learn)
    judge_heads = judge_stage(learn, config.work / "judge.pt")
    drawn = [concept for concept in learn if concept.group in DRAWABLE and not concept.variant]
    art = art_of(learn, both=True)
    vae = train_vae(art, config.work, steps=config.vae_steps)
    vae = polish_decoder(vae, art, config.work, steps=config.decoder_steps)
    unet_and_save(config, drawn, vae, tokenizer)
    clip_and_save(config, learn, text, tokenizer, heads, features, images)
    judge_and_save(config, drawn, judge_heads)
    figures = measure(config, drawn, held_out, heads)
    write_cards(config.out, figures)
    print(f"models and figures: {config.out}")
    return figures


def art_of(concepts: list[Concept], both: bool = False) -> Tensor:
    """Twemoji drawings of the concepts, and with `both` the Noto drawings after each."""
    styles = (twemoji_path, noto_path) if both else (twemoji_path,)
    paths = [style(concept.hexcode) for concept in concepts for style in styles]
    return torch.stack([load_art(path) for path in paths if path])


def text_stage(
    config: TinyConfig, learn: list[Concept], held_out: list[Concept]
) -> tuple[CLIPTokenizer, CLIPTextModelWithProjection]:
    """The tokenizer and tiny-clip's text tower, distilled from MiniLM on names, keywords and common words.

    tiny-sd takes the tower as it is then; tiny-clip's learns on, from phrases, so that it also reads names it never saw.
    """
    if not (config.work / "tokenizer" / "tokenizer_config.json").exists():
        tiny_text.save_tokenizer(config.work / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(config.work / "tokenizer")
    hidden = {concept.name for concept in held_out}
    names, phrases = config.work / "text", config.work / "text-phrases"
    if not (names / "model.safetensors").exists():
        train_text(tokenizer, known_texts(learn, hidden), names, steps=config.text_steps, learning_rate=2e-3)
    if not (phrases / "model.safetensors").exists():
        texts = random_phrases(learn, hidden, config.phrases)
        train_text(tokenizer, texts, phrases, steps=config.text_steps, learning_rate=1e-3, start=names)
    tower: Any = CLIPTextModelWithProjection.from_pretrained(phrases)
    return tokenizer, tower.eval()


def known_texts(learn: list[Concept], hidden: set[str]) -> list[str]:
    """Names (thrice, and in a sentence), keywords and common words, without the held-out names."""
    names = [concept.name for concept in learn]
    keywords = sorted({word for concept in learn for word in concept.keywords} - hidden)
    words = [word for word in tiny_text.common_words() if word not in hidden]
    return names * 3 + keywords + words + [f"a picture of a {name}" for name in names]


def random_phrases(learn: list[Concept], hidden: set[str], count: int) -> list[str]:
    """Names (thrice), the words of names and keywords and common words, and random phrases of these words."""
    spoken = {word for concept in learn for name in (concept.name, *concept.keywords) for word in name.split()}
    words = sorted({*spoken, *tiny_text.common_words()})
    texts = [text for text in tiny_text.word_pairs(words, count) + words if text not in hidden]
    return [concept.name for concept in learn] * 3 + texts


def train_text(tokenizer: CLIPTokenizer, texts: list[str], folder: Path, **settings: Any) -> None:
    """Distil MiniLM's embeddings of the texts into a text tower, and save it."""
    unique = sorted(set(texts))
    rows = {text: i for i, text in enumerate(unique)}
    targets = tiny_teacher.text_features(unique)[torch.tensor([rows[text] for text in texts])]
    tower: Any = tiny_text.train_text_tower(tokenizer, texts, targets, **settings)
    tower.save_pretrained(folder)


def teacher_stage(config: TinyConfig, learn: list[Concept]) -> tuple[JointHeads, Tensor, Tensor]:
    """(heads, EfficientNet features, pictures): Twemoji's views, then Noto's, of the concepts that both draw."""
    both = [concept for concept in learn if noto_path(concept.hexcode)]
    noto = torch.stack([load_art(path) for concept in both if (path := noto_path(concept.hexcode))])
    images = torch.cat(
        [tiny_clip.render_views(art_of(both), config.views, 0), tiny_clip.render_views(noto, config.views, 1)]
    )
    cache = config.work / "features.pt"
    state = load_checkpoint(cache)
    if state is None:
        network = tiny_teacher.load_efficientnet()
        features = torch.stack([tiny_teacher.image_features(network, view.float() / 255) for view in images])
        state = {"images": features, "texts": tiny_teacher.text_features([concept.name for concept in both])}
        save_checkpoint(state, cache)
    return tiny_teacher.train_heads(state["images"], state["texts"]), state["images"], images


def judge_stage(learn: list[Concept], cache: Path) -> JointHeads:
    """The judge's heads, trained on Noto and Fluent drawings of the concepts that both draw, sharp and softened."""
    both = [concept for concept in learn if noto_path(concept.hexcode) and fluent_art(concept.hexcode) is not None]
    state = load_checkpoint(cache)
    if state is None:
        network = tiny_teacher.load_efficientnet()
        noto = torch.stack([load_art(path) for concept in both if (path := noto_path(concept.hexcode))])
        fluent = torch.stack([art for concept in both if (art := fluent_art(concept.hexcode)) is not None])
        features = []
        for seed, art in enumerate((noto, fluent)):
            sharp, *others = tiny_clip.render_views(art, JUDGE_VIEWS, seed=11 + seed).float() / 255
            views = [sharp, *(tiny_teacher.soften(view, 21 + seed) for view in others)]
            features += [tiny_teacher.image_features(network, view) for view in views]
        state = {"images": torch.stack(features)}
        save_checkpoint(state, cache)
    texts = tiny_teacher.text_features([concept.name for concept in both])
    return tiny_teacher.train_heads(state["images"], texts, steps=800, dropout=0.5, seed=1)


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


@torch.no_grad()
def measure(config: TinyConfig, drawn: list[Concept], held_out: list[Concept], heads: JointHeads) -> dict[str, Any]:
    """The figures of the model cards, all from the shipped half-precision files, and a sheet of 64 samples."""
    art = art_of(held_out)
    white = composite(art, torch.ones(len(art), 3))
    tinted = composite(art, random_backgrounds(len(art), torch.Generator().manual_seed(1)))
    pipeline = StableDiffusionPipeline.from_pretrained(config.out / "tiny-sd", torch_dtype=torch.float32)
    figures: dict[str, Any] = {
        "psnr_white": reconstruction_psnr(pipeline.vae, white),
        "psnr_tinted": reconstruction_psnr(pipeline.vae, tinted),
    }
    clip = CLIPModel.from_pretrained(config.out / "tiny-clip", dtype=torch.float32).eval()
    tokenizer = CLIPTokenizer.from_pretrained(config.out / "tiny-clip")
    names = [concept.name for concept in held_out]
    texts = F.normalize(clip.get_text_features(**tiny_text.tokenize(tokenizer, names)).pooler_output, dim=-1)
    pixels = (white - tiny_clip.PIXEL_MEAN) / tiny_clip.PIXEL_STD
    embedded = F.normalize(clip.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
    network = tiny_teacher.load_efficientnet()
    taught = heads.embed_images(tiny_teacher.image_features(network, white))
    taught_texts = heads.embed_texts(tiny_teacher.text_features(names))
    figures |= {f"clip_recall_at_{k}": recall_at(k, embedded, texts) for k in (1, 5)}
    figures |= {f"teacher_recall_at_{k}": recall_at(k, taught, taught_texts) for k in (1, 5)}
    return figures | measure_samples(config, drawn, pipeline)


def measure_samples(config: TinyConfig, drawn: list[Concept], pipeline: StableDiffusionPipeline) -> dict[str, Any]:
    """How often the judge finds the prompt of a sampled picture among 200, beside the real drawings' figure."""
    order = torch.randperm(len(drawn), generator=torch.Generator().manual_seed(0))[:200].tolist()
    picked = [drawn[i] for i in order]
    prompts = [concept.name for concept in picked]
    pipeline.set_progress_bar_config(disable=True)
    samples = []
    for start in tqdm(range(0, len(prompts), 50), desc="tiny-sd samples"):
        generator = torch.Generator().manual_seed(start)
        output = pipeline(
            prompts[start : start + 50], num_inference_steps=config.num_steps, guidance_scale=config.guidance_scale,
            eta=1.0, generator=generator, output_type="pt",
        )  # fmt: skip
        samples.append(output.images.float())
    images = torch.cat(samples)
    save_image(grid(images[:64], 8), config.out / "tiny-sd" / "samples.png")
    judge = Judge.load(config.out / "tiny-judge")
    real = composite(art_of(picked), random_backgrounds(len(picked), torch.Generator().manual_seed(2)))
    return {
        "samples_recall_at_1": judge.recall_at(1, images, prompts),
        "samples_recall_at_5": judge.recall_at(5, images, prompts),
        "drawings_recall_at_5": judge.recall_at(5, real, prompts),
        "sampled_with": f"DDIM, eta 1, {config.num_steps} steps, guidance {config.guidance_scale}",
        "judged_prompts": prompts[:64],
    }
