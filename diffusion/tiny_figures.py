"""Measure the finished tiny models: the figures of their cards, and tiny-sd's sheet of 64 samples."""

from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from transformers import CLIPModel, CLIPTokenizer

from diffusion.loading import load_pipeline
from diffusion.tiny_vae import reconstruction_psnr
from mmrlhf.images import grid, save_image
from mmrlhf.tiny import clip as tiny_clip
from mmrlhf.tiny import teacher as tiny_teacher
from mmrlhf.tiny.emoji import Concept, art_of, composite, random_backgrounds
from mmrlhf.tiny.judge import Judge
from mmrlhf.tiny.teacher import JointHeads, recall_at
from mmrlhf.tiny.text import tokenize

PROMPTS = 200


@torch.no_grad()
def measure(
    folder: Path,
    drawn: list[Concept],
    held_out: list[Concept],
    heads: JointHeads,
    num_steps: int,
    guidance_scale: float,
) -> dict[str, Any]:
    """Every figure, from the half-precision files in `folder`, and the sheet `folder/tiny-sd/samples.png`.

    `drawn` are the concepts that tiny-sd knows, `held_out` those that no model saw, `heads` those that taught tiny-clip.
    """
    art = art_of(held_out)
    white = composite(art, torch.ones(len(art), 3))
    tinted = composite(art, random_backgrounds(len(art), torch.Generator().manual_seed(1)))
    pipeline = load_pipeline(str(folder / "tiny-sd"), torch.device("cpu"), torch.float32)
    return {
        "psnr_white": reconstruction_psnr(pipeline.vae, white),
        "psnr_tinted": reconstruction_psnr(pipeline.vae, tinted),
        **measure_clip(folder / "tiny-clip", white, [concept.name for concept in held_out], heads),
        **measure_samples(folder, drawn, pipeline, num_steps, guidance_scale),
    }


def measure_clip(folder: Path, images: Tensor, names: list[str], heads: JointHeads) -> dict[str, float]:
    """Retrieval of each picture's name among all of `names`, by tiny-clip and by the pair that taught it."""
    clip = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = tokenize(CLIPTokenizer.from_pretrained(folder), names)
    texts = F.normalize(clip.get_text_features(**tokens).pooler_output, dim=-1)
    pixels = (images - tiny_clip.PIXEL_MEAN) / tiny_clip.PIXEL_STD
    embedded = F.normalize(clip.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
    taught = heads.embed_images(tiny_teacher.image_features(tiny_teacher.load_efficientnet(), images))
    taught_texts = heads.embed_texts(tiny_teacher.text_features(names))
    return {f"clip_recall_at_{k}": recall_at(k, embedded, texts) for k in (1, 5)} | {
        f"teacher_recall_at_{k}": recall_at(k, taught, taught_texts) for k in (1, 5)
    }


def measure_samples(
    folder: Path, drawn: list[Concept], pipeline: StableDiffusionPipeline, num_steps: int, guidance_scale: float
) -> dict[str, Any]:
    """How often the judge finds the prompt of a sampled picture among 200, beside the real drawings' figure."""
    order = torch.randperm(len(drawn), generator=torch.Generator().manual_seed(0))[:PROMPTS].tolist()
    picked = [drawn[i] for i in order]
    prompts = [concept.name for concept in picked]
    samples = []
    for start in tqdm(range(0, len(prompts), 50), desc="tiny-sd samples"):
        output = pipeline(
            prompts[start : start + 50], num_inference_steps=num_steps, guidance_scale=guidance_scale, eta=1.0,
            generator=torch.Generator().manual_seed(start), output_type="pt",
        )  # fmt: skip
        samples.append(output.images.float())
    images = torch.cat(samples)
    save_image(grid(images[:64], 8), folder / "tiny-sd" / "samples.png")
    judge = Judge.load(folder / "tiny-judge")
    real = composite(art_of(picked), random_backgrounds(len(picked), torch.Generator().manual_seed(2)))
    return {
        "samples_recall_at_1": judge.recall_at(1, images, prompts),
        "samples_recall_at_5": judge.recall_at(5, images, prompts),
        "drawings_recall_at_5": judge.recall_at(5, real, prompts),
        "sampled_with": f"DDIM, eta 1, {num_steps} steps, guidance {guidance_scale:g}",
        "sheet_prompts": prompts[:64],
    }
