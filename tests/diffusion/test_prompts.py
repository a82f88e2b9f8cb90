"""Prompts that a model does not read to their end are told of, once."""

from pathlib import Path

import pytest

from diffusion.policy import DiffusionPolicy
from diffusion.prompts import cut_prompts, tell_of_cut_prompts
from tests.small_flow_models import small_pipeline

LONG = "a cat " * 600


@pytest.fixture(scope="module", params=["StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline"])
def policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DiffusionPolicy:
    folder = tmp_path_factory.mktemp("models") / request.param
    small_pipeline(request.param, folder)
    return DiffusionPolicy.load(str(folder), size=64, device="cpu")


def test_of_each_class(policy: DiffusionPolicy) -> None:
    assert cut_prompts(policy.family, ["a cat", LONG, "", "a dog"]) == [LONG]


def test_it_is_told_in_one_line(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    family = DiffusionPolicy.load(str(model), device="cpu").family
    most = family.longest_prompts()[0][1]
    tell_of_cut_prompts(family, [LONG, LONG, "a cat", LONG + "x"])
    told = capsys.readouterr().err
    assert told.startswith(f"2 of the prompts are longer than the {most} tokens that the model reads")
    assert told.count("\n") == 1 and len(told) < 250
    tell_of_cut_prompts(family, ["a cat"])
    assert capsys.readouterr().err == ""


def test_encoding_a_long_prompt_says_nothing_more(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    DiffusionPolicy.load(str(model), device="cpu").embed([LONG])
    assert not caplog.records
