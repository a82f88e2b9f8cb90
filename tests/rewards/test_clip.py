"""The CLIP reward: transformers' own score, heads on frozen towers, gradients, and its folder."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from mmrlhf.errors import UserError
from mmrlhf.images import from_pil
from mmrlhf.rewards.clip import CLIPReward
from mmrlhf.rewards.encoders.clip import CLIPBackbone
from mmrlhf.rewards.head import HeadEnsemble
from tests.small_clip import MAX_LENGTH, SIZE

PROMPTS = ["a red cat", "dog", "a much longer prompt: red dog, red cat"]


def pictures(count: int, size: int = SIZE, seed: int = 0) -> torch.Tensor:
    """Random pictures with large patches, so that scores differ."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (size, size))


@pytest.mark.parametrize("shape", [(SIZE, SIZE), (48, 80), (100, 37), (20, 20)])
def test_the_plain_score_is_that_of_transformers(clip_folder: Path, shape: tuple[int, int]) -> None:
    """exp(logit_scale)·cosine, computed by CLIPModel's forward on what CLIPImageProcessor makes of the same files."""
    levels = (pictures(3, 96)[:, :, : shape[0], : shape[1]] * 255).round().to(torch.uint8)
    files = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in levels]
    model, tokenizer = CLIPModel.from_pretrained(clip_folder).eval(), CLIPTokenizer.from_pretrained(clip_folder)
    pixels = CLIPImageProcessor.from_pretrained(clip_folder)(files, return_tensors="pt").pixel_values
    with torch.no_grad():
        tokens = tokenizer(PROMPTS, padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="pt")
        expected = model(pixel_values=pixels, **tokens).logits_per_image.diag()
    reward = CLIPReward.from_pretrained(clip_folder)
    scores = reward(torch.stack([from_pil(file) for file in files]), PROMPTS)
    exact = shape == (SIZE, SIZE)  # the processor rounds a resized picture to 256 levels
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-4 if exact else 0.05)
    assert scores.std() > (0.3 if exact else 0.1)  # so that the tolerance means something


