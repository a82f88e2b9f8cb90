"""A quickstart run on disk: its settings, its folder, and the record of finished stages."""

import dataclasses
import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from mmrlhf.config import check_seed
from mmrlhf.data import is_unused
from mmrlhf.errors import UserError


@dataclass(frozen=True)
class QuickstartConfig:
    """One honest trip round the loop; the defaults take a few minutes on two cores."""

    out: Path = Path("quickstart")
    """Folder for everything the run writes; report.html and metrics.json are the results."""
    only: Literal["both", "diffusion", "vlm"] = "both"
    """Which half: pictures that a text-to-image model draws, answers that a vision-language model gives, or both."""
    rater: Literal["simulated", "human"] = "simulated"
    """Who rates pictures: three simulated raters with one hidden taste, or you, in the web app."""
    seed: int = 0
    """Everything random follows from it."""
    resume: bool = False
    """Go on with a run that was stopped."""
    model: str = "tiny-sd"
    """Text-to-image model to align."""
    backbone: str = "tiny-clip"
    """CLIP model under the reward."""
    train_prompts: int = 64
    """Prompts to generate, rate and fine-tune on."""
    held_out_prompts: int = 40
    """Prompts kept apart for every evaluation."""
    images_per_prompt: int = 6
    """Candidate images a prompt."""
    pairs: int = 240
    """Pairs of training images to ask about; each rater judges each."""
    held_out_pairs: int = 120
    """Pairs of held-out images, judged only to measure agreement."""
    epochs: int = 5
    """Epochs of fine-tuning."""
    samples_per_epoch: int = 192
    """Images sampled, scored and learnt from in each epoch."""
    samples_per_prompt: int = 4
    """Of these, so many of one prompt, to be compared with each other."""
    num_steps: int = 10
    """Denoising steps."""
    guidance_scale: float = 1.0
    """Classifier-free guidance; 1 = none, and twice as fast."""
    learning_rate: float = 4e-3
    """Of the LoRA weights; far above the usual, for there are only a few dozen updates of a small model."""
    clip_range: float = 1e-3
    """Ratios count up to this far from 1 in an update."""
    train_batch_size: int = 96
    """Samples in one update of the weights."""
    lora_rank: int = 8
    """Rank of the LoRA matrices."""
    vlm_model: str = "tiny-llava"
    """Vision-language model to align."""
    marked_answers: int = 800
    """Answers about scenes in which an annotator who sees the truth marks what is wrong."""
    held_out_scenes: int = 150
    """Scenes kept apart to measure on."""
    vlm_epochs: int = 3
    """Passes over the marked answers."""
    vlm_learning_rate: float = 4e-4
    """Of the LoRA weights; far above the usual, as above."""
    gamma: float = 5.0
    """How much more the corrected words count than the others."""
    host: str = "127.0.0.1"
    """Where the rating app listens (--rater human)."""
    port: int = 7860
    """Its port."""


OF_ANSWERS = {"vlm_model", "marked_answers", "held_out_scenes", "vlm_epochs", "vlm_learning_rate", "gamma"}
"""Settings of the vision-language half alone."""


@dataclass
class Run:
    """The folder of a run, its config, and the record of finished stages."""

    config: QuickstartConfig
    folder: Path

    def stage(self, name: str, work: Callable[["Run"], dict[str, Any]]) -> dict[str, Any]:
        """The result of a stage: read back if it is finished, otherwise worked out now and recorded."""
        path = self.folder / "stages" / f"{name}.json"
        if path.exists():
            return read_json(path)
        print(f"── {name}", flush=True)
        started = time.perf_counter()
        result = work(self)
        result["seconds"] = time.perf_counter() - started
        result["peak_rss_mib"] = peak_rss_mib()
        write_json(result, path)
        return result

    def result(self, name: str) -> dict[str, Any]:
        """The recorded result of a finished stage."""
        return read_json(self.folder / "stages" / f"{name}.json")

    def generator(self, offset: int) -> torch.Generator:
        """A random generator of this run's seed; `offset` tells the uses apart."""
        return torch.Generator().manual_seed(self.config.seed * 1_000 + offset)

    @property
    def store_url(self) -> str:
        return f"sqlite:///{self.folder / 'ratings.sqlite'}"


