"""Train tiny-sd's autoencoder: 64 px pictures to 8×8×4 latents and back (a plain `diffusers` AutoencoderKL)."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

from mmrlhf.checkpoint import load_checkpoint, save_checkpoint
from mmrlhf.precision import fast_autocast
from mmrlhf.schedule import set_learning_rate
from mmrlhf.tiny.emoji import composite, random_backgrounds, shift_scale

KL_WEIGHT = 2e-5


def build_vae() -> AutoencoderKL:
    """An untrained autoencoder of tiny-sd's size (about 1 M weights)."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
    )


def vae_loss(vae: AutoencoderKL, images: Float[Tensor, "b 3 64 64"], generator: torch.Generator) -> Tensor:
    """Squared plus absolute error of the reconstruction, and a light pull of the latents towards N(0, 1)."""
    pixels = images * 2 - 1
    posterior = vae.encode(pixels).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator)
    decoded = vae.decode(posterior.mean + posterior.std * noise).sample.float()
    error = decoded - pixels
    kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
    return error.square().mean() + 0.2 * error.abs().mean() + KL_WEIGHT * kl


def train_vae(
    art: UInt8[Tensor, "n 4 64 64"],
    out: Path,
    *,
    steps: int = 2000,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> AutoencoderKL:
    """Train on `art` over random backgrounds; resumes from `out/vae.pt` and leaves it there."""
    torch.manual_seed(seed)
    vae = build_vae()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=learning_rate, weight_decay=1e-4)
    start = 0
    if state := load_checkpoint(out / "vae.pt"):
        vae.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    bar = tqdm(range(start, steps), desc="tiny-sd autoencoder", initial=start, total=steps)
    for step in bar:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        images = training_pictures(art, batch_size, generator)
        with fast_autocast("cpu"):
            loss = vae_loss(vae, images, generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        set_learning_rate(optimizer, learning_rate, step, steps)
        optimizer.step()
        bar.set_postfix(loss=f"{loss.item():.4f}")
        if (step + 1) % 100 == 0 or step + 1 == steps:
            save_checkpoint(
                {"model": vae.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1},
                out / "vae.pt",
            )
    return vae.eval()


def polish_decoder(
    vae: AutoencoderKL,
    art: UInt8[Tensor, "n 4 64 64"],
    out: Path,
    *,
    steps: int = 600,
    batch_size: int = 64,
    learning_rate: float = 5e-4,
    seed: int = 1,
) -> AutoencoderKL:
    """Train the decoder alone on, for peak signal-to-noise ratio itself; the latents stay what they are.

    Resumes from `out/decoder.pt` and leaves it there.
    """
    vae.requires_grad_(False)
    parameters = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=1e-4)
    start = 0
    if state := load_checkpoint(out / "decoder.pt"):
        vae.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    for step in (bar := tqdm(range(start, steps), desc="tiny-sd decoder", initial=start, total=steps)):
        images = training_pictures(art, batch_size, torch.Generator().manual_seed(seed * 1_000_003 + step))
        with fast_autocast("cpu"):
            with torch.no_grad():
                latents = vae.encode(images * 2 - 1).latent_dist.mean
            decoded = vae.decode(latents).sample.float() / 2 + 0.5
        loss = 10 * (decoded - images).square().mean(dim=(1, 2, 3)).log10().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        set_learning_rate(optimizer, learning_rate, step, steps)
        optimizer.step()
        bar.set_postfix(dB=f"{-loss.item():.2f}")
        if (step + 1) % 100 == 0 or step + 1 == steps:
            state = {"model": vae.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            save_checkpoint(state, out / "decoder.pt")
    return vae.eval()


def training_pictures(
    art: UInt8[Tensor, "n 4 64 64"], count: int, generator: torch.Generator
) -> Float[Tensor, "count 3 64 64"]:
    """Random drawings, moved and scaled a little, over random backgrounds."""
    picked = torch.randint(len(art), (count,), generator=generator)
    layers = shift_scale(art[picked].float(), generator, shift=0.05, scale=0.15).to(torch.uint8)
    return composite(layers, random_backgrounds(count, generator))


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, images: Float[Tensor, "n 3 64 64"]) -> Float[Tensor, "n 3 64 64"]:
    """Pictures in [0, 1] through the autoencoder: decode(encode(x).mean), clipped."""
    decoded = [vae.decode(vae.encode(batch * 2 - 1).latent_dist.mean).sample for batch in images.split(64)]
    return (torch.cat(decoded) / 2 + 0.5).clamp(0, 1)


def reconstruction_psnr(vae: AutoencoderKL, images: Float[Tensor, "n 3 64 64"]) -> float:
    """Mean over pictures of the peak signal-to-noise ratio, dB, of `reconstruct`."""
    error = (reconstruct(vae, images) - images).square().mean(dim=(1, 2, 3))
    return float((-10 * error.clamp_min(1e-10).log10()).mean())
