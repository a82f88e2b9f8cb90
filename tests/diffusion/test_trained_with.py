"""Whoever draws from a run's weights otherwise than the run did is told so."""

import json
from pathlib import Path

import pytest

from diffusion.generate import GenerateConfig
from diffusion.trained_with import tell_of_other_drawing, trained_with


def run_folder(folder: Path) -> Path:
    folder.mkdir()
    saved = {"num_steps": 10, "guidance_scale": 1.0, "size": None, "eta": 1.0}
    (folder / "config.json").write_text(json.dumps(saved))
    return folder


def drawing(**given: float) -> GenerateConfig:
    return GenerateConfig("tiny-sd", Path("prompts.txt"), Path("out"), **given)  # type: ignore[arg-type]


def test_other_steps_and_guidance_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_folder(tmp_path / "run")
    tell_of_other_drawing(drawing(num_steps=10, guidance_scale=1.0), "tiny-sd", run)
    assert capsys.readouterr().err == ""
    tell_of_other_drawing(drawing(), "tiny-sd", run)
    assert (
        f"the run of {run} drew its pictures with --num-steps 10 --guidance-scale 1, here they are drawn with --num-steps 50 "
        "--guidance-scale 5: give the former"
    ) in capsys.readouterr().err
    tell_of_other_drawing(
        drawing(num_steps=10), str(run / "model"), None
    )  # all weights, saved inside of the run's folder
    assert "with --guidance-scale 1, here" in capsys.readouterr().err


@pytest.mark.parametrize("text", [None, "{", "[]", '{"num_steps": 10}', '{"_class_name": "UNet"}'])
def test_other_folders_say_nothing(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    assert trained_with(tmp_path) == {}
