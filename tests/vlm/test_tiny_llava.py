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
from mmrlhf.tiny.scenes import random_scene, render
from vlm.benchmarks.scenes import measured
from vlm.policy import VisionLanguagePolicy
from vlm.tiny_llava import TinyLlavaConfig, train


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


@pytest.mark.slow
def test_it_is_made_by_a_command_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    config = TinyLlavaConfig(
        tmp_path / "out", tmp_path / "work", tower_steps=2, language_steps=2, measured_scenes=2, threads=1
    )
    train(config)
    assert (tmp_path / "out" / "README.md").read_text().startswith("# tiny-llava")
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    (tmp_path / "work" / "language.pt").unlink()
    train(config)  # the tower is taken up, the language model trained again
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == weights
    assert VisionLanguagePolicy.load(str(tmp_path / "out")).width == 128


def test_bad_settings_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--tower-steps got 0, allowed is 1 or more"):
        train(TinyLlavaConfig(tmp_path / "out", tmp_path / "work", tower_steps=0))
