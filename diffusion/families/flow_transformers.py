"""Pipelines whose transformer predicts the velocity of a rectified flow: Stable Diffusion 3 and 3.5, and Flux."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from jaxtyping import Float
from torch import Tensor

from diffusion.families.family import ATTENTION, Conditions, tokenizers_of
from diffusion.flow_sde import FlowSDE
from diffusion.forward import ForwardProcess, RectifiedFlow
from diffusion.sampling import Sampler

JOINT_ATTENTION = (*ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")
SINGLE_BLOCKS = ("proj_mlp", "proj_out")
SD3_T5_TOKENS, FLUX_T5_TOKENS = 256, 512  # what their pipelines take by default
TRAINING_STEPS = 1000  # the networks count time from 0 to this


class StableDiffusion3:
    """StableDiffusion3Pipeline: up to three text encoders, classifier-free guidance."""

    network_name = "transformer"
    guidance_is_input = False
    lora_targets = {
        "attention": JOINT_ATTENTION,
        "attention-ff": JOINT_ATTENTION + FEED_FORWARD,
        "all": JOINT_ATTENTION + FEED_FORWARD,
    }

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline

    @property
    def latent_channels(self) -> int:
        return int(self.pipeline.transformer.config.in_channels)

    def encode(self, prompts: Sequence[str], device: torch.device) -> Conditions:
        """Tokens of all text encoders, and the pooled text."""
        text, _, pooled, _ = self.pipeline.encode_prompt(
            list(prompts), None, None, device=device, do_classifier_free_guidance=False
        )
        return {"text": text, "pooled": pooled}

    def longest_prompts(self) -> list[tuple[Any, int]]:
        """As many as the CLIPs have positions; of T5 the first 256."""
        clips = [(tokenizer, tokenizer.model_max_length) for tokenizer in tokenizers_of(self.pipeline)[:2]]
        return clips + [(tokenizer, SD3_T5_TOKENS) for tokenizer in tokenizers_of(self.pipeline)[2:]]

    def unconditional(self, device: torch.device) -> Conditions:
        """That of the empty prompt."""
        return self.encode([""], device)

    def call(
        self, latents: Float[Tensor, "b c h w"], times: Float[Tensor, " b"], conditions: Conditions, guidance: float
    ) -> Float[Tensor, "b c h w"]:
        """The velocity, as float32."""
        network = self.pipeline.transformer
        return network(
            hidden_states=latents.to(network.dtype), timestep=times, encoder_hidden_states=conditions["text"],
            pooled_projections=conditions["pooled"], return_dict=False,
        )[0].float()  # fmt: skip

    def forward_process(self) -> ForwardProcess:
        """A straight line from sample to noise."""
        return RectifiedFlow(TRAINING_STEPS)

    def sampler(self, num_steps: int, eta: float, latent_shape: tuple[int, int, int]) -> Sampler:
        """The stochastic flow, on the σ that the pipeline would take."""
        config = self.pipeline.scheduler.config
        patch = self.pipeline.transformer.config.patch_size
        mu = shift_of(config, latent_shape, patch, most=1.16) if config.get("use_dynamic_shifting") else None
        return FlowSDE(config, num_steps, eta, mu=mu)


class Flux:
    """FluxPipeline: latents packed two by two, CLIP and T5, and the guidance scale as an input of guidance-distilled models."""

    network_name = "transformer"
    lora_targets = {
        "attention": JOINT_ATTENTION,
        "attention-ff": JOINT_ATTENTION + FEED_FORWARD,
        "all": JOINT_ATTENTION + FEED_FORWARD + SINGLE_BLOCKS,
    }
    guidance_is_input = True

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline

    @property
    def latent_channels(self) -> int:
        return int(self.pipeline.transformer.config.in_channels) // 4

    def encode(self, prompts: Sequence[str], device: torch.device) -> Conditions:
        """T5's tokens, and CLIP's pooled text."""
        text, pooled, _ = self.pipeline.encode_prompt(list(prompts), None, device=device)
        return {"text": text, "pooled": pooled}

    def longest_prompts(self) -> list[tuple[Any, int]]:
        """As many as CLIP has positions; of T5 the first 512."""
        clip, t5 = tokenizers_of(self.pipeline)
        return [(clip, clip.model_max_length), (t5, FLUX_T5_TOKENS)]

    def unconditional(self, device: torch.device) -> Conditions:
        """That of the empty prompt (never asked for: the guidance scale is an input)."""
        return self.encode([""], device)

    def call(
        self, latents: Float[Tensor, "b c h w"], times: Float[Tensor, " b"], conditions: Conditions, guidance: float
    ) -> Float[Tensor, "b c h w"]:
        """The velocity, as float32."""
        network, (count, channels, height, width) = self.pipeline.transformer, latents.shape
        packed = latents.view(count, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
        packed = packed.reshape(count, height * width // 4, 4 * channels)
        places = torch.zeros(height // 2, width // 2, 3, device=latents.device, dtype=network.dtype)
        places[..., 1] += torch.arange(height // 2, device=latents.device)[:, None]
        places[..., 2] += torch.arange(width // 2, device=latents.device)
        texts = torch.zeros(conditions["text"].shape[1], 3, device=latents.device, dtype=network.dtype)
        scale = torch.full((count,), guidance, device=latents.device) if network.config.guidance_embeds else None
        velocity = network(
            hidden_states=packed.to(network.dtype), timestep=times / TRAINING_STEPS, guidance=scale,
            pooled_projections=conditions["pooled"], encoder_hidden_states=conditions["text"], txt_ids=texts,
            img_ids=places.view(-1, 3), return_dict=False,
        )[0]  # fmt: skip
        velocity = velocity.view(count, height // 2, width // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
        return velocity.reshape(count, channels, height, width).float()

    def forward_process(self) -> ForwardProcess:
        """A straight line from sample to noise."""
        return RectifiedFlow(TRAINING_STEPS)

    def sampler(self, num_steps: int, eta: float, latent_shape: tuple[int, int, int]) -> Sampler:
        """The stochastic flow, on the σ that the pipeline would take: equally spaced, then shifted by the picture's size."""
        config = self.pipeline.scheduler.config
        spaced = None if config.get("use_flow_sigmas") else np.linspace(1.0, 1 / num_steps, num_steps).tolist()
        return FlowSDE(config, num_steps, eta, mu=shift_of(config, latent_shape, 2, most=1.15), sigmas=spaced)


def shift_of(config: Any, latent_shape: tuple[int, int, int], patch: int, most: float) -> float:
    """How far the σ of pictures of this size are moved towards noise, as the pipelines do."""
    tokens = (latent_shape[1] // patch) * (latent_shape[2] // patch)
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    return float(calculate_shift(tokens, low, high, config.get("base_shift", 0.5), config.get("max_shift", most)))
