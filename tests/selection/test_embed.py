"""Embeddings of files: those of the library's own path, kept by content, resumed, and honest about what cannot be read."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from transformers import AutoModel, BitImageProcessor, CLIPImageProcessor, CLIPModel, SiglipImageProcessor

from mmrlhf.backbones import load_backbone_folder, make_backbone, save_backbone
from mmrlhf.errors import UserError
from mmrlhf.images import list_images, load_images, save_image
from mmrlhf.rewards.encoders.clip import CLIPBackbone
from selection.embed import Embedder, embed_files
from selection.select import SelectConfig, select
from tests.small_clip import MEAN, STD, small_clip
from tests.small_towers import small_dinov2, small_open_clip, small_siglip


def test_embeddings_are_those_of_the_librarys_processor_and_model(clip_folder: Path) -> None:
    images = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    processor, model = CLIPImageProcessor.from_pretrained(clip_folder), CLIPModel.from_pretrained(clip_folder).eval()
    pixels = processor(images=images, do_rescale=False, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        projected = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
    expected = projected / projected.norm(dim=-1, keepdim=True)
    assert torch.allclose(Embedder(str(clip_folder), batch_size=2)(images), expected, atol=1e-5)


def small_pretrained(folder: Path) -> Path:
    """A folder as `mmrlhf select pretrain` writes it."""
    save_backbone(make_backbone("test_resnet", 32), folder)
    return folder


MODELS: dict[str, Callable[[Path], Path]] = {
    "clip": small_clip,
    "siglip": small_siglip,
    "open_clip": small_open_clip,
    "open_clip, squashed": lambda folder: small_open_clip(folder, preprocessing={"size": 32, "resize_mode": "squash"}),
    "dinov2": small_dinov2,
    "dinov2 with registers": lambda folder: small_dinov2(folder, registers=True),
    "pretrained": small_pretrained,
}


def by_the_library(kind: str, folder: Path, files: list[Path]) -> torch.Tensor:
    """Embeddings of files by the model's own library and its own preprocessing."""
    pictures = [Image.open(path).convert("RGB") for path in files]
    if kind == "pretrained":
        return load_backbone_folder(folder)(load_images(files, 32))
    if kind.startswith("open_clip"):
        model = open_clip.create_model_from_pretrained(f"local-dir:{folder}", return_transform=False).eval()
        settings = PreprocessCfg(**model.visual.preprocess_cfg)
        return model.encode_image(torch.stack([image_transform_v2(settings, False)(picture) for picture in pictures]))
    model = AutoModel.from_pretrained(folder).eval()
    processor = {"clip": CLIPImageProcessor, "siglip": SiglipImageProcessor}.get(kind, BitImageProcessor)
    pixels = processor.from_pretrained(folder)(pictures, return_tensors="pt").pixel_values
    if kind in ("clip", "siglip"):
        return model.get_image_features(pixel_values=pixels).pooler_output
    return model(pixel_values=pixels).pooler_output


@pytest.mark.parametrize("kind", MODELS)
def test_files_are_embedded_as_the_models_own_library_does(kind: str, pictures: Path, tmp_path: Path) -> None:
    """Of any shape: cropped or squashed as the model learnt it."""
    folder, wide = MODELS[kind](tmp_path / "model"), torch.rand(3, 6, 14, generator=torch.Generator().manual_seed(0))
    save_image(wide.repeat_interleave(12, 1).repeat_interleave(12, 2), pictures / "12.png")
    files = list_images(pictures)
    found = embed_files(files, Embedder(str(folder)), at_once=5).embeddings
    with torch.no_grad():
        expected = torch.nn.functional.normalize(by_the_library(kind, folder, files), dim=-1)
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=0.03)  # some round resized pictures to 256 levels
    assert (np.abs(found - expected.numpy()).max() < 1e-5) or kind != "pretrained"
    other = Embedder(str(folder))
    assert other.fingerprint() == Embedder(str(folder)).fingerprint()
    out = tmp_path / "chosen.json"
    select(SelectConfig(budget=3, out=out, images=pictures, model=str(folder)))
    assert json.loads(out.read_text())["dimensions"] == found.shape[1]


def test_the_fingerprint_of_a_model_is_what_it_was(tmp_path: Path) -> None:
    """Caches and runs that name one stay good: the hash of preprocessing and sums, as first written."""
    embedder = Embedder(str(small_clip(tmp_path)))
    digest = hashlib.sha256(repr((32, tuple(MEAN), tuple(STD))).encode())
    for name, value in sorted(CLIPModel.from_pretrained(tmp_path).state_dict().items()):
        values = value.double().flatten()
        weighted = values @ torch.linspace(1, 2, len(values), dtype=torch.double)
        digest.update(repr((name, tuple(value.shape), f"{values.abs().sum():.9e}", f"{weighted:.6e}")).encode())
    assert embedder.fingerprint() == digest.hexdigest()[:16]


