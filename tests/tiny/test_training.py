"""What trains the tiny models, on pictures made here: the art itself is only fetched for the real training."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from diffusers import DDIMScheduler
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTextModelWithProjection, CLIPTokenizer

from diffusion.tiny_unet import build_scheduler, build_unet, denoising_loss, encode_latents, train_unet
from diffusion.tiny_vae import build_vae, polish_decoder, reconstruction_psnr, train_vae
from mmrlhf.tiny import clip as tiny_clip
from mmrlhf.tiny import text as tiny_text
from mmrlhf.tiny.emoji import Concept, composite, random_backgrounds, shift_scale, split_concepts
from mmrlhf.tiny.teacher import IMAGE_DIM, TEXT_DIM, JointHeads, recall_at, train_heads


def discs(count: int) -> torch.Tensor:
    """Premultiplied RGBA drawings: a coloured disc each."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    inside = ((x - 32) ** 2 + (y - 32) ** 2 < 20**2).float()
    colours = torch.rand(count, 3, 1, 1, generator=generator) * inside
    return (torch.cat([colours, inside.expand(count, 1, 64, 64)], dim=1) * 255).to(torch.uint8)


def test_composite_shows_the_background_where_the_art_is_clear() -> None:
    art = discs(2)
    pictures = composite(art, torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    assert pictures[0, :, 0, 0].tolist() == [1.0, 0.0, 0.0] and pictures[1, :, 0, 0].tolist() == [0.0, 1.0, 0.0]
    torch.testing.assert_close(pictures[:, :, 32, 32], art[:, :3, 32, 32] / 255)


def test_backgrounds_are_pale_colours_and_often_white() -> None:
    colours = random_backgrounds(4000, torch.Generator().manual_seed(0))
    assert colours.min() >= 0.65 * 0.4 - 1e-6 and colours.max() <= 1
    assert 0.27 < float((colours == 1).all(dim=1).float().mean()) < 0.33
    warm = (colours[:, 0] - colours[:, 2]).mean()
    assert abs(float(warm)) < 0.02  # no hue is preferred


def test_shift_scale_of_nothing_is_the_picture_itself() -> None:
    pictures = discs(3).float()
    same = shift_scale(pictures, torch.Generator().manual_seed(0), shift=0.0, scale=0.0)
    torch.testing.assert_close(same, pictures, atol=1e-2, rtol=0)
    moved = shift_scale(pictures, torch.Generator().manual_seed(0), shift=0.2, scale=0.2)
    assert not torch.allclose(moved, pictures, atol=1.0)


def test_the_split_is_fixed_and_proportional() -> None:
    concepts = [Concept(f"{i:x}", f"thing {i}", (), 3, variant=i % 3 == 0) for i in range(1500)]
    train, held_out = split_concepts(concepts)
    assert len(held_out) == 300 and sum(concept.variant for concept in held_out) == 90
    assert not {concept.hexcode for concept in train} & {concept.hexcode for concept in held_out}
    assert split_concepts(list(concepts)) == (train, held_out)


def test_recall_by_hand() -> None:
    texts = torch.eye(3)
    images = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.5, 0.0], [0.6, 0.5, 0.4]])
    assert recall_at(1, images, texts) == pytest.approx(1 / 3)
    assert recall_at(2, images, texts) == pytest.approx(2 / 3)
    assert recall_at(3, images, texts) == 1.0


def test_heads_find_a_linear_relation_and_only_that() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(300, 20, generator=generator)
    images = (hidden @ torch.randn(20, IMAGE_DIM, generator=generator)).expand(2, -1, -1)
    texts = F.normalize(hidden @ torch.randn(20, TEXT_DIM, generator=generator), dim=-1)
    heads = train_heads(images[:, :200], texts[:200], steps=60)
    assert recall_at(1, heads.embed_images(images[0, 200:]), heads.embed_texts(texts[200:])) > 0.8
    assert recall_at(1, heads.embed_images(images[0, 200:]), heads.embed_texts(texts[200:].flip(0))) < 0.2


def test_the_denoising_loss_weighs_by_capped_snr() -> None:
    """A network that answers 0 has loss E[noise²] min(SNR, 5) / SNR."""
    alphas = torch.tensor([0.99, 0.5])
    clean = torch.zeros(4000, 4, 8, 8)

    class Silent(torch.nn.Module):
        def forward(self, noisy: torch.Tensor, times: torch.Tensor, hidden: torch.Tensor) -> object:
            return type("Output", (), {"sample": torch.zeros_like(noisy)})()

    found = cast(Any, denoising_loss).__wrapped__(
        Silent(), clean, torch.zeros(4000, 1, 1), alphas, torch.Generator().manual_seed(0)
    )
    assert float(found) == pytest.approx((5 / 99 + 1) / 2, rel=0.05)


def test_the_schedule_is_stable_diffusions() -> None:
    scheduler = build_scheduler()
    assert isinstance(scheduler, DDIMScheduler)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    torch.testing.assert_close(scheduler.alphas_cumprod, (1 - betas).cumprod(0))


def test_an_autoencoder_learns_and_is_read_back(tmp_path: Path) -> None:
    art = discs(16)
    pictures = composite(art, torch.ones(16, 3))
    before = reconstruction_psnr(build_vae().eval(), pictures)
    vae = train_vae(art, tmp_path, steps=25, batch_size=8)
    after = reconstruction_psnr(vae, pictures)
    assert after > before + 2
    again = train_vae(art, tmp_path, steps=25, batch_size=8)
    assert reconstruction_psnr(again, pictures) == pytest.approx(after)
    with torch.no_grad():
        decoded = vae.decode(vae.encode(pictures * 2 - 1).latent_dist.mean).sample / 2 + 0.5
    error = (decoded.clamp(0, 1) - pictures) ** 2
    assert after == pytest.approx(float((-10 * error.mean(dim=(1, 2, 3)).log10()).mean()), abs=1e-3)