@pytest.mark.parametrize("shape", [(48, 80), (100, 37), (20, 21)])
def test_resizing_is_that_of_the_processor(clip_folder: Path, backbone: CLIPBackbone, shape: tuple[int, int]) -> None:
    smooth = torch.nn.functional.interpolate(pictures(1, 4), shape, mode="bicubic").clamp(0, 1)
    file = Image.fromarray((smooth[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
    processor = CLIPImageProcessor.from_pretrained(clip_folder)
    expected = processor(file, return_tensors="pt", do_normalize=False).pixel_values
    ours = backbone.preprocess(from_pil(file).unsqueeze(0))
    torch.testing.assert_close(ours, expected, rtol=0, atol=1.5 / 255)


@pytest.mark.parametrize("with_head", [False, True])
def test_a_row_does_not_see_the_others(headed: CLIPReward, with_head: bool) -> None:
    reward = headed if with_head else CLIPReward(headed.backbone)
    images = pictures(3)
    together = reward(images, PROMPTS)
    alone = torch.cat([reward(images[i : i + 1], [PROMPTS[i]]) for i in range(3)])
    backwards = reward(images.flip(0), PROMPTS[::-1]).flip(0)
    torch.testing.assert_close(alone, together, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(backwards, together, atol=2e-5, rtol=1e-4)


def test_many_images_go_through_in_chunks(headed: CLIPReward) -> None:
    images = pictures(70)
    scores = headed(images, ["a red cat"] * 70)
    torch.testing.assert_close(scores[66:], headed(images[66:], ["a red cat"] * 4), atol=2e-5, rtol=1e-4)


def test_members_mean_and_temperature(headed: CLIPReward) -> None:
    images = pictures(3)
    members = headed.members(images, PROMPTS)
    assert members.shape == (3, 3) and members.std(dim=0).min() > 0.01
    torch.testing.assert_close(headed(images, PROMPTS), members.mean(dim=0))
    torch.testing.assert_close(headed.with_temperature(4.0)(images, PROMPTS), members.mean(dim=0) / 2)
    torch.testing.assert_close(headed(images, PROMPTS), members.mean(dim=0))  # the copy changed nothing here
    plain = CLIPReward(headed.backbone, temperature=2.0)
    torch.testing.assert_close(plain(images, PROMPTS) * 2, CLIPReward(headed.backbone)(images, PROMPTS))


def test_gradients_reach_the_images(headed: CLIPReward) -> None:
    """Against a central difference along a random direction; the towers themselves gather none."""
    for reward in (headed, CLIPReward(headed.backbone)):
        images = pictures(2, 48).requires_grad_(True)
        reward(images, PROMPTS[:2]).sum().backward()
        assert images.grad is not None
        direction = images.grad / images.grad.norm()
        step = 0.02
        with torch.no_grad():
            up, down = (reward(images + sign * step * direction, PROMPTS[:2]).double().sum() for sign in (1, -1))
        assert float((up - down) / (2 * step)) == pytest.approx(float(images.grad.norm()), rel=0.03)
        assert all(weight.grad is None for weight in reward.backbone.model.parameters())


def test_plain_pictures_have_finite_gradients(headed: CLIPReward) -> None:
    images = torch.stack([torch.zeros(3, SIZE, SIZE), torch.ones(3, SIZE, SIZE)]).requires_grad_(True)
    headed(images, PROMPTS[:2]).sum().backward()
    assert images.grad is not None and images.grad.isfinite().all() and images.grad.abs().max() > 0


def test_a_fresh_head_is_not_constant_and_can_learn(backbone: CLIPBackbone) -> None:
    """ImageReward's start made all scores alike, and its users' loss stuck at log 2."""
    images = pictures(64)
    features = torch.cat([backbone.image_features(images), backbone.embed_prompts(["dog"] * 64)], dim=-1)
    for hidden in (64, 0):
        head = HeadEnsemble(features.shape[1], hidden=hidden, generator=torch.Generator().manual_seed(0))
        head.standardise_by([features])
        scores = head(features, torch.zeros(64))
        assert scores.std(dim=1).min() > 0.2
        torch.nn.functional.softplus(scores[:, :32] - scores[:, 32:]).mean().backward()
        assert all(p.grad is not None for p in head.parameters() if p.numel())
        assert head.last.grad is not None and head.last.grad.norm(dim=1).min() > 0.05


def test_a_feature_that_hardly_varied_in_training_is_not_blown_up() -> None:
    head = HeadEnsemble(3)
    head.standardise_by([torch.tensor([[0.0, 5.0, 1.0], [2.0, 5.0, 1.0 + 1e-6]])])
    assert head.std.tolist() == pytest.approx([1.0, 0.1 / 3, 0.1 / 3], rel=1e-3)


def test_border_patches_are_what_the_last_block_sees(backbone: CLIPBackbone) -> None:
    """Of 4×4 patches, changing an inner one moves the mean over all but not the mean over the border."""
    plain = torch.full((1, 3, SIZE, SIZE), 0.5)
    inner, edge = plain.clone(), plain.clone()
    inner[..., 8:24, 8:24] = 1
    edge[..., :8, :] = 1
    width = backbone.model.config.vision_config.hidden_size
    a, b, c = (backbone.image_features(images) for images in (plain, inner, edge))
    torch.testing.assert_close(a[:, -width:], b[:, -width:])
    assert (a - b)[:, -3 * width : -2 * width].abs().max() > 1e-3
    assert (a - c)[:, -width:].abs().max() > 1e-3


def test_pickle(headed: CLIPReward) -> None:
    copy = pickle.loads(pickle.dumps(headed))
    torch.testing.assert_close(copy(pictures(3), PROMPTS), headed(pictures(3), PROMPTS))


@pytest.mark.parametrize("with_head", [False, True])
def test_saved_and_loaded_it_scores_the_same(headed: CLIPReward, tmp_path: Path, with_head: bool) -> None:
    reward = CLIPReward(headed.backbone, headed.head if with_head else None, temperature=0.7, tie_threshold=0.2)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    reward.save(tmp_path)
    reward.with_temperature(0.3).save(tmp_path)  # over the one that is there
    loaded = CLIPReward.load(tmp_path)
    assert (loaded.temperature, loaded.tie_threshold) == (0.3, 0.2)
    expected = reward(pictures(3), PROMPTS) * 0.7 / 0.3
    assert (tmp_path / "metrics.jsonl").exists()
    assert {path.suffix for path in tmp_path.iterdir()} <= {
        ".json",
        ".safetensors",
        ".txt",
        ".jsonl",
    }  # nothing pickled
    assert CLIPModel.from_pretrained(tmp_path).config.projection_dim == 16  # it is a CLIPModel's folder too
    shutil.rmtree(tmp_path)
    torch.testing.assert_close(loaded(pictures(3), PROMPTS), expected)  # and nothing is read again at a call


def test_half_precision_weights_are_computed_in_float32(clip_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(clip_folder, tmp_path / "half")
    CLIPModel.from_pretrained(clip_folder).half().save_pretrained(tmp_path / "half")
    assert load_file(tmp_path / "half" / "model.safetensors")["logit_scale"].dtype == torch.float16
    reward = CLIPReward.from_pretrained(tmp_path / "half")
    assert reward(pictures(3).half(), PROMPTS).dtype == torch.float32


def test_a_kill_while_saving_leaves_no_reward_that_looks_whole(
    headed: CLIPReward, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    headed.save(tmp_path)
    monkeypatch.setattr("mmrlhf.rewards.clip.os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        headed.save(tmp_path)
    with pytest.raises(UserError, match=r"no reward in .* \(reward\.json is missing\)"):
        CLIPReward.load(tmp_path)


def test_broken_folders(headed: CLIPReward, tmp_path: Path) -> None:
    headed.save(tmp_path)
    settings = json.loads((tmp_path / "reward.json").read_text())
    for change, message in [
        ({"format": 9}, "has format 9 of kind clip, allowed is format 2"),
        ({"temperature": -1}, "temperature got -1.0, allowed is a finite number above 0"),
        ({"temperature": None}, "is broken"),
        ({"heads": {"": {"members": 2, "hidden": 5, "levels": 0}}}, "is broken .*size mismatch|is broken"),
    ]:
        (tmp_path / "reward.json").write_text(json.dumps(settings | change))
        with pytest.raises(UserError, match=message):
            CLIPReward.load(tmp_path)
    (tmp_path / "reward.json").write_text("{")
    with pytest.raises(UserError, match="is broken"):
        CLIPReward.load(tmp_path)
    (tmp_path / "reward.json").write_text(json.dumps(settings))
    (tmp_path / "head.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match="is broken"):
        CLIPReward.load(tmp_path)


def test_models_that_are_none(clip_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot load the CLIP model"):
        CLIPBackbone.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match="is a bert, allowed is a CLIPModel"):
        CLIPBackbone.load(tmp_path)
    shutil.copytree(clip_folder, tmp_path / "cut")
    (tmp_path / "cut" / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(UserError, match="cannot load the CLIP model"):
        CLIPBackbone.load(tmp_path / "cut")
    with pytest.raises(UserError, match="unknown model 'clip-tiny'"):
        CLIPBackbone.load("clip-tiny")


def test_counts_and_long_prompts(headed: CLIPReward) -> None:
    with pytest.raises(UserError, match="got 2 images and 1 prompts"):
        headed(pictures(2), ["dog"])
    assert headed(pictures(0), []).shape == (0,)
    long = "dog " * 60
    assert headed.backbone.count_truncated(["dog", long, long]) == 1
    assert headed(pictures(1), [long]).isfinite().all()
    assert headed(pictures(1), [""]).isfinite().all()