def test_preprocessing_is_in_the_fingerprint(tmp_path: Path) -> None:
    names = {Embedder(str(small_siglip(tmp_path / str(mode), resample=mode))).fingerprint() for mode in (2, 3)}
    for mode in ("squash", "shortest"):
        folder = small_open_clip(tmp_path / mode, preprocessing={"size": 32, "resize_mode": mode})
        names.add(Embedder(str(folder)).fingerprint())
    assert len(names) == 4


def test_weights_alone_are_seen_as_the_published_models_see(clip_folder: Path, tmp_path: Path) -> None:
    CLIPModel.from_pretrained(clip_folder).save_pretrained(tmp_path)
    backbone = Embedder(str(tmp_path)).backbone
    assert isinstance(backbone, CLIPBackbone) and backbone.pixel_mean == tuple(MEAN)


def test_images_of_any_size_are_brought_to_the_models(clip_folder: Path) -> None:
    embedder = Embedder(str(clip_folder))
    large = torch.full((1, 3, 64, 96), 0.25)
    assert torch.allclose(embedder(large), embedder(large[:, :, :32, :32]), atol=1e-5)


def test_equal_files_get_equal_rows_in_the_order_of_the_paths(clip_folder: Path, pictures: Path) -> None:
    embedder, paths = Embedder(str(clip_folder)), list_images(pictures)
    files = embed_files(paths, embedder, at_once=5)
    assert files.paths == paths and files.unreadable == {}
    assert (files.embeddings[0] == files.embeddings[11]).all()
    assert len(set(files.hashes)) == 11
    expected = torch.cat([embedder(load_images([path], 32)) for path in paths])
    np.testing.assert_allclose(files.embeddings, expected.numpy(), atol=1e-5)


def test_what_was_kept_is_not_computed_again(clip_folder: Path, pictures: Path, tmp_path: Path) -> None:
    embedder, paths, cache = Embedder(str(clip_folder)), list_images(pictures), tmp_path / "cache"
    embed_files(paths[:5], embedder, cache=cache, at_once=5)  # as if killed after five files
    done: list[int] = []

    def counted(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...], output: object) -> None:
        done.append(len(embedder_output(output)))

    embedder.model.vision_model.register_forward_hook(counted)
    resumed = embed_files(paths, embedder, cache=cache, at_once=5)
    assert sum(done) == 6
    moved = shutil.copytree(pictures, tmp_path / "moved")
    again = embed_files(list_images(moved), embedder, cache=cache)
    assert sum(done) == 6 and (again.embeddings == resumed.embeddings).all()
    assert (resumed.embeddings == embed_files(paths, embedder, at_once=5).embeddings).all()


def embedder_output(output: object) -> torch.Tensor:
    """The pooled rows of a vision tower's output."""
    return output.pooler_output  # type: ignore[attr-defined]


def test_a_damaged_cache_is_passed_over(clip_folder: Path, pictures: Path, tmp_path: Path) -> None:
    embedder, paths = Embedder(str(clip_folder)), list_images(pictures)
    first = embed_files(paths, embedder, cache=tmp_path, at_once=6)
    for path, damage in zip(sorted(tmp_path.rglob("*.npz")), (b"", b"PK\x03\x04 not a zip"), strict=True):
        path.write_bytes(damage)
    assert (embed_files(paths, embedder, cache=tmp_path, at_once=6).embeddings == first.embeddings).all()


def test_other_weights_do_not_share_a_cache(clip_folder: Path) -> None:
    one, other = Embedder(str(clip_folder)), Embedder(str(clip_folder))
    assert one.fingerprint() == other.fingerprint()
    other.model.visual_projection.weight.data[0, 0] += 0.01
    assert one.fingerprint() != other.fingerprint()


def test_unreadable_files_are_left_out_and_listed(clip_folder: Path, pictures: Path) -> None:
    (pictures / "05.png").write_bytes(b"not a picture")
    (pictures / "06.png").write_bytes((pictures / "06.png").read_bytes()[:60])
    files = embed_files(list_images(pictures), Embedder(str(clip_folder)))
    assert len(files.paths) == len(files.embeddings) == 10
    assert [Path(path).name for path in files.unreadable] == ["05.png", "06.png"]
    assert "is not a readable image" in files.unreadable[str(pictures / "05.png")]
    with pytest.raises(UserError, match="none of 1 images can be embedded: .*05.png is not a readable image"):
        embed_files([pictures / "05.png"], Embedder(str(clip_folder)))


def test_a_model_that_is_none_is_told(clip_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="cannot load the image-text model .*give tiny-clip, a model's folder, or a hub id"
    ):
        Embedder(str(tmp_path))
    with pytest.raises(UserError, match="unknown model 'tiny-clap'"):
        Embedder("tiny-clap")
    broken = shutil.copytree(clip_folder, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="cannot load the CLIP model"):
        Embedder(str(broken))
