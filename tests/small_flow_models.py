"""Small pipelines of the other classes with random weights, in the format of the real ones: SDXL, Stable Diffusion 3, Flux."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from tests.small_models import MAX_LENGTH, small_tokenizer

WORDS = ["<pad>", "</s>", "<unk>", "a", "cat", "dog", "red"]


def small_pipeline(name: str, folder: Path, *, seed: int = 0) -> Any:
    """One of `StableDiffusionXLPipeline`, `StableDiffusion3Pipeline`, `FluxPipeline`, saved to `folder` and returned."""
    make = {"StableDiffusionXLPipeline": small_sdxl, "StableDiffusion3Pipeline": small_sd3, "FluxPipeline": small_flux}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = make[name](folder)
    pipeline.set_progress_bar_config(disable=True)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    pipeline.save_pretrained(folder)
    return pipeline


def small_sdxl(folder: Path) -> DiffusionPipeline:
    """Two text encoders, 64 wide together; the second one's pooled text and six sizes as added conditions; v-prediction."""
    tokenizer = small_tokenizer(folder / "tokenizer-files")
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=2,
        norm_num_groups=8,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 32,
    )
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1, clip_sample=False,
        set_alpha_to_one=False, prediction_type="v_prediction",
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=small_vae(4),
        text_encoder=CLIPTextModel(text_config(len(tokenizer))),
        text_encoder_2=CLIPTextModelWithProjection(text_config(len(tokenizer))),
        tokenizer=tokenizer,
        tokenizer_2=small_tokenizer(folder / "tokenizer-files"),
        unet=unet,
        scheduler=scheduler,
        add_watermarker=False,
    )


def small_sd3(folder: Path) -> DiffusionPipeline:
    """All three text encoders; 16 latent channels; σ shifted by 3."""
    tokenizer = small_tokenizer(folder / "tokenizer-files")
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=64,
        pooled_projection_dim=64,
        pos_embed_max_size=16,
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=small_vae(16),
        text_encoder=CLIPTextModelWithProjection(text_config(len(tokenizer))),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(text_config(len(tokenizer))),
        tokenizer_2=small_tokenizer(folder / "tokenizer-files"),
        text_encoder_3=small_t5(64),
        tokenizer_3=small_t5_tokenizer(),
    )


def small_flux(folder: Path) -> DiffusionPipeline:
    """Guidance-distilled; one double and one single block; σ shifted by the picture's size."""
    tokenizer = small_tokenizer(folder / "tokenizer-files")
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    )
    pipeline = FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=small_vae(16),
        text_encoder=CLIPTextModel(text_config(len(tokenizer))),
        tokenizer=tokenizer,
        text_encoder_2=small_t5(32),
        tokenizer_2=small_t5_tokenizer(),
    )
    return pipeline


def small_vae(channels: int) -> AutoencoderKL:
    """An autoencoder with factor 8 and, where it has 16 channels, a shift, as those of the flow models."""
    shift = {"shift_factor": 0.1, "scaling_factor": 1.5} if channels == 16 else {}
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=64,
        use_quant_conv=channels == 4,
        use_post_quant_conv=channels == 4,
        **shift,
    )


def text_config(vocabulary: int) -> CLIPTextConfig:
    """A CLIP text tower 32 wide, which pools at the end of the text."""
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=32,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )


def small_t5(width: int) -> T5EncoderModel:
    """A T5 encoder."""
    return T5EncoderModel(T5Config(vocab_size=len(WORDS), d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2))


def small_t5_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words, and an end of sentence."""
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=32
    )
