"""Backbones by name: what the libraries' own models compute before their last layer; folders that come back equal."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import torchvision  # type: ignore[import-untyped]
from safetensors.torch import load_file, save_file

from mmrlhf.backbones import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Backbone,
    is_backbone,
    load_backbone_folder,
    make_backbone,
    save_backbone,
)
from mmrlhf.errors import UserError

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def made() -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = make_backbone("test_resnet", 64)
    backbone.network.eval()
    return backbone


@pytest.fixture
def folder(made: Backbone, tmp_path: Path) -> Path:
    save_backbone(made, tmp_path / "backbone")
    return tmp_path / "backbone"


def test_the_whole_network_is_its_last_layer_on_the_backbone() -> None:
    whole = torchvision.models.resnet18(weights=None).eval()
    backbone = make_backbone("resnet18", 64)
    backbone.network.load_state_dict({k: v for k, v in whole.state_dict().items() if not k.startswith("fc.")})
    backbone.network.eval()
    pixels = torchvision.transforms.functional.normalize(IMAGES, list(IMAGENET_MEAN), list(IMAGENET_STD))
    with torch.no_grad():
        torch.testing.assert_close(whole.fc(backbone(IMAGES)), whole(pixels))
    assert backbone.width == 512


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("mobilenet_v3_small", 1024),  # torchvision: the last layer inside a sequence
        ("shufflenet_v2_x0_5", 1024),
        ("test_vit", 64),  # timm: a transformer that must be told the size
        ("test_convnext", 64),
        ("resnet10t", 512),
    ],
)
def test_networks_of_both_libraries_give_a_vector_an_image(name: str, width: int) -> None:
    backbone = make_backbone(name, 64)
    backbone.network.eval()
    with torch.no_grad():
        features = backbone(IMAGES)
    assert features.shape == (2, width) == (2, backbone.width)
    assert not torch.equal(features[0], features[1])


def test_fresh_weights_follow_from_the_generator() -> None:
    def first(seed: int) -> torch.Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return next(make_backbone("test_resnet", 64).network.parameters())

    assert torch.equal(first(1), first(1)) and not torch.equal(first(1), first(2))


def test_a_folder_gives_the_same_features(made: Backbone, folder: Path) -> None:
    state = torch.random.get_rng_state()
    loaded = load_backbone_folder(folder)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert is_backbone(folder)
    assert torch.equal(loaded(IMAGES), made(IMAGES).detach())
    assert (loaded.name, loaded.image_size, loaded.width) == (made.name, 64, made.width)
    assert (loaded.mean, loaded.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert not any(value.requires_grad for value in loaded.network.parameters()) and not loaded.network.training
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_other_folders_are_no_backbones(tmp_path: Path) -> None:
    assert not is_backbone(tmp_path / "none") and not is_backbone("owner/name")
    for text in ('{"model_type": "clip"}', "[]", "no json"):
        (tmp_path / "config.json").write_text(text)
        assert not is_backbone(tmp_path)


def test_names_that_no_library_knows() -> None:
    with pytest.raises(
        UserError, match=r"unknown backbone 'resnet81' \(did you mean .*resnet18.*allowed are the names"
    ):
        make_backbone("resnet81", 64)
    with pytest.raises(UserError, match="unknown backbone 'squeezenet1_0'"):
        make_backbone("squeezenet1_0", 64)


def test_a_size_that_does_not_fit() -> None:
    with pytest.raises(UserError, match="the backbone vit_b_32 takes no images of 50 pixels .*another --image-size"):
        make_backbone("vit_b_32", 50)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"width": 95}, "gives 96 numbers an image"),
        ({"std": [1, 1, 0]}, "those of std above 0"),
        ({"mean": [0.5]}, "allowed are three numbers"),
        ({"backbone": "test_vit"}, "Error.s. in loading state_dict|gives 64 numbers"),
        ({"image_size": "large"}, "invalid literal"),
    ],
)
def test_broken_settings(folder: Path, change: dict, reason: str) -> None:
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | change))
    with pytest.raises(UserError, match=f"the backbone in .* is broken .*({reason})"):
        load_backbone_folder(folder)


def test_broken_weights(folder: Path, tmp_path: Path) -> None:
    cut = shutil.copytree(folder, tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:500])
    with pytest.raises(UserError, match="is broken .*restore its files"):
        load_backbone_folder(cut)
    (cut / "model.safetensors").unlink()
    with pytest.raises(UserError, match="is broken"):
        load_backbone_folder(cut)
    state = load_file(folder / "model.safetensors")
    state.pop(min(state))
    save_file(state, folder / "model.safetensors")
    with pytest.raises(UserError, match="is broken .*Missing key"):
        load_backbone_folder(folder)
