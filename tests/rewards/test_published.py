"""Published scorers: files with the authors' keys and layouts, and their formulas computed apart."""

import copy
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

from mmrlhf.errors import UserError
from mmrlhf.rewards.clip import CLIPReward
from mmrlhf.rewards.hps import HPSReward
from mmrlhf.rewards.published import load_published
from mmrlhf.types import Reward
from tests.rewards.encoders.test_siglip import files_of, images_of
from tests.rewards.test_clip import PROMPTS, pictures
from tests.small_towers import clip_of_width, write_aesthetic, write_hps


@pytest.fixture(scope="module")
def clip_768(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip_of_width(tmp_path_factory.mktemp("clip-768"), 768)


@pytest.fixture(scope="module")
def hps_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hps(tmp_path_factory.mktemp("hps"))


@pytest.fixture(scope="module")
def deep_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_aesthetic(tmp_path_factory.mktemp("aesthetic"))


@pytest.fixture(params=["pickscore", "hps", "aesthetic"])
def reward(request: pytest.FixtureRequest, clip_768: Path, hps_file: Path, deep_file: Path) -> Reward:
    return {
        "pickscore": lambda: load_published(clip_768),
        "hps": lambda: load_published(hps_file),
        "aesthetic": lambda: load_published(deep_file, clip_768),
    }[request.param]()


def test_pickscore_with_its_old_buffers(clip_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """exp(logit_scale)·cosine, written out as on PickScore's page, from a file with the position_ids that its file has."""
    folder = shutil.copytree(clip_folder, tmp_path / "PickScore_v1")
    weights = load_file(folder / "model.safetensors")
    real = {"text_model.encoder.layers.0.self_attn.q_proj.weight", "visual_projection.weight", "logit_scale"}
    assert real <= weights.keys()
    weights["text_model.embeddings.position_ids"] = torch.arange(24)[None]
    weights["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    weights["logit_scale"] = torch.tensor(4.6052)  # as trained: near 100
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    reward = load_published(folder)
    assert isinstance(reward, CLIPReward) and "position_ids" not in capfd.readouterr().err
    files = files_of(3, (32, 32))
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    pixels = CLIPImageProcessor.from_pretrained(folder)(files, return_tensors="pt")
    tokens = tokenizer(PROMPTS, padding=True, truncation=True, max_length=24, return_tensors="pt")
    with torch.no_grad():
        seen = model.get_image_features(**pixels).pooler_output
        texts = model.get_text_features(**tokens).pooler_output
    seen, texts = (part / torch.norm(part, dim=-1, keepdim=True) for part in (seen, texts))
    expected = (model.logit_scale.exp() * texts @ seen.T).diag().detach()
    torch.testing.assert_close(reward(images_of(files), PROMPTS), expected, rtol=0, atol=1e-3)
    assert expected.std() > 1 and float(reward.backbone.scale) == pytest.approx(100, rel=1e-3)


def test_a_row_does_not_see_the_others(reward: Reward) -> None:
    images = pictures(3, 48)
    together = reward(images, PROMPTS)
    alone = torch.cat([reward(images[i : i + 1], [PROMPTS[i]]) for i in range(3)])
    torch.testing.assert_close(alone, together, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(reward(images.flip(0), PROMPTS[::-1]).flip(0), together, atol=2e-5, rtol=1e-4)
    assert together.std() > 1e-3
    broken = images.clone()
    broken[1, 0, 3, 3] = float("nan")
    scores = reward(broken, PROMPTS)
    assert scores.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(scores[::2], together[::2], atol=2e-5, rtol=1e-4)
    assert reward(images[:0], []).shape == (0,)


def test_gradients_reach_the_images(reward: Reward) -> None:
    assert reward.differentiable and isinstance(reward, Reward)
    images = pictures(2, 48).requires_grad_(True)
    reward(images, PROMPTS[:2]).sum().backward()
    assert images.grad is not None and images.grad.norm() > 0
    direction, step = images.grad / images.grad.norm(), 0.02
    with torch.no_grad():
        up, down = (reward(images + sign * step * direction, PROMPTS[:2]).double().sum() for sign in (1, -1))
    assert float((up - down) / (2 * step)) == pytest.approx(float(images.grad.norm()), rel=0.05)


def test_pickled_copied_and_moved(reward: Any) -> None:
    expected = reward(pictures(3), PROMPTS)
    for other in (pickle.loads(pickle.dumps(reward)), copy.deepcopy(reward), reward.to("cpu")):
        assert torch.equal(other(pictures(3), PROMPTS), expected)


def test_files_are_read_once(
    hps_file: Path, deep_file: Path, clip_768: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HPS v2's own scorer reads its 2 GB at every call."""
    reads, original = [], torch.load

    def counted(path: Any, **settings: Any) -> Any:
        reads.append(Path(path).name)
        assert settings["weights_only"] is True
        return original(path, **settings)

    monkeypatch.setattr(torch, "load", counted)
    files = [shutil.copy(file, tmp_path / file.name) for file in (hps_file, deep_file)]
    towers = shutil.copytree(clip_768, tmp_path / "towers")
    rewards = [load_published(files[0]), load_published(files[1], towers)]
    shutil.rmtree(tmp_path)
    for reward in rewards:
        torch.testing.assert_close(reward(pictures(2), PROMPTS[:2]), reward(pictures(2), PROMPTS[:2]))
    assert reads == [hps_file.name, deep_file.name]


class Hostile:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, ("hostile-was-here",)


def test_what_would_run_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Hostile()}, tmp_path / "zip.pt")
    with pytest.raises(UserError, match=r"zip.pt is refused, for it holds more than tensors \(.*mkdir"):
        load_published(tmp_path / "zip.pt")
    torch.save(nn.Linear(2, 1), tmp_path / "module.pth")
    with pytest.raises(UserError, match=r"module.pth is refused, for it holds more than tensors \(.*Linear"):
        load_published(tmp_path / "module.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(UserError, match="plain.pth is no weights file that torch.save or safetensors wrote"):
        load_published(tmp_path / "plain.pth")
    assert not (tmp_path / "hostile-was-here").exists()


def test_files_that_cannot_be_read(hps_file: Path, deep_file: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.pt"
    for content in (hps_file.read_bytes()[:100_000], b"", deep_file.read_bytes()[:-100]):
        bad.write_bytes(content)
        with pytest.raises(UserError, match=r"bad.pt cannot be read \(.*: download it again") as caught:
            load_published(bad)
        assert "\n" not in str(caught.value) and "weights_only" not in str(caught.value)
    bad.write_text("<html>404</html>")
    with pytest.raises(UserError, match="bad.pt is no weights file"):
        load_published(bad)
    (tmp_path / "bad.safetensors").write_bytes(b"12345678")
    with pytest.raises(UserError, match="bad.safetensors cannot be read"):
        load_published(tmp_path / "bad.safetensors")
    with pytest.raises(UserError, match="no file or folder .*gone.pt: allowed are the folder of a CLIPModel"):
        load_published(tmp_path / "gone.pt")


def test_files_of_something_else(hps_file: Path, clip_768: Path, tmp_path: Path) -> None:
    file = tmp_path / "other.pt"
    with_relu = {f"layers.{layer}.weight": torch.zeros(1, 1) for layer in (0, 3, 6, 9, 11)}
    for content, message in [
        (with_relu, r"holds 5 tensors \(layers.0.weight, layers.11.weight, .* …\) of no published scorer known here"),
        ({"fc.weight": torch.zeros(1)}, r"holds 1 tensors \(fc.weight\) of no published scorer"),
        (torch.zeros(3), "holds a Tensor and no state dict of tensors"),
        ({"state_dict": {"a": 1}}, "holds a dict and no state dict of tensors"),
        ({}, "holds a dict and no state dict"),
    ]:
        torch.save(content, file)
        with pytest.raises(UserError, match=message):
            load_published(file)
    with pytest.raises(UserError, match="holds its own towers: leave it out"):
        load_published(hps_file, clip_768)


def test_missing_keys_and_wrong_shapes(hps_file: Path, deep_file: Path, clip_folder: Path, tmp_path: Path) -> None:
    whole, deep = torch.load(hps_file, weights_only=True)["state_dict"], torch.load(deep_file, weights_only=True)
    file = tmp_path / "bad.pt"
    cases: list[tuple[dict[str, Tensor], str]] = [
        (
            {name: part for name, part in whole.items() if name != "visual.positional_embedding"},
            "lacks visual.positional_e",
        ),
        ({name: part for name, part in whole.items() if name != "visual.proj"}, 'do not fit together .*"visual.proj"'),
        (whole | {"ln_final.weight": torch.ones(5)}, "do not fit together .*ln_final.weight"),
        (whole | {"visual.conv1.weight": torch.ones(5)}, "do not fit together"),
        (whole | {"token_embedding.weight": torch.ones(100, 64)}, "knows 100 tokens, open_clip's tokenizer has 49408"),
        (
            deep | {"layers.2.weight": torch.ones(128, 7)},
            r"layers.2.weight .* shape \(128, 7\), allowed here is \(128, 1024\)",
        ),
        (deep | {"layers.7.weight": torch.ones(2, 16), "layers.7.bias": torch.ones(2)}, r"\(2, 16\), .* is \(1, 16\)"),
        ({"weight": torch.ones(768), "bias": torch.ones(1)}, r"shape \(768,\), allowed here is \(1, 768\)"),
    ]
    for state, message in cases:
        torch.save(state, file)
        with pytest.raises(UserError, match=message) as caught:
            load_published(file)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="takes embeddings of 768 numbers, the backbone gives 16"):
        load_published(deep_file, clip_folder)


def test_folders(hps_file: Path, deep_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no published scorer: allowed are"):
        load_published(tmp_path)
    shutil.copy(hps_file, tmp_path)
    assert isinstance(load_published(str(tmp_path)), HPSReward)
    shutil.copy(deep_file, tmp_path)
    with pytest.raises(UserError, match="holds HPS_v2.1_compressed.pt, sac.logos.ava1-l14-linearMSE.pth: give one"):
        load_published(tmp_path)
