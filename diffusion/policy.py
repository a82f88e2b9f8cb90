"""A Stable Diffusion pipeline as a policy: every denoising step is a Gaussian action with a log-probability."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffusion.ddim import gaussian_kl, gaussian_log_prob
from diffusion.families import FAMILIES, Conditions, Family
from diffusion.families.family import default_side, network_of, rows_of, side_by_side, stacked
from diffusion.loading import (
    DTYPES,
    add_lora,
    load_lora,
    load_pipeline,
    only_errors,
    save_lora,
    save_pipeline,
    tune_speed,
)
from diffusion.noise import Generators, gaussian
from diffusion.sampling import column
from mmrlhf.errors import UserError
from mmrlhf.models import pick_device
from mmrlhf.sharding import exchange, is_split, like, split
from mmrlhf.types import Images, Rollout

CACHED_PROMPTS = 4096
Steps = Int[Tensor, "b k"]


class DiffusionPolicy:
    """`sample` draws images, `log_prob` says how likely the drawn steps are, `reference` is the model as it was at the start.

    `load` makes one. `pipeline` is a diffusers pipeline of a class in `FAMILIES`; its UNet or transformer is what learns.
    `size` is the side of the pictures in pixels, None the model's own.
    """

    def __init__(
        self,
        pipeline: Any,
        *,
        num_steps: int = 50,
        guidance_scale: float = 5.0,
        eta: float = 1.0,
        full: bool = False,
        size: int | None = None,
    ) -> None:
        self.pipeline, self.vae = pipeline, pipeline.vae
        self.family: Family = FAMILIES[type(pipeline).__name__](pipeline)
        self.network = network_of(self.family)
        self.guidance_scale = guidance_scale
        self.latent_shape = latent_shape(self.family, size)
        self.forward = self.family.forward_process()
        self.sampler = self.family.sampler(num_steps, eta, self.latent_shape)
        self.embeddings: dict[str, Conditions] = {}
        self.empty: Conditions | None = None
        # Without an adapter to switch off, the start has to be remembered: the one case with a second copy of the weights.
        self.start = [weight.detach().clone() for weight in self.network.parameters()] if full else []

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
        shard: bool = False,
        compile: bool = False,
        channels_last: bool = False,
        attention: str | None = None,
        lora_alpha: float | None = None,
        lora_targets: str = "attention",
        lora: Path | None = None,
        size: int | None = None,
        seed: int = 0,
    ) -> "DiffusionPolicy":
        """A policy from a folder, a hub id or a tiny name.

        `lora_rank` n trains a fresh LoRA, 0 all weights, None nothing (to sample only). `lora` is a folder of trained LoRA
        weights to sample with; `reference()` switches them off too. `dtype` is that of the frozen weights; LoRA is float32.
        `shard` splits the network's weights over the processes, which must then make the same passes.
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
        if shard and channels_last:
            raise UserError("channels_last got true with shard, allowed is one of them")
        pipeline = load_pipeline(model, pick_device(device), DTYPES[dtype], network_stays=shard)
        family = FAMILIES[type(pipeline).__name__](pipeline)
        network = network_of(family)
        if lora is not None:
            load_lora(pipeline, family.network_name, lora)
        elif lora_rank:
            add_lora(network, lora_rank, lora_alpha, targets_of(family, lora_targets), seed)
        elif lora_rank == 0:
            network.requires_grad_(True)
        if gradient_checkpointing:
            network.enable_gradient_checkpointing()
        tune_speed(network, compile=compile, channels_last=channels_last, attention=attention)
        if shard:
            split(network, network._no_split_modules or (), pick_device(device))
        return cls(
            pipeline, num_steps=num_steps, guidance_scale=guidance_scale, eta=eta, full=lora_rank == 0, size=size
        )

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.network.parameters()).device

    @property
    def split(self) -> bool:
        """Whether each process has a part of the network's weights."""
        return is_split(next(self.network.parameters()))

    def parameters(self) -> list[nn.Parameter]:
        """What training changes: the LoRA weights, or all of the network's."""
        return [weight for weight in self.network.parameters() if weight.requires_grad]

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Conditions:
        """What the network is told of each prompt; each distinct prompt is encoded once and remembered.

        One at a time: in a batch the last digits depend on its size, and a resumed run would meet other batches.
        """
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.embeddings]
        if missing:
            if len(self.embeddings) + len(missing) > CACHED_PROMPTS:
                self.embeddings.clear()
                missing = list(dict.fromkeys(prompts))
            for prompt in missing:
                with only_errors():  # each text encoder warns of a long prompt: `tell_of_cut_prompts` does once
                    encoded = self.family.encode([prompt], self.device)
                self.embeddings[prompt] = {name: values[0] for name, values in encoded.items()}
        return stacked([self.embeddings[prompt] for prompt in prompts])

    def context(self, prompts: Sequence[str]) -> Conditions:
        """One row a prompt, after as many of the empty prompt where guidance takes a second pass (b or 2b rows)."""
        texts = self.embed(prompts)
        if self.guidance_scale == 1 or self.family.guidance_is_input:
            return texts
        if self.empty is None:
            with torch.no_grad():
                self.empty = self.family.unconditional(self.device)
        return side_by_side(self.empty, texts)

    def predict(
        self, latents: Float[Tensor, "b c h w"], times: Tensor, context: Conditions
    ) -> Float[Tensor, "b c h w"]:
        """The network's output with classifier-free guidance (Ho & Salimans 2022), both halves in one pass, as float32."""
        copies = rows_of(context) // len(latents)
        output = self.family.call(latents.repeat(copies, 1, 1, 1), times.repeat(copies), context, self.guidance_scale)
        if copies == 1:
            return output
        without, with_text = output.chunk(2)
        return without + self.guidance_scale * (with_text - without)

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[str],
        generator: Generators,
        initial_noise: Float[Tensor, "b c h w"] | None = None,
        noisy: Collection[int] | None = None,
    ) -> Rollout:
        """Draw one image a prompt; the rollout holds the steps that have noise.

        `generator` is one for the batch, or one for each sample, whose noise then does not depend on its neighbours.
        `initial_noise` stands in for the first draw. `noisy` are the numbers of the steps that get noise, None all that can.
        """
        shape = (len(prompts), *self.latent_shape)
        latents = gaussian(shape, generator, self.device) if initial_noise is None else initial_noise.to(self.device)
        context = self.context(prompts)
        steps = noisy_steps(self.sampler.gaussian_steps(), noisy)
        before, after, log_probs = [], [], []
        for number, step in enumerate(self.sampler.timesteps.to(self.device)):
            timesteps = step.expand(len(prompts))
            at = self.sampler.coefficients(timesteps, noisy=number in steps)
            output = self.predict(latents, self.sampler.times(timesteps), context)
            mean = self.sampler.mean(output, latents, at)
            if number in steps:
                before.append(latents)
                latents = mean + column(at.sigma) * gaussian(shape, generator, self.device)
                after.append(latents)
                log_probs.append(gaussian_log_prob(latents, mean, at.sigma))
            else:
                latents = mean
        empty = latents.new_zeros(len(prompts), 0, *self.latent_shape)
        return Rollout(
            tuple(prompts),
            torch.stack(before, dim=1) if before else empty,
            torch.stack(after, dim=1) if after else empty,
            self.sampler.timesteps[steps].to(self.device).expand(len(prompts), -1),
            torch.stack(log_probs, dim=1) if log_probs else latents.new_zeros(len(prompts), 0),
            self.decode(latents),
            latents,
        )

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 height width"]:
        """Latents to images."""
        return self.decode_with_gradients(latents)

    def decode_with_gradients(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 height width"]:
        """Latents to images, which gradients pass except where a pixel is cut to [0, 1]."""
        scaled = latents / self.vae.config.scaling_factor + (self.vae.config.get("shift_factor") or 0.0)
        return (self.vae.decode(scaled.to(self.vae.dtype), return_dict=False)[0].float() / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def encode_images(self, images: Images) -> Float[Tensor, "b c y x"]:
        """Images of the policy's size to latents: the mean of what the autoencoder makes of them."""
        pixels = (2 * images - 1).to(self.device, self.vae.dtype)
        latents = self.vae.encode(pixels).latent_dist.mode().float()
        return (latents - (self.vae.config.get("shift_factor") or 0.0)) * self.vae.config.scaling_factor

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
        for step in chosen.to(self.device).T:
            timesteps, latents = rollout.timesteps[rows, step], rollout.latents[rows, step]
            at = self.sampler.coefficients(timesteps)
            output = self.predict(latents, self.sampler.times(timesteps), context)
            yield rollout.next_latents[rows, step], self.sampler.mean(output, latents, at), at.sigma

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the model is the one that was loaded: LoRA switched off, or the remembered weights put in place."""
        adapted = bool(getattr(self.network, "peft_config", None))
        if adapted:
            self.network.disable_adapters()
        self._swap()
        try:
            yield
        finally:
            self._swap()
            if adapted:
                self.network.enable_adapters()

    def _swap(self) -> None:
        """Exchange the present weights with the remembered start (nothing where none is remembered)."""
        weights = list(self.network.parameters()) if self.start else []
        for place, weight in enumerate(weights):
            self.start[place] = exchange(weight, self.start[place])

    def state_dict(self) -> dict[str, Tensor]:
        """What training has changed, for a checkpoint."""
        return {name: weight.detach() for name, weight in self.network.named_parameters() if weight.requires_grad}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up what `state_dict` gave. UserError where it is of another LoRA or model."""
        own = {name: weight for name, weight in self.network.named_parameters() if weight.requires_grad}
        if {name: weight.shape for name, weight in own.items()} != {name: value.shape for name, value in state.items()}:
            raise UserError(
                "the checkpoint's weights do not fit the model: resume with the model and --lora-rank of the run"
            )
        with torch.no_grad():
            for name, value in state.items():
                own[name].copy_(like(value, own[name]))

    def save(self, folder: Path) -> Path:
        """Write what was trained: LoRA weights into `folder`, or the whole model as `folder`/model; returns the path to load.

        Where the weights are split over processes, all must call it, and the first one writes.
        """
        if getattr(self.network, "peft_config", None):
            return save_lora(self.pipeline, self.family.network_name, folder).parent
        return save_pipeline(self.pipeline, self.family.network_name, folder / "model")


def latent_shape(family: Family, size: int | None) -> tuple[int, int, int]:
    """(c, h, w) of one sample's latents for pictures of `size` pixels, None the model's own size."""
    factor = family.pipeline.vae_scale_factor
    step = 2 * factor  # networks halve the latents at least once
    if size is not None and (size < step or size % step):
        raise UserError(f"size got {size}, allowed are multiples of {step} for this model")
    side = default_side(family) if size is None else size // factor
    return family.latent_channels, side, side


def targets_of(family: Family, name: str) -> tuple[str, ...]:
    """The ends of the names of the layers that get LoRA weights."""
    if name not in family.lora_targets:
        raise UserError(f"lora_targets got '{name}', allowed are {', '.join(family.lora_targets)}")
    return family.lora_targets[name]


def noisy_steps(possible: int, wanted: Collection[int] | None) -> list[int]:
    """The numbers of the steps that get noise, in order."""
    if wanted is not None and not set(wanted) <= set(range(possible)):
        raise UserError(f"noisy steps got {sorted(wanted)}, allowed are 0 to {possible - 1} for this schedule")
    return list(range(possible)) if wanted is None else sorted(wanted)
