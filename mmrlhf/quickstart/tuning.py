"""Last stages: fine-tune on the learned reward alone, and measure on held-out prompts what it did."""

import dataclasses
import math
from typing import Any

import numpy as np

from mmrlhf.images import load_images, save_image
from mmrlhf.quickstart.candidates import HELD_OUT_SEED, load_policy, sample_images, split_prompts
from mmrlhf.quickstart.rating import IMAGE_SIZE, pictures
from mmrlhf.quickstart.run import Run
from mmrlhf.rewards.clip import CLIPReward
from mmrlhf.statistics import bootstrap_ci
from mmrlhf.taste import taste
from mmrlhf.tiny.judge import Judge


def fine_tune(run: Run) -> dict[str, Any]:
    """Denoising Diffusion Policy Optimization with LoRA on the learned reward; goes on from its own checkpoints."""
    from diffusion.ddpo import DDPOConfig, train

    config, folder = run.config, run.folder / "ddpo"
    prompts = run.folder / "train_prompts.txt"
    prompts.write_text("\n".join(split_prompts(config)[0]) + "\n")
    settings = DDPOConfig(
        model=config.model,
        prompts=prompts,
        reward=str(run.folder / "reward"),
        out=folder,
        epochs=config.epochs,
        samples_per_epoch=config.samples_per_epoch,
        sample_batch_size=config.samples_per_epoch,
        samples_per_prompt=config.samples_per_prompt,
        prompt_min_count=min(16, config.samples_per_prompt),
        train_batch_size=config.train_batch_size,
        num_steps=config.num_steps,
        guidance_scale=config.guidance_scale,
        lora_rank=config.lora_rank,
        learning_rate=config.learning_rate,
        clip_range=config.clip_range,
        seed=config.seed,
        resume=folder.exists(),
    )
    result = train(settings)
    return {"epochs": result.metrics, "lora": str(result.out.relative_to(run.folder))}


def evaluate(run: Run) -> dict[str, Any]:
    """The held-out prompts again with the same noise: hidden taste, learned reward, an independent similarity, and KL."""
    rows = run.result("generate")["held_out"]
    _, held_out = split_prompts(run.config)
    before = pictures(run, "held_out")
    policy = load_policy(run, lora=run.folder / run.result("fine-tune")["lora"])
    after = sample_images(run, policy, held_out, HELD_OUT_SEED)
    kl = float(policy.kl_to_reference(policy.sample(held_out, run.generator(7))))
    paths = [f"images/after/{i:05d}.png" for i in range(len(after))]
    for path, image in zip(paths, after, strict=True):
        save_image(image, run.folder / path)
    after = load_images([run.folder / path for path in paths], IMAGE_SIZE)  # in 8 bits, as those before
    prompts = [row["prompt"] for row in rows]
    reward, judge = CLIPReward.load(run.folder / "reward"), Judge.load()
    values: dict[str, Any] = {}
    for name, images in (("before", before), ("after", after)):
        values[f"gold_{name}"] = taste(images).tolist()
        values[f"reward_{name}"] = reward(images, prompts).detach().tolist()
        values[f"similarity_{name}"] = [None if math.isnan(v) else v for v in judge(images, prompts).tolist()]
    by_prompt = []
    for number, prompt in enumerate(held_out):
        part = slice(number * run.config.images_per_prompt, (number + 1) * run.config.images_per_prompt)
        entry: dict[str, Any] = {name: value[part] for name, value in values.items()}
        entry |= {"prompt": prompt, "before_images": [row["image"] for row in rows[part]], "after_images": paths[part]}
        by_prompt.append(entry)
    settings = {key: str(value) for key, value in dataclasses.asdict(run.config).items()}
    return {"by_prompt": by_prompt, "kl": kl, "config": settings}


def gain(by_prompt: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """What happened to the hidden taste, in its own unit and in standard deviations of the start's pictures."""
    before = np.array([entry["gold_before"] for entry in by_prompt])
    after = np.array([entry["gold_after"] for entry in by_prompt])
    spread = before.std(ddof=1)
    change = (after - before).mean(axis=1) / spread
    return {
        "gold_before": float(before.mean()),
        "gold_after": float(after.mean()),
        "gold_gain_sd": float(change.mean()),
        "gold_gain_ci95": list(bootstrap_ci(change, seed=seed)),
    }


def mean_of(by_prompt: list[dict[str, Any]], name: str) -> float | None:
    """Mean over the pictures of all prompts that have a value; None where none has."""
    values = np.array([entry[name] for entry in by_prompt], dtype=float)
    return None if np.isnan(values).all() else float(np.nanmean(values))
