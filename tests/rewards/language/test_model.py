"""Scores are those of plain transformers, a row's is its own, and what is saved comes back or is refused."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaForSequenceClassification

from mmrlhf.errors import UserError
from mmrlhf.images import save_image
from mmrlhf.rewards.language.model import LanguageReward
from mmrlhf.rewards.score import score_items
from mmrlhf.types import Reward
from tests.rewards.language.small_models import llama_config, small_llama, small_llava

PROMPTS = ["what is it", "the cat is a dog . what is it the", "it", "is it one"]
ANSWERS = ["kind", "a rude cat", "dog . it is a dog", "two"]


def images_for(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(3, *size, generator=generator) for size in ((32, 32), (24, 48), (48, 24), (32, 32))]


def published(folder: Path, labels: int = 1) -> Path:
    """A reward model as people publish it: LlamaForSequenceClassification with its own `score`, padding by the end of text."""
    small_llama(folder, pad_token="</s>")
    torch.manual_seed(3)
    model = LlamaForSequenceClassification(llama_config(num_labels=labels, pad_token_id=3))
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def rewards(folders: dict[str, Path]) -> dict[str, LanguageReward]:
    return {name: LanguageReward.from_pretrained(folder) for name, folder in folders.items()}


def test_a_published_reward_model_scores_by_its_own_formula(folders: dict[str, Path], tmp_path: Path) -> None:
    for folder in (published(tmp_path / "published"), folders["bert"]):
        model, tokenizer = (
            kind.from_pretrained(folder) for kind in (AutoModelForSequenceClassification, AutoTokenizer)
        )
        found = LanguageReward.from_pretrained(folder).score(PROMPTS, ANSWERS)
        for prompt, answer, score in zip(PROMPTS, ANSWERS, found, strict=True):
            chat = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
            tokens = (
                tokenizer(prompt, answer, return_tensors="pt") if folder == folders["bert"] else
                tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True)
            )  # fmt: skip
            torch.testing.assert_close(score, model(**tokens).logits[0, 0], atol=1e-5, rtol=1e-5)
        assert found.std() > 0


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(order=st.permutations(range(4)), count=st.integers(2, 4))
def test_a_row_s_score_is_its_own(rewards: dict[str, LanguageReward], order: list[int], count: int) -> None:
    """Alone, in any company, and whatever side the tokenizer pads by itself. BERT has absolute positions."""
    for name, reward in rewards.items():
        images = images_for() if name in ("llava", "qwen") else [None] * 4
        kept = order[:count]
        batch = reward.score([PROMPTS[i] for i in kept], [ANSWERS[i] for i in kept], [images[i] for i in kept])
        tokenizer = getattr(reward.reader.processor, "tokenizer", reward.reader.processor)
        tokenizer.padding_side = "left"
        again = reward.score([PROMPTS[i] for i in kept], [ANSWERS[i] for i in kept], [images[i] for i in kept])
        tokenizer.padding_side = "right"
        alone = [reward.score([PROMPTS[i]], [ANSWERS[i]], [images[i]]) for i in kept]
        torch.testing.assert_close(batch, torch.cat(alone), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(batch, again, atol=0, rtol=0)


def test_images_are_scored_for_prompts_as_every_reward_does(rewards: dict[str, LanguageReward], tmp_path: Path) -> None:
    from mmrlhf.data import Item

    for name in ("llava", "qwen"):
        reward = rewards[name]
        assert isinstance(reward, Reward) and not reward.differentiable
        images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)).mul(255).round().div(255)
        prompts = ["a cat", "the red dog", "a cat"]
        scores = reward(images, prompts)
        assert scores.shape == (3,) and scores.std() > 1e-4
        items = [Item(prompt, tmp_path / f"{i}.png") for i, prompt in enumerate(prompts)]
        for item, image in zip(items, images, strict=True):
            save_image(image, item.image)
        torch.testing.assert_close(torch.tensor(score_items(reward, items)), scores.double(), atol=1e-5, rtol=1e-4)
    assert rewards["llava"](torch.rand(0, 3, 32, 32), []).shape == (0,)


def test_the_image_and_the_answer_count(rewards: dict[str, LanguageReward]) -> None:
    for name in ("llava", "qwen"):
        red = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1).expand(3, 32, 32)
        scores = rewards[name].score(["what is it"] * 3, ["red", "red", "blue"], [red, red.flip(0), red])
        assert (scores[0] - scores[1]).abs() > 1e-4 and (scores[0] - scores[2]).abs() > 1e-4


@pytest.mark.parametrize("name", ["llama", "bert", "llava", "qwen"])
def test_saved_and_loaded_is_the_same(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    reward = LanguageReward.from_pretrained(folders[name], criteria=("", "safety"), too_long="drop", max_length=60)
    reward = reward.with_temperature(2.0, 0.1)
    images = images_for() if reward.network.sees_images else None
    reward.save(tmp_path / "reward")
    loaded = LanguageReward.load(tmp_path / "reward")
    expected = reward.scores(PROMPTS, ANSWERS, images)
    assert expected.shape == (2, 4) and not torch.equal(expected[0], expected[1])
    for other in (loaded, pickle.loads(pickle.dumps(reward))):
        torch.testing.assert_close(other.scores(PROMPTS, ANSWERS, images), expected, atol=0, rtol=0)
    assert loaded.settings() == reward.settings()
    assert not list((tmp_path / "reward").glob("*.tmp"))
    again = loaded.with_temperature(4.0)
    torch.testing.assert_close(again.scores(PROMPTS, ANSWERS, images), expected / 2)
    again.save_settings(tmp_path / "reward")
    assert LanguageReward.load(tmp_path / "reward").temperature == 4


def test_a_saved_text_reward_is_a_plain_model_of_transformers(folders: dict[str, Path], tmp_path: Path) -> None:
    reward = LanguageReward.from_pretrained(folders["llama"], criteria=("", "safety"))
    reward.save(tmp_path / "reward")
    model, found = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward", output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    assert model.config.id2label == {0: "score", 1: "safety"}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "reward")
    chat = [{"role": "user", "content": PROMPTS[0]}, {"role": "assistant", "content": ANSWERS[0]}]
    logits = model(**tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True)).logits
    torch.testing.assert_close(logits[0], reward.scores(PROMPTS[:1], ANSWERS[:1])[:, 0], atol=1e-5, rtol=1e-5)


def test_a_model_without_padding_token_is_padded_by_its_end_of_text(tmp_path: Path) -> None:
    reward = LanguageReward.from_pretrained(small_llama(tmp_path / "llama", chat=False, pad_token=None))
    assert reward.network.backbone.config.pad_token_id == 3 and reward.reader.template == "{prompt}\n\n{answer}"
    batch = reward.score(PROMPTS, ANSWERS)
    alone = torch.cat([reward.score([p], [a]) for p, a in zip(PROMPTS, ANSWERS, strict=True)])
    torch.testing.assert_close(batch, alone, atol=1e-5, rtol=1e-4)


def test_a_row_that_is_too_long_abstains_where_it_may(folders: dict[str, Path]) -> None:
    prompts = ["what is it", "one two " * 40]
    scores = LanguageReward.from_pretrained(folders["llama"], too_long="drop").score(prompts, ["a", "a"])
    assert scores.isnan().tolist() == [False, True]
    with pytest.raises(UserError, match="1 of 2 texts are longer than the 64 tokens"):
        LanguageReward.from_pretrained(folders["llama"]).score(prompts, ["a", "a"])
    cut = LanguageReward.from_pretrained(folders["llama"], too_long="truncate").score(prompts, ["a", "a"])
    assert cut.isfinite().all() and cut[0] == pytest.approx(float(scores[0]), abs=1e-5)


def test_a_fresh_head_follows_from_the_seed(tmp_path: Path, folders: dict[str, Path]) -> None:
    heads = [LanguageReward.from_pretrained(folders["llama"], seed=seed).network.head.weight for seed in (0, 0, 1)]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    own = LanguageReward.from_pretrained(published(tmp_path / "own"), criteria=("safety",))
    assert own.criteria == ("", "safety")  # its own head first


def test_half_the_memory(folders: dict[str, Path]) -> None:
    for name in ("llama", "llava"):
        images = images_for() if name == "llava" else None
        whole = LanguageReward.from_pretrained(folders[name]).score(PROMPTS, ANSWERS, images)
        half = LanguageReward.from_pretrained(folders[name], dtype="bfloat16")
        assert next(half.network.backbone.parameters()).dtype == torch.bfloat16
        scores = half.score(PROMPTS, ANSWERS, images)
        assert scores.dtype == torch.float32
        torch.testing.assert_close(scores, whole, atol=0.1, rtol=0.1)


def test_what_is_no_model_to_read_with(clip_folder: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"is a clip, allowed is a language model \(of AutoModelForSequenceClassification\)"
    ):
        LanguageReward.from_pretrained(clip_folder)
    with pytest.raises(UserError, match="is a classifier of 3 labels, allowed is 1"):
        LanguageReward.from_pretrained(published(tmp_path / "labels", labels=3))
    with pytest.raises(UserError, match="dtype got 'int8', allowed are float32, bfloat16"):
        LanguageReward.from_pretrained(folders["llama"], dtype="int8")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="cannot load the language model .*empty"):
        LanguageReward.from_pretrained(tmp_path / "empty")
    shutil.copytree(folders["llama"], tmp_path / "cut")
    (tmp_path / "cut" / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(UserError, match="cannot load the language model .*cut"):
        LanguageReward.from_pretrained(tmp_path / "cut")


def test_what_cannot_be_scored(rewards: dict[str, LanguageReward]) -> None:
    with pytest.raises(UserError, match="got images for a LlamaForSequenceClassification, which reads text only"):
        rewards["llama"](torch.rand(1, 3, 32, 32), ["what"])
    with pytest.raises(UserError, match="got 2 prompts, 1 answers and 2 images: give as many of each"):
        rewards["llama"].score(["a", "b"], ["c"])
    with pytest.raises(UserError, match="temperature got 0.0, allowed is a finite number above 0"):
        rewards["llama"].with_temperature(0.0)


def test_a_broken_folder_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    def saved(name: str) -> Path:
        LanguageReward.from_pretrained(folders[name]).save(tmp_path / name)
        return tmp_path / name

    text, seeing = saved("llama"), saved("llava")
    settings = json.loads((text / "reward.json").read_text())
    (text / "reward.json").unlink()
    with pytest.raises(UserError, match=r"no reward in .* \(reward.json is missing\)"):
        LanguageReward.load(text)
    for change, words in (
        ({"kind": "clip"}, "has format 1 of kind clip, allowed is format 1 of kind language"),
        ({"criteria": ["", "safety"]}, "is a classifier of 1 labels, allowed is 2"),
        ({"template": None, "criteria": 3}, r"the reward in .* is broken"),
    ):
        (text / "reward.json").write_text(json.dumps(settings | change))
        with pytest.raises(UserError, match=words):
            LanguageReward.load(text)
    (text / "reward.json").write_text(json.dumps(settings))
    LlamaForSequenceClassification(llama_config(num_labels=1)).model.save_pretrained(text)
    with pytest.raises(UserError, match="the weights in .* are not whole"):
        LanguageReward.load(text)
    (seeing / "head.safetensors").unlink()
    with pytest.raises(UserError, match="cannot load the language model .*llava"):
        LanguageReward.load(seeing)


def test_a_vision_language_model_without_chat_template(tmp_path: Path) -> None:
    reward = LanguageReward.from_pretrained(small_llava(tmp_path / "llava", chat=False))
    assert reward.reader.text(reward.rows(["what"], ["it"], [torch.rand(3, 8, 8)])[0]) == "<image>\nwhat\n\nit"
    assert reward.score(PROMPTS, ANSWERS, images_for()).isfinite().all()
