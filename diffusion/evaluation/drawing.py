"""The pictures of a tuned model and of its base from the same noise, and the KL between their denoising paths."""

import gc
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from diffusion.evaluation.config import MAY_DIFFER, EvalConfig, Key, spread
from diffusion.evaluation.prompt_files import CategorisedPrompt
from diffusion.generate import draw, write_png
from diffusion.policy import DiffusionPolicy
from diffusion.trained_with import tell_of_other_drawing
from mmrlhf.errors import UserError
from mmrlhf.models import TINY_NAMES
from mmrlhf.runs import CONTENT, METRICS, check_folder, claim_folder, content_digest, settings
from mmrlhf.seeding import seeded


def draw_both(
    config: EvalConfig, entries: Sequence[CategorisedPrompt], keys: Sequence[Key]
) -> tuple[bool, dict[str, Any] | None]:
    """Draw what is missing in base/ and tuned/. (whether both began from the same noise, the KL of the paths or None)

    One model is held on the device at a time; a broken one is found before anything is written.
    """
    wanted = settings(config, [f"{entry.category}\t{entry.prompt}" for entry in entries])
    if config.base is not None and config.base not in TINY_NAMES:
        if digest := content_digest(Path(config.base), CONTENT["model"]):
            wanted["base_sha256"] = digest
    check_folder(config.out, wanted, resume=True, may_differ=MAY_DIFFER)
    base_shape = load(config, config.base, None, "cpu").latent_shape if config.base else None
    policy = load(config, config.model, config.lora, config.device)
    tell_of_other_drawing(config, config.model, config.lora)
    paired = base_shape in (None, policy.latent_shape)
    claim_folder(config.out, wanted)
    draw_side(policy, "tuned", entries, keys, config)
    if config.base:
        del policy
        gc.collect()
        draw_side(load(config, config.base, None, config.device), "base", entries, keys, config)
        return paired, None
    with policy.reference():
        draw_side(policy, "base", entries, keys, config)
    return paired, path_kl(policy, entries, keys, config)


def load(config: EvalConfig, model: str, lora: Path | None, device: str) -> DiffusionPolicy:
    """A model to draw with."""
    return DiffusionPolicy.load(
        model,
        lora=lora,
        num_steps=config.num_steps,
        guidance_scale=config.guidance_scale,
        eta=config.eta,
        size=config.size,
        device=device,
        dtype=config.dtype,
    )


def draw_side(
    policy: DiffusionPolicy,
    side: str,
    entries: Sequence[CategorisedPrompt],
    keys: Sequence[Key],
    config: EvalConfig,
) -> None:
    """The pictures of one side that are not there yet. UserError for one that is not a number."""
    folder = config.out / side
    folder.mkdir(exist_ok=True)
    missing = [key for key in keys if not (folder / key.name).exists()]
    with tqdm(total=len(keys), initial=len(keys) - len(missing), desc=side, unit="image") as bar:
        for start in range(0, len(missing), config.batch_size):
            part = missing[start : start + config.batch_size]
            started = time.monotonic()
            images = draw(policy, [entries[key.row].prompt for key in part], part, config.seed)
            if not images.isfinite().all():
                raise UserError(
                    f"the {side} model drew pictures that are not numbers: use --dtype float32, or an earlier checkpoint"
                )
            for key, image in zip(part, images, strict=True):
                write_png(image, folder / key.name)
            with open(config.out / METRICS, "a", encoding="utf-8") as file:
                line = {"side": side, "images": len(part), "seconds": time.monotonic() - started}
                file.write(json.dumps(line) + "\n")
            bar.update(len(part))


def path_kl(
    policy: DiffusionPolicy, entries: Sequence[CategorisedPrompt], keys: Sequence[Key], config: EvalConfig
) -> dict[str, Any] | None:
    """KL of the tuned model's denoising paths to the base, nats a picture, on pictures spread over the prompts.

    None where no step has noise, or none was asked for.
    """
    chosen = [keys[place] for place in spread(len(keys), config.kl_samples)] if config.kl_samples else []
    if not chosen or policy.sampler.gaussian_steps() == 0:
        return None
    total = 0.0
    for start in tqdm(range(0, len(chosen), config.batch_size), desc="KL", unit="batch"):
        part = chosen[start : start + config.batch_size]
        rollout = policy.sample([entries[key.row].prompt for key in part], [seeded(config.seed, *key) for key in part])
        total += float(policy.kl_to_reference(rollout)) * len(part)
    return {"nats": total / len(chosen), "samples": len(chosen)}
