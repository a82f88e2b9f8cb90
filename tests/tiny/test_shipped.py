"""The models in the package: real folders that the libraries load by themselves, small, with cards, and they draw."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

from mmrlhf.errors import UserError
from mmrlhf.models import TINY_FOLDER
from mmrlhf.tiny.judge import Judge

NAMES = ("tiny-sd", "tiny-clip", "tiny-judge", "tiny-llava")
PROMPTS = 40


@pytest.fixture(scope="module")
def drawn() -> tuple[Tensor, list[str]]:
    """Pictures of every twentieth prompt, by plain diffusers."""
    pipeline = StableDiffusionPipeline.from_pretrained(TINY_FOLDER / "tiny-sd")
    pipeline.set_progress_bar_config(disable=True)
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.float()
    lines = (TINY_FOLDER / "tiny-sd" / "prompts.txt").read_text().splitlines()
    prompts = lines[:: len(lines) // PROMPTS][:PROMPTS]
    output = pipeline(
        prompts, num_inference_steps=12, guidance_scale=2.0, eta=1.0, output_type="pt",
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    return output.images.float(), prompts


def test_together_they_are_under_40_mb() -> None:
    sizes = {name: sum(file.stat().st_size for file in (TINY_FOLDER / name).rglob("*")) for name in NAMES}
    assert sum(sizes.values()) < 40e6


@pytest.mark.parametrize("name", NAMES)
def test_each_has_a_card_with_its_figures_and_safe_weights(name: str) -> None:
    card = (TINY_FOLDER / name / "README.md").read_text()
    assert card.startswith(f"# {name}") and "mmrlhf tiny train" in card and "{" not in card
    assert not [file for file in (TINY_FOLDER / name).rglob("*") if file.suffix in (".bin", ".pt", ".pth", ".pkl")]


def test_figures_are_those_of_the_cards() -> None:
    figures = json.loads((TINY_FOLDER / "figures.json").read_text())
    assert f"{figures['samples_recall_at_5']:.0%}" in (TINY_FOLDER / "tiny-sd" / "README.md").read_text()
    assert f"R@5 {figures['clip_recall_at_5']:.2f}" in (TINY_FOLDER / "tiny-clip" / "README.md").read_text()


def test_the_figures_are_good_enough() -> None:
    """What the tiny models must reach: `mmrlhf tiny train` measures it on the shipped files and writes it down."""
    figures = json.loads((TINY_FOLDER / "figures.json").read_text())
    assert figures["samples_recall_at_5"] >= 0.60
    assert min(figures["psnr_white"], figures["psnr_tinted"]) >= 24
    assert figures["clip_recall_at_5"] >= 0.35


def test_the_judge_finds_the_prompts_of_the_samples(drawn: tuple[Tensor, list[str]]) -> None:
    """Of 40 prompts, the picture's own among the first five for half of them at least; chance is an eighth."""
    images, prompts = drawn
    judge = Judge.load()
    assert judge.recall_at(5, images, prompts) >= 0.5
    assert judge.recall_at(5, images.flip(0), prompts) < 0.4


def test_tiny_clip_tells_the_samples_apart(drawn: tuple[Tensor, list[str]]) -> None:
    images, prompts = drawn
    folder = TINY_FOLDER / "tiny-clip"
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = AutoTokenizer.from_pretrained(folder)(prompts, padding=True, return_tensors="pt")
    pixels = CLIPImageProcessor.from_pretrained(folder)(images=list(images), do_rescale=False, return_tensors="pt")
    with torch.no_grad():
        pictures = F.normalize(model.get_image_features(**pixels).pooler_output, dim=-1)
        texts = F.normalize(model.get_text_features(**tokens).pooler_output, dim=-1)
    similarity = pictures @ texts.T
    rank = (similarity > similarity.diagonal()[:, None]).sum(dim=1)
    assert float((rank < 5).float().mean()) >= 0.4


def test_the_judge_abstains_from_prompts_it_does_not_know(drawn: tuple[Tensor, list[str]], tmp_path: Path) -> None:
    images, prompts = drawn
    judge = Judge.load()
    scores = judge(images[:2], [prompts[0], "no such prompt"])
    assert scores[0].isfinite() and scores[1].isnan()
    judge.save(tmp_path)
    again = Judge.load(tmp_path)
    torch.testing.assert_close(again(images[:4], prompts[:4]), judge(images[:4], prompts[:4]), atol=2e-3, rtol=0)
    with pytest.raises(UserError, match="no judge in"):
        Judge.load(tmp_path / "nowhere")
