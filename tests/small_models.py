"""Small StableDiffusionPipelines with random weights, in the format of the real ones: 64 px, latents 4×8×8."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

MAX_LENGTH = 24
MERGES = ["c a", "ca t</w>", "d o", "do g</w>", "r e", "re d</w>"]


def small_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIPTokenizer that knows all bytes and a few words; its two files are left in `folder`."""
    plain = [chr(byte) for byte in (*range(33, 127), *range(161, 173), *range(174, 256))]
    letters = plain + [chr(256 + i) for i in range(256 - len(plain))]
    words = ["".join(merge.split()) for merge in MERGES]
    vocabulary = [*letters, *(letter + "</w>" for letter in letters), *words, "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = MAX_LENGTH
    return tokenizer


def small_stable_diffusion(
    folder: Path, *, scheduler: str = "ddim", prediction_type: str = "epsilon", seed: int = 0
) -> StableDiffusionPipeline:
    """Build a pipeline, save it to `folder` with `save_pretrained`, and return it. `scheduler`: ddim or pndm."""
    tokenizer = small_tokenizer(folder / "tokenizer-files")
    noise = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
    kind = {"ddim": DDIMScheduler, "pndm": PNDMScheduler}[scheduler]
    extra = {"clip_sample": False, "set_alpha_to_one": False} if scheduler == "ddim" else {"skip_prk_steps": True}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = StableDiffusionPipeline(
            vae=small_vae(),
            text_encoder=small_text_encoder(len(tokenizer)),
            tokenizer=tokenizer,
            unet=small_unet(),
            scheduler=kind(**noise, **extra, prediction_type=prediction_type),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.set_progress_bar_config(disable=True)
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.eval()
    pipeline.save_pretrained(folder)
    return pipeline


def small_unet() -> UNet2DConditionModel:
    """A UNet on 8×8×4 latents with cross-attention at both resolutions."""
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=2,
        norm_num_groups=8,
    )


def small_vae() -> AutoencoderKL:
    """An autoencoder with factor 8 and 4 latent channels."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
    )


def small_text_encoder(vocabulary: int) -> CLIPTextModel:
    """A CLIP text tower, 32 wide."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=MAX_LENGTH,
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=vocabulary - 1,
        )
    )
