"""A vision-language model as a judge, on a small LLaVA: its probabilities, its text, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmrlhf.errors import UserError
from mmrlhf.rewards.judging.verdicts import both_orders
from mmrlhf.rewards.judging.vlm_judge import VLMJudge, letter_tokens
from tests.rewards.small_vlm import TEMPLATE, small_vlm

PROMPTS = ["a cat", "a long prompt about two dogs", "x"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_vlm(tmp_path_factory.mktemp("vlm"))


@pytest.fixture
def judge(folder: Path) -> VLMJudge:
    return VLMJudge.from_pretrained(str(folder), question="{prompt}?", least_answer=0.0)  # its weights are random


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    home = tmp_path_factory.mktemp("pictures")
    noise = np.random.default_rng(0).integers(0, 256, (4, 40, 32, 3), dtype=np.uint8)
    for i, pixels in enumerate(noise):
        Image.fromarray(pixels // (i + 1)).save(home / f"{i}.png")
    return sorted(home.glob("*.png"))


def test_it_is_the_next_tokens_probability(judge: VLMJudge, folder: Path, pictures: list[Path]) -> None:
    """Against a softmax over the whole vocabulary, a pair at a time, without this class."""
    left, right = pictures[:3], pictures[1:]
    got = judge(PROMPTS, left, right)
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    vocabulary = processor.tokenizer.get_vocab()
    expected = []
    for prompt, *files in zip(PROMPTS, left, right, strict=True):
        images = [Image.open(file) for file in files]
        inputs = processor(text=f"USER: <image>\n<image>\n{prompt}? ASSISTANT:", images=images, return_tensors="pt")
        with torch.no_grad():
            p = model(**inputs).logits[0, -1].softmax(dim=-1).double()
        a, b = (float(p[vocabulary[letter]] + p[vocabulary["Ġ" + letter]]) for letter in "AB")
        expected.append(a / (a + b))
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert np.ptp(got) > 0.01


def test_alone_and_together_and_cooler(judge: VLMJudge, pictures: list[Path]) -> None:
    together = judge(PROMPTS, pictures[:3], pictures[1:])
    for i, prompt in enumerate(PROMPTS):
        assert judge([prompt], [pictures[i]], [pictures[i + 1]])[0] == pytest.approx(together[i], abs=1e-5)
    judge.temperature = 0.1
    odds = together / (1 - together)
    np.testing.assert_allclose(judge(PROMPTS, pictures[:3], pictures[1:]), odds**10 / (1 + odds**10), atol=1e-4)


def test_who_answers_neither_abstains(judge: VLMJudge, pictures: list[Path]) -> None:
    """By what the model itself gives to A and B: a bound between two pairs' parts them."""
    all_pairs = [[f, g] for f, g in zip(pictures[:3], pictures[1:], strict=True)]
    log_probs = judge.next_token(PROMPTS, [[Image.open(file).convert("RGB") for file in pair] for pair in all_pairs])
    said = log_probs.exp()[:, [token for tokens in judge.letters for token in tokens]].sum(dim=1).numpy()
    free = judge(PROMPTS, pictures[:3], pictures[1:])
    assert np.isfinite(free).all() and len(set(said)) == 3 and said.max() < 0.1
    judge.least_answer = float(np.sort(said)[:2].mean())
    held = judge(PROMPTS, pictures[:3], pictures[1:])
    np.testing.assert_array_equal(np.isnan(held), said == said.min())
    np.testing.assert_allclose(held[~np.isnan(held)], free[~np.isnan(held)], rtol=1e-6)


def test_sides_matter_to_it_until_both_orders_are_asked(judge: VLMJudge, pictures: list[Path]) -> None:
    shown_left, shown_right = both_orders(judge, PROMPTS, pictures[:3], pictures[1:])
    assert (np.abs(shown_left - shown_right) > 1e-3).all()
    swapped_left, swapped_right = both_orders(judge, PROMPTS, pictures[1:], pictures[:3])
    np.testing.assert_allclose(shown_left + shown_right, 2 - swapped_left - swapped_right, atol=1e-5)


def test_what_it_reads(judge: VLMJudge, pictures: list[Path]) -> None:
    judge.question = "Is {prompt} {here}?"
    assert judge.text("a cat") == "USER: <image>\n<image>\nIs a cat {here}? ASSISTANT:"
    # a prompt can add no image and end nothing
    assert judge.text("a <image>cat</s><s>") == "USER: <image>\n<image>\nIs a  cat   {here}? ASSISTANT:"
    assert np.isfinite(judge(["<image><image>"], pictures[:1], pictures[1:2])).all()
    judge.processor.chat_template = None
    assert judge.text("a cat") == "USER: <image>\n<image>\nIs a cat {here}?\nASSISTANT:"
    assert np.isfinite(judge(PROMPTS, pictures[:3], pictures[1:])).all()


def test_a_text_begins_once(judge: VLMJudge, pictures: list[Path]) -> None:
    starts = []
    judge.model.register_forward_pre_hook(
        lambda _model, _args, inputs: starts.append((inputs["input_ids"] == 0).sum().item()), with_kwargs=True
    )
    for template in (TEMPLATE, "<s>" + TEMPLATE):
        judge.processor.chat_template = template
        judge(PROMPTS[:1], pictures[:1], pictures[1:2])
    assert starts == [1, 1]


def test_what_is_no_judge(
    judge: VLMJudge, clip_folder: Path, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    for model in (clip_folder, tmp_path / "empty"):
        with pytest.raises(
            UserError, match="cannot load the vision-language model .*: give the folder or hub id of"
        ) as caught:
            VLMJudge.from_pretrained(str(model))
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="vocabulary has no token 'B'"):
        letter_tokens({"A": 0, "▁A": 1}, "B")
    assert letter_tokens({"A": 0, "▁A": 1}, "A") == [0, 1]
    with pytest.raises(UserError, match="is not a readable image"):
        judge(["a"], [clip_folder / "config.json"], pictures[:1])

    def short_of_memory(*_: object) -> None:
        raise RuntimeError("CUDA out of memory.\nmore")

    monkeypatch.setattr(judge, "next_token", short_of_memory)
    with pytest.raises(
        UserError, match=r"failed \(CUDA out of memory.\): give one that takes two images .*smaller --batch"
    ):
        judge(["a"], pictures[:1], pictures[1:2])
