"""Train tiny-sd's UNet on the latents of emoji pictures, and put the whole StableDiffusionPipeline together."""

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from mmrlhf.checkpoint import load_checkpoint, save_checkpoint
from mmrlhf.precision import fast_autocast
from mmrlhf.schedule import ema_decay, set_learning_rate
from mmrlhf.tiny.emoji import composite, random_backgrounds, shift_scale

SNR_CAP = 5.0


def build_unet() -> UNet2DConditionModel:
    """An untrained denoiser of tiny-sd's size (about 4.3 M weights)."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 128),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=2,
        norm_num_groups=16,
    )


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule, sampled by DDIM."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


@torch.no_grad()
def encode_latents(
    vae: AutoencoderKL, art: UInt8[Tensor, "n 4 64 64"], views: int, seed: int = 0
) -> Float[Tensor, "views n 4 8 8"]:
    """Latents (unscaled means) of `views` pictures of each drawing, slightly moved, over plain backgrounds."""
    generator = torch.Generator().manual_seed(seed)
    latents = []
    for _ in tqdm(range(views), desc="tiny-sd latents"):
        layers = shift_scale(art.float(), generator, shift=0.02, scale=0.06).clamp(0, 255).to(torch.uint8)
        images = composite(layers, random_backgrounds(len(art), generator)) * 2 - 1
        latents.append(torch.cat([vae.encode(batch).latent_dist.mean for batch in images.split(64)]))
    return torch.stack(latents)


@torch.no_grad()
def encode_prompts(
    tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, prompts: Sequence[str]
) -> Float[Tensor, "n tokens dim"]:
    """Hidden states of the prompts, padded to the tokenizer's length as the pipeline pads them."""
    tokens = tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt")
    return torch.cat([text_encoder(ids).last_hidden_state for ids in tokens.input_ids.split(256)])


def denoising_loss(
    unet: UNet2DConditionModel,
    clean: Float[Tensor, "b 4 8 8"],
    hidden: Float[Tensor, "b tokens dim"],
    alphas_cumprod: Float[Tensor, " steps"],
    generator: torch.Generator,
) -> Tensor:
    """Error of the predicted noise (Ho et al. 2020), weighted by min(SNR, 5) / SNR (Hang et al. 2023)."""
    times = torch.randint(len(alphas_cumprod), (len(clean),), generator=generator)
    noise = torch.randn(clean.shape, generator=generator)
    alpha = alphas_cumprod[times][:, None, None, None]
    noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
    with fast_autocast("cpu"):
        predicted = unet(noisy, times, hidden).sample
    snr = (alpha / (1 - alpha)).flatten()
    error = (predicted.float() - noise).square().mean(dim=(1, 2, 3))
    return (error * snr.clamp(max=SNR_CAP) / snr).mean()


def train_unet(
    latents: Float[Tensor, "views n 4 8 8"],
    hidden: Float[Tensor, "n tokens dim"],
    empty: Float[Tensor, "1 tokens dim"],
    out: Path,
    *,
    steps: int = 3000,
    batch_size: int = 128,
    learning_rate: float = 1.5e-3,
    seed: int = 0,
) -> UNet2DConditionModel:
    """Train on scaled latents, the prompt left out one time in ten; returns the moving average of the weights.

    Resumes from `out/unet.pt`.
    """
    torch.manual_seed(seed)
    unet = build_unet()
    average = copy.deepcopy(unet).requires_grad_(False)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=learning_rate, weight_decay=1e-2, betas=(0.9, 0.99))
    start = 0
    if state := load_checkpoint(out / "unet.pt"):
        unet.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    alphas_cumprod = build_scheduler().alphas_cumprod
    views, count = latents.shape[:2]
    bar = tqdm(range(start, steps), desc="tiny-sd denoiser", initial=start, total=steps)
    for step in bar:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        view = torch.randint(views, (batch_size,), generator=generator)
        row = torch.randint(count, (batch_size,), generator=generator)
        dropped = torch.rand(batch_size, generator=generator) < 0.1
        condition = torch.where(dropped[:, None, None], empty, hidden[row])
        loss = denoising_loss(unet, latents[view, row], condition, alphas_cumprod, generator)
        optimizer.zero_grad()
        loss.backward()
        set_learning_rate(optimizer, learning_rate, step, steps)
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        for mean, value in zip(average.parameters(), unet.parameters(), strict=True):
            mean.lerp_(value.detach(), 1 - ema_decay(step))
        bar.set_postfix(loss=f"{loss.item():.3f}")
        if (step + 1) % 100 == 0 or step + 1 == steps:
            state = {"model": unet.state_dict(), "average": average.state_dict()}
            save_checkpoint(state | {"optimizer": optimizer.state_dict(), "step": step + 1}, out / "unet.pt")
    return average.eval()


def save_pipeline(
    unet: UNet2DConditionModel, vae: AutoencoderKL, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, folder: Path
) -> None:
    """Write the half-precision `StableDiffusionPipeline` folder."""
    pipeline = StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16).save_pretrained(folder, safe_serialization=True)