def peak_rss_mib() -> float:
    """The most memory that this process ever held, in MiB (Linux counts in KiB, macOS in bytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)


def write_json(value: dict[str, Any], path: Path) -> None:
    """Write a JSON file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False))
    os.replace(temporary, path)


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote; UserError for anything else."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is broken: remove it, or choose another --out and begin anew") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is broken: remove it, or choose another --out and begin anew")
    return found


def check_settings(config: QuickstartConfig) -> None:
    """UserError for a value outside its range, or a model that cannot be had; nothing is written yet."""
    least = {
        "train_prompts": 5, "held_out_prompts": 2, "images_per_prompt": 2, "pairs": 3, "held_out_pairs": 1, "epochs": 1,
        "samples_per_epoch": 2, "samples_per_prompt": 2, "train_batch_size": 1, "num_steps": 2, "lora_rank": 1,
        "guidance_scale": 0, "marked_answers": 20, "held_out_scenes": 2, "vlm_epochs": 1,
    }  # fmt: skip
    for name, low in least.items():
        value = getattr(config, name)
        if not low <= value < math.inf:
            raise UserError(f"--{name.replace('_', '-')} got {value}, allowed is {low} or more")
    for name in ("learning_rate", "clip_range", "vlm_learning_rate", "gamma"):
        if not 0 < getattr(config, name) < math.inf:
            raise UserError(f"--{name.replace('_', '-')} got {getattr(config, name)}, allowed is above 0")
    of_a_prompt = math.comb(config.images_per_prompt, 2)
    # half of all pairs: the caps that spread the questions over the prompts leave at least so many
    for name, most in (
        ("pairs", max(3, config.train_prompts * of_a_prompt // 2)),
        ("held_out_pairs", config.held_out_prompts * of_a_prompt),
    ):
        if getattr(config, name) > most:
            raise UserError(
                f"--{name.replace('_', '-')} got {getattr(config, name)}, allowed is up to {most} with so many prompts and "
                "images: raise --images-per-prompt, or ask for less"
            )
    check_seed(config.seed)


def check_models(config: QuickstartConfig) -> None:
    """UserError where a model cannot be loaded, ModuleNotFoundError where a package is missing that the last stage needs."""
    import matplotlib  # noqa: F401

    if config.only != "vlm":
        from diffusion.policy import DiffusionPolicy
        from mmrlhf.rewards.encoders.clip import CLIPBackbone

        CLIPBackbone.load(config.backbone)
        DiffusionPolicy.load(config.model, num_steps=config.num_steps, guidance_scale=config.guidance_scale)
    if config.only != "diffusion":
        import peft  # noqa: F401

        from vlm.policy import VisionLanguagePolicy

        VisionLanguagePolicy.load(config.vlm_model)


def settings_of(config: QuickstartConfig) -> dict[str, Any]:
    """The settings that make a run what it is: those of the halves that are asked for."""
    left_out = {"out", "resume", "host", "port", "only"}
    if config.only == "diffusion":
        left_out |= OF_ANSWERS
    every = dataclasses.asdict(config)
    names = OF_ANSWERS | {"seed"} if config.only == "vlm" else set(every)
    return {name: value for name, value in every.items() if name in names - left_out}


def open_run(config: QuickstartConfig) -> Run:
    """Make the folder, or take up the run that is in it. UserError when it holds something else."""
    folder = config.out
    recorded = folder / "config.json"
    wanted = settings_of(config)
    if recorded.exists():
        found = read_json(recorded)
        if not config.resume:
            raise UserError(f"{folder} holds a run already: add --resume to go on with it, or choose another --out")
        changed = [key for key, value in wanted.items() if key in found and found[key] != value]
        if changed:
            named = ", ".join(f"{key} was {found[key]}, now {wanted[key]}" for key in changed)
            raise UserError(f"{folder} holds a run with other settings ({named}): repeat them, or choose another --out")
        wanted = found | wanted  # the other half's stay
    elif not is_unused(folder):
        raise UserError(f"{folder} exists and is no quickstart run: choose an empty or new folder for --out")
    try:
        write_json(wanted, recorded)
    except OSError as error:
        raise UserError(
            f"cannot write to {folder} ({error.strerror}): choose a folder that you may write for --out"
        ) from error
    return Run(config, folder)
