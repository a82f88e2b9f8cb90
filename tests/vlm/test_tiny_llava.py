"""tiny-llava: the shipped one hallucinates as its card says, and the command that makes it goes on where it was stopped."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from mmrlhf.errors import UserError
from mmrlhf.models import TINY_FOLDER
from mmrlhf.rewards.language.inputs import Row
from mmrlhf.tiny.scene_text import DESCRIBE
from mmrlhf.tiny.scenes import Scene, Thing, random_scene, render
from vlm.benchmarks.pope import build_questions, says_yes
from vlm.benchmarks.scenes import measured
from vlm.policy import VisionLanguagePolicy
from vlm.tiny_llava import TinyLlavaConfig, train
from vlm.tiny_llava_questions import Look, looks


def test_the_shipped_model_hallucinates_as_its_card_says() -> None:
    card = (TINY_FOLDER / "tiny-llava" / "README.md").read_text()
    found = re.search(r"CHAIR_i\) \| ([\d.]+) % \| ([\d.]+) %", card)
    assert found is not None
    generator = np.random.default_rng(5)
    scenes = [random_scene(generator) for _ in range(80)]
    rows = [Row(DESCRIBE, None, image) for image in render(scenes, generator)]
    answers = VisionLanguagePolicy.load("tiny-llava").generate(rows, seed=0, max_new_tokens=120)
    assert all(answers.ended)
    figures = measured(answers.texts, scenes)
    low, high = figures["chair_i_ci95"]
    assert low - 2 < float(found[1]) < high + 2
    assert float(found[2]) < float(found[1]) and figures["coverage"] > 70


def test_the_shipped_model_looks_before_it_says_yes() -> None:
    generator = np.random.default_rng(6)
    scenes = [random_scene(generator) for _ in range(60)]
    images = render(scenes, generator)
    asked = build_questions({str(i): sorted(scene.kinds) for i, scene in enumerate(scenes)}, per_image=1)
    rows = [Row(question["text"], None, images[int(question["image"])]) for question in asked]
    texts = VisionLanguagePolicy.load("tiny-llava").generate(rows, seed=0, temperature=0.0, max_new_tokens=4).texts
    right = {
        subset: np.mean([
            says_yes(text) == (question["label"] == "yes")
            for text, question in zip(texts, asked, strict=True)
            if question["category"] == subset
        ])
        for subset in ("random", "adversarial")
    }  # fmt: skip
    assert min(right.values()) > 0.8


def test_it_is_told_to_look_at_the_patches_of_what_is_named() -> None:
    """A cell has 2×2 of 6×6 patches."""
    scene = Scene("farm", "white", (Thing("cow", "", 0), Thing("pig", "", 5), Thing("pig", "", 7)))
    tokens = [1, *[9] * 36, 50, 51, 52, 3]
    found = looks(tokens, scene, {50: "cow", 51: "pig", 52: "horse"}, 9)
    assert found == [
        Look(37, [1, 2, 7, 8]),
        Look(38, [1 + place for place in (16, 17, 22, 23, 26, 27, 32, 33)]),
        Look(39, [0]),
    ]


@pytest.mark.slow
def test_it_is_made_by_a_command_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    config = TinyLlavaConfig(
        tmp_path / "out",
        tmp_path / "work",
        tower_steps=2,
        language_steps=2,
        question_steps=2,
        measured_scenes=20,
        threads=1,
    )
    train(config)
    assert (tmp_path / "out" / "README.md").read_text().startswith("# tiny-llava")
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    for stage in ("language", "questions"):
        (tmp_path / "work" / f"{stage}.pt").unlink()
    train(config)  # the tower is taken up, the rest trained again
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == weights
    assert VisionLanguagePolicy.load(str(tmp_path / "out")).width == 128


def test_bad_settings_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--tower-steps got 0, allowed is 1 or more"):
        train(TinyLlavaConfig(tmp_path / "out", tmp_path / "work", tower_steps=0))
