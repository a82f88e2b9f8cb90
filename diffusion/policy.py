"""A Stable Diffusion pipeline as a policy: every denoising step is a Gaussian action with a log-probability."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffusion.ddim import DDIM, gaussian_kl, gaussian_log_prob
from diffusion.loading import DTYPES, add_lora, load_lora, load_pipeline, pick_device, save_lora, save_pipeline
from diffusion.noise import Generators, gaussian
from mmrlhf.errors import UserError
from mmrlhf.types import Rollout

CACHED_PROMPTS = 4096
Steps = Int[Tensor, "b k"]


class DiffusionPolicy:
    """`sample` draws images, `log_prob` says how likely the drawn steps are, `reference` is the model as it was at the start.

    `load` makes one. `pipeline` is a diffusers StableDiffusionPipeline; the UNet is what learns.
    """

    def __init__(
        self, pipeline: Any, *, num_steps: int = 50, guidance_scale: float = 5.0, eta: float = 1.0, full: bool = False
    ) -> None:
        self.pipeline, self.unet, self.vae = pipeline, pipeline.unet, pipeline.vae
        self.guidance_scale = guidance_scale
        self.ddim = DDIM(pipeline.scheduler.config, num_steps, eta)
        self.embeddings: dict[str, Tensor] = {}
        # Without an adapter to switch off, the start has to be remembered: the one case with a second copy of the weights.
        self.start = [weight.detach().clone() for weight in self.unet.parameters()] if full else []

    @classmethod
    def load(
        cls,
        model: str,
        *,
        lora_rank: int | None = None,
        num_steps: int = 50,
        guidance_scale: float = 5.0,
        eta: float = 1.0,
        device: str = "auto",
        dtype: str = "float32",
        gradient_checkpointing: bool = False,
        lora_alpha: float | None = None,
        lora_targets: str = "attention",
        lora: Path | None = None,
        seed: int = 0,
    ) -> "DiffusionPolicy":
        """A policy from a folder, a hub id or a tiny name.

        `lora_rank` n trains a fresh LoRA, 0 all weights, None nothing (to sample only). `lora` is a folder of trained LoRA
        weights to sample with; `reference()` switches them off too. `dtype` is that of the frozen weights; LoRA is float32.
        """
        if dtype not in DTYPES:
            raise UserError(f"dtype got '{dtype}', allowed are {', '.join(DTYPES)}")
        if lora_rank == 0 and dtype != "float32":
            raise UserError(
                f"dtype got '{dtype}' with lora_rank 0, allowed is float32: small updates vanish in 16 bits"
            )
        if lora is not None and lora_rank is not None:
            raise UserError(
                "lora and lora_rank were both given, allowed is one: leave out lora_rank to sample with lora"
            )
        pipeline = load_pipeline(model, pick_device(device), DTYPES[dtype])
        if lora is not None:
            load_lora(pipeline, lora)
        elif lora_rank:
            add_lora(pipeline.unet, lora_rank, lora_alpha, lora_targets, seed)
        elif lora_rank == 0:
            pipeline.unet.requires_grad_(True)
        if gradient_checkpointing:
            pipeline.unet.enable_gradient_checkpointing()
        return cls(pipeline, num_steps=num_steps, guidance_scale=guidance_scale, eta=eta, full=lora_rank == 0)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.unet.parameters()).device

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(c, h, w) of one sample's latents."""
        side = self.unet.config.sample_size
        height, width = side if isinstance(side, list | tuple) else (side, side)
        return self.unet.config.in_channels, height, width

    def parameters(self) -> list[nn.Parameter]:
        """What training changes: the LoRA weights, or the UNet's."""
        return [weight for weight in self.unet.parameters() if weight.requires_grad]

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Float[Tensor, "b l d"]:
        """The text encoder's output for each prompt; each distinct prompt is encoded once and remembered."""
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.embeddings]
        if missing:
            if len(self.embeddings) + len(missing) > CACHED_PROMPTS:
                self.embeddings.clear()
                missing = list(dict.fromkeys(prompts))
            encoded, _ = self.pipeline.encode_prompt(missing, self.device, 1, False)
            self.embeddings.update(zip(missing, encoded, strict=True))
        return torch.stack([self.embeddings[prompt] for prompt in prompts])

    def context(self, prompts: Sequence[str]) -> Float[Tensor, "n l d"]:
        """What the UNet attends to: one row a prompt, after as many of the empty prompt where guidance is on (n = b or 2b)."""
        texts = self.embed(prompts)
        if self.guidance_scale == 1:
            return texts
        return torch.cat([self.embed([""]).expand_as(texts), texts])

    def predict(
        self, latents: Float[Tensor, "b c h w"], timesteps: Int[Tensor, " b"], context: Float[Tensor, "n l d"]
    ) -> Float[Tensor, "b c h w"]:
        """The UNet's output with classifier-free guidance (Ho & Salimans 2022), both halves in one pass, as float32."""
        copies = len(context) // len(latents)
        inputs = latents.to(self.unet.dtype).repeat(copies, 1, 1, 1)
        output = self.unet(inputs, timesteps.repeat(copies), encoder_hidden_states=context, return_dict=False)[
            0
        ].float()
        if copies == 1:
            return output
        without, with_text = output.chunk(2)
        return without + self.guidance_scale * (with_text - without)

    @torch.no_grad()
    def sample(
        self, prompts: Sequence[str], generator: Generators, initial_noise: Float[Tensor, "b c h w"] | None = None
    ) -> Rollout:
        """Draw one image a prompt; the rollout holds the steps that have noise (all, or all but the last).

        `generator` is one for the batch, or one for each sample, whose noise then does not depend on its neighbours.
        `initial_noise` stands in for the first draw.
        """
        shape = (len(prompts), *self.latent_shape)
        latents = gaussian(shape, generator, self.device) if initial_noise is None else initial_noise.to(self.device)
        context = self.context(prompts)
        gaussian_steps = self.ddim.gaussian_steps()
        path, log_probs = [latents], []
        for number, timestep in enumerate(self.ddim.timesteps.tolist()):
            timesteps = torch.full((len(prompts),), timestep, device=self.device)
            at = self.ddim.coefficients(timesteps)
            mean = self.ddim.mean(self.predict(latents, timesteps, context), latents, at)
            latents = mean
            if number < gaussian_steps:
                latents = mean + at.sigma[:, None, None, None] * gaussian(shape, generator, self.device)
                path.append(latents)
                log_probs.append(gaussian_log_prob(latents, mean, at.sigma))
        states = torch.stack(path, dim=1)
        drawn = torch.stack(log_probs, dim=1) if log_probs else torch.zeros(len(prompts), 0, device=self.device)
        steps = self.ddim.timesteps[:gaussian_steps].to(self.device).expand(len(prompts), -1)
        return Rollout(tuple(prompts), states[:, :-1], states[:, 1:], steps, drawn, self.decode(latents))

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 height width"]:
        """Latents to images."""
        scaled = (latents / self.vae.config.scaling_factor).to(self.vae.dtype)
        return (self.vae.decode(scaled, return_dict=False)[0].float() / 2 + 0.5).clamp(0, 1)

    def log_prob(self, rollout: Rollout, steps: Steps | None = None) -> Float[Tensor, "b k"]:
        """The log-probability of the drawn steps under the present weights, with gradients; equal to `rollout.log_probs`
        at the weights that drew it. `steps` picks, for each sample, which of its steps (indices into t); None is all.
        """
        columns = [gaussian_log_prob(drawn, mean, sigma) for drawn, mean, sigma in self.each_step(rollout, steps)]
        return torch.stack(columns, dim=1)

    @torch.no_grad()
    def kl_to_reference(self, rollout: Rollout) -> Float[Tensor, ""]:
        """KL of the whole denoising path to the start: Σ over steps of ‖μ_θ − μ_ref‖²/(2σ²), mean over samples.

        In nats, summed over latent dimensions and steps (not averaged, unlike the log-probs): exact for the drawn states.
        """
        with self.reference():
            reference = [mean for _, mean, _ in self.each_step(rollout)]
        now = self.each_step(rollout)
        steps = [gaussian_kl(mean, other, sigma) for (_, mean, sigma), other in zip(now, reference, strict=True)]
        return torch.stack(steps).sum(dim=0).mean()

    def each_step(self, rollout: Rollout, steps: Steps | None = None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(what was drawn "b c h w", its mean under the present weights "b c h w", its spread "b") step after step."""
        batch, count = rollout.log_probs.shape
        rows = torch.arange(batch, device=self.device)
        chosen = torch.arange(count).expand(batch, -1) if steps is None else steps
        context = self.context(rollout.prompts)
        for column in chosen.to(self.device).T:
            timesteps, latents = rollout.timesteps[rows, column], rollout.latents[rows, column]
            at = self.ddim.coefficients(timesteps)
            mean = self.ddim.mean(self.predict(latents, timesteps, context), latents, at)
            yield rollout.next_latents[rows, column], mean, at.sigma

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the model is the one that was loaded: LoRA switched off, or the remembered weights put in place."""
        adapted = bool(getattr(self.unet, "peft_config", None))
        if adapted:
            self.unet.disable_adapters()
        self._swap()
        try:
            yield
        finally:
            self._swap()
            if adapted:
                self.unet.enable_adapters()

    def _swap(self) -> None:
        """Exchange the present weights with the remembered start (nothing where none is remembered)."""
        weights = list(self.unet.parameters()) if self.start else []
        for place, weight in enumerate(weights):
            weight.data, self.start[place] = self.start[place], weight.data

    def state_dict(self) -> dict[str, Tensor]:
        """What training has changed, for a checkpoint."""
        return {name: weight.detach() for name, weight in self.unet.named_parameters() if weight.requires_grad}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up what `state_dict` gave. UserError where it is of another LoRA or model."""
        own = {name: weight for name, weight in self.unet.named_parameters() if weight.requires_grad}
        if {name: weight.shape for name, weight in own.items()} != {name: value.shape for name, value in state.items()}:
            raise UserError(
                "the checkpoint's weights do not fit the model: resume with the model and --lora-rank of the run"
            )
        with torch.no_grad():
            for name, value in state.items():
                own[name].copy_(value)

    def save(self, folder: Path) -> Path:
        """Write what was trained: LoRA weights into `folder`, or the whole model as `folder`/model; returns the path to load."""
        if getattr(self.unet, "peft_config", None):
            return save_lora(self.unet, folder).parent
        return save_pipeline(self.pipeline, folder / "model")
