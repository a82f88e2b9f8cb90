"""What differs between the classes of text-to-image pipelines: conditions, the network's inputs, its schedule, its LoRA."""

from diffusion.families.family import Conditions, Family
from diffusion.families.flow_transformers import Flux, StableDiffusion3
from diffusion.families.unets import StableDiffusion, StableDiffusionXL

FAMILIES: dict[str, type[Family]] = {
    "StableDiffusionPipeline": StableDiffusion,
    "StableDiffusionXLPipeline": StableDiffusionXL,
    "StableDiffusion3Pipeline": StableDiffusion3,
    "FluxPipeline": Flux,
}

__all__ = ["FAMILIES", "Conditions", "Family"]
