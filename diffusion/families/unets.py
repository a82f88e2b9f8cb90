"""Pipelines whose UNet predicts noise or velocity: Stable Diffusion 1 and 2, and SDXL with its second text encoder."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion.ddim import DDIM
from diffusion.families.family import ATTENTION, Conditions, tokenizers_of
from diffusion.forward import ForwardProcess, VariancePreserving
from diffusion.sampling import Sampler

FEED_FORWARD = ("ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "time_emb_proj")
LORA_TARGETS = {
    "attention": ATTENTION,
    "attention-ff": ATTENTION + FEED_FORWARD,
    "all": ATTENTION + FEED_FORWARD + CONVOLUTIONS,
}


class StableDiffusion:
    """StableDiffusionPipeline: ε- or v-prediction, one CLIP text encoder."""

    network_name = "unet"
    guidance_is_input = False
    lora_targets = LORA_TARGETS

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline

    @property
    def latent_channels(self) -> int:
        return int(self.pipeline.unet.config.in_channels)

    def encode(self, prompts: Sequence[str], device: torch.device) -> Conditions:
        """The text encoder's output, a row a token."""
        encoded, _ = self.pipeline.encode_prompt(list(prompts), device, 1, False)
        return {"text": encoded}

    def longest_prompts(self) -> list[tuple[Any, int]]:
        """As many as the CLIPs have positions."""
        return [(tokenizer, tokenizer.model_max_length) for tokenizer in tokenizers_of(self.pipeline)]

    def unconditional(self, device: torch.device) -> Conditions:
        """That of the empty prompt."""
        return self.encode([""], device)

    def call(
        self, latents: Float[Tensor, "b c h w"], times: Tensor, conditions: Conditions, guidance: float
    ) -> Float[Tensor, "b c h w"]:
        """The UNet's output, as float32."""
        unet = self.pipeline.unet
        return unet(
            latents.to(unet.dtype), times, encoder_hidden_states=conditions["text"], return_dict=False
        )[0].float()  # fmt: skip

    def forward_process(self) -> ForwardProcess:
        """The schedule of DDPM."""
        return VariancePreserving(self.pipeline.scheduler.config)

    def sampler(self, num_steps: int, eta: float, latent_shape: tuple[int, int, int]) -> Sampler:
        """DDIM with noise."""
        return DDIM(self.pipeline.scheduler.config, num_steps, eta)


class StableDiffusionXL(StableDiffusion):
    """StableDiffusionXLPipeline: two text encoders, and the pooled text and the sizes as added conditions."""

    def encode(self, prompts: Sequence[str], device: torch.device) -> Conditions:
        """Tokens of both encoders side by side, and the pooled text of the second."""
        text, _, pooled, _ = self.pipeline.encode_prompt(
            list(prompts), device=device, do_classifier_free_guidance=False
        )
        return {"text": text, "pooled": pooled}

    def unconditional(self, device: torch.device) -> Conditions:
        """That of the empty prompt, or zeros where the pipeline was trained with them."""
        empty = self.encode([""], device)
        if self.pipeline.config.get("force_zeros_for_empty_prompt", True):
            return {name: torch.zeros_like(value) for name, value in empty.items()}
        return empty

    def call(
        self, latents: Float[Tensor, "b c h w"], times: Tensor, conditions: Conditions, guidance: float
    ) -> Float[Tensor, "b c h w"]:
        """The UNet's output for pictures said to be of this size and not cropped, as float32."""
        unet = self.pipeline.unet
        height, width = (side * self.pipeline.vae_scale_factor for side in latents.shape[-2:])
        sizes = torch.tensor([height, width, 0, 0, height, width], dtype=unet.dtype, device=latents.device)
        added = {"text_embeds": conditions["pooled"], "time_ids": sizes.expand(len(latents), -1)}
        return unet(
            latents.to(unet.dtype), times, encoder_hidden_states=conditions["text"], added_cond_kwargs=added,
            return_dict=False,
        )[0].float()  # fmt: skip
