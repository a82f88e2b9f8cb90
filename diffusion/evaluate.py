"""`mmrlhf diffusion eval`: a tuned model against its base on the same prompts and noise, judged by several rewards."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from diffusion.diversity import embed_files
from diffusion.evaluation.config import SIDES, EvalConfig, Key, names_of, spread, validate
from diffusion.evaluation.drawing import draw_both
from diffusion.evaluation.figures import category_figures, diversity_figures, reward_figures
from diffusion.evaluation.page import write_page
from diffusion.evaluation.prompt_files import CategorisedPrompt, read_categorised
from mmrlhf.data import Item, write_jsonl, write_text
from mmrlhf.models import pick_device
from mmrlhf.rewards import load_reward
from mmrlhf.rewards.encoders.clip import load_backbone
from mmrlhf.rewards.score import score_items
from mmrlhf.types import Reward

Scores = dict[str, tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]]


def evaluate(config: EvalConfig, *, rewards: Mapping[str, Reward] | None = None) -> dict[str, Any]:
    """Draw what is not drawn yet, score it, write the folder that `EvalConfig.out` describes; returns what is in eval.json.

    `rewards` by name stand in for those that `config.rewards` names. UserError for bad input, before anything is written.
    """
    validate(config)
    entries = read_categorised(config.prompts)
    suite = dict(rewards) if rewards is not None else {name: load_reward(name) for name in names_of(config.rewards)}
    embedder = load_backbone(config.embedder) if config.images_per_prompt > 1 else None
    kept = spread(len(entries), config.max_prompts)
    keys = [Key(row, number) for row in kept for number in range(config.images_per_prompt)]
    prompts = [entries[key.row].prompt for key in keys]
    paired, kl = draw_both(config, entries, keys)

    device = pick_device(config.device)
    paths = {side: [config.out / side / key.name for key in keys] for side in SIDES}
    scores: Scores = {}
    for name, reward in suite.items():
        reward = reward.to(device) if hasattr(reward, "to") else reward
        before, after = (
            score_items(reward, list(map(Item, prompts, paths[side])), batch_size=config.batch_size, progress=True)
            for side in SIDES
        )
        scores[name] = (before, after)
    diversity = None
    if embedder is not None:
        embeddings = [embed_files(embedder.to(device), paths[side], config.batch_size) for side in SIDES]
        diversity = diversity_figures(embeddings[0], embeddings[1], prompts, config.seed)

    figures = {
        **{
            name: getattr(config, name)
            for name in ("model", "base", "images_per_prompt", "num_steps", "guidance_scale")
        },
        **{name: getattr(config, name) for name in ("eta", "seed", "embedder")},
        "lora": str(config.lora) if config.lora else None,
        "prompt_file": str(config.prompts),
        "prompts": len(set(prompts)),
        "pairs": len(keys),
        "same_noise": paired,
        "rewards": [{"name": name} | reward_figures(*both, prompts, config.seed) for name, both in scores.items()],
        "diversity": diversity,
        "kl": kl,
        "categories": category_figures(scores, prompts, [entries[key.row].category for key in keys], config.seed),
    }
    rows = write_rows(config.out, entries, keys, scores)
    write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", config.out / "eval.json")
    write_page(figures, rows, config.out, config.shown)
    wins = ", ".join(f"{entry['name']} {entry['win_rate']:.0%}" for entry in figures["rewards"] if entry["n"])
    print(f"the tuned model wins by {wins or 'no reward'}: {config.out / 'eval.html'}, {config.out / 'eval.json'}")
    return figures


def write_rows(
    out: Path, entries: Sequence[CategorisedPrompt], keys: Sequence[Key], scores: Scores
) -> list[dict[str, Any]]:
    """Write items.jsonl (a line a picture, for `mmrlhf reward score`) and scores.jsonl (a line a pair, also returned)."""
    items = [
        {"prompt": entries[key.row].prompt, "image": f"{side}/{key.name}"} for side in SIDES for key in keys
    ]  # fmt: skip
    rows: list[dict[str, Any]] = []
    for place, key in enumerate(keys):
        pair = {name: [given(side[place]) for side in both] for name, both in scores.items()}
        files = {side: f"{side}/{key.name}" for side in SIDES}
        rows.append(entries[key.row]._asdict() | {"number": key.number} | files | {"scores": pair})
    write_jsonl(items, out / "items.jsonl")
    write_jsonl(rows, out / "scores.jsonl")
    return rows


def given(score: float) -> float | None:
    """A score as JSON has it: null where the reward abstained."""
    return None if math.isnan(score) else float(score)