def test_polishing_leaves_the_encoder_alone(tmp_path: Path) -> None:
    art = discs(16)
    pictures = composite(art, torch.ones(16, 3))
    vae = train_vae(art, tmp_path, steps=10, batch_size=8)
    before, encoder = reconstruction_psnr(vae, pictures), [value.clone() for value in vae.encoder.parameters()]
    polished = polish_decoder(vae, art, tmp_path, steps=15, batch_size=8)
    assert reconstruction_psnr(polished, pictures) > before + 0.5
    assert all(torch.equal(a, b) for a, b in zip(encoder, polished.encoder.parameters(), strict=True))


def test_a_denoiser_learns_and_is_read_back(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 3, 4, 8, 8, generator=generator)
    hidden, empty = torch.randn(3, 4, 128, generator=generator), torch.zeros(1, 4, 128)
    unet = train_unet(latents, hidden, empty, tmp_path, steps=40, batch_size=12)

    def loss(model: torch.nn.Module) -> float:
        with torch.no_grad():
            rows = torch.arange(3).repeat(10)
            draws = torch.Generator().manual_seed(5)
            return float(denoising_loss(model, latents[0, rows], hidden[rows], build_scheduler().alphas_cumprod, draws))

    torch.manual_seed(0)
    assert loss(unet) < 0.8 * loss(build_unet())
    assert loss(train_unet(latents, hidden, empty, tmp_path, steps=40, batch_size=12)) == loss(unet)
    assert encode_latents(build_vae().eval(), discs(2), views=2).shape == (2, 2, 4, 8, 8)


def test_a_text_tower_learns_its_targets_and_phrases(tmp_path: Path) -> None:
    tiny_text.save_tokenizer(tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    assert tokenizer.decode(tokenizer("red apple").input_ids, skip_special_tokens=True).strip() == "red apple"
    texts = ["red apple", "blue car", "dog", "cat", "tree", "sun"]
    targets = F.normalize(torch.randn(6, TEXT_DIM, generator=torch.Generator().manual_seed(0)), dim=-1)
    tower = tiny_text.train_text_tower(tokenizer, texts, targets, steps=30, batch_size=16)
    assert isinstance(tower, CLIPTextModelWithProjection)
    with torch.no_grad():
        embedded = F.normalize(tower(**tiny_text.tokenize(tokenizer, texts)).text_embeds, dim=-1)
    assert recall_at(1, embedded, targets) == 1.0
    phrases = tiny_text.word_pairs(texts, 50)
    assert len(phrases) == 50 and phrases == tiny_text.word_pairs(texts, 50) and any(" with " in p for p in phrases)


def test_jitter_moves_and_mirrors_a_little() -> None:
    pictures = (composite(discs(8), torch.rand(8, 3)) * 255).to(torch.uint8)
    moved = tiny_clip.jitter(pictures, torch.Generator().manual_seed(1))
    assert moved.shape == pictures.shape and moved.dtype == torch.uint8
    distance = (moved.float() - pictures.float()).abs().mean()
    assert 0 < float(distance) < 20


def test_scenes_are_many_pictures_from_few_drawings() -> None:
    scenes = tiny_clip.render_scenes(discs(5), 600, seed=3)
    assert scenes.shape == (600, 3, 64, 64) and scenes.dtype == torch.uint8
    assert len(scenes.flatten(1).unique(dim=0)) == 600
    assert torch.equal(scenes, tiny_clip.render_scenes(discs(5), 600, seed=3))


def test_an_unturned_drawing_stays_and_colours_stay_below_alpha() -> None:
    art = discs(4).float() / 255
    generator = torch.Generator().manual_seed(0)
    moved = tiny_clip.random_affine(art, generator, turn=0.0, zoom=(1.0, 1.0), shift=0.0)
    assert float((moved[:, 3] - art[:, 3]).abs().mean()) < 0.06  # stretched by a fifth at most
    painted = tiny_clip.recolour(art, generator)
    assert torch.equal(painted[:, 3], art[:, 3])
    assert bool((painted[:, :3] <= art[:, 3:]).all()) and not torch.allclose(painted, art, atol=0.05)


def test_a_vision_tower_learns_from_the_teacher_and_is_read_back(tmp_path: Path) -> None:
    """Six colours: after a few steps the student's vectors lie near the teacher's; the text tower stays what it was."""
    tiny_text.save_tokenizer(tmp_path)
    torch.manual_seed(0)
    text = CLIPTextModelWithProjection(tiny_text.text_config(len(CLIPTokenizer.from_pretrained(tmp_path)))).eval()
    heads = JointHeads().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(6, IMAGE_DIM, generator=generator)
    images = (torch.rand(6, 3, 1, 1, generator=generator) * 255).to(torch.uint8).expand(6, 3, 64, 64)
    texts = F.normalize(torch.randn(6, 128, generator=generator), dim=-1)

    def trained() -> CLIPModel:
        model = tiny_clip.build_clip(text, heads)
        return tiny_clip.train_vision_tower(model, images, features, heads, texts, tmp_path, steps=30, batch_size=12)

    def likeness(model: CLIPModel) -> torch.Tensor:
        with torch.no_grad():
            seen = model.get_image_features(pixel_values=images.float() / 127.5 - 1).pooler_output
        return (F.normalize(seen, dim=-1) * heads.embed_images(features)).sum(dim=-1)

    model = trained()
    assert float(likeness(model).mean()) > 0.5
    torch.testing.assert_close(likeness(trained()), likeness(model))
    torch.testing.assert_close(model.text_projection.weight, tiny_clip.build_clip(text, heads).text_projection.weight)
