"""Embeddings of files: those of the library's own path, kept by content, resumed, and honest about what cannot be read."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from mmrlhf.errors import UserError
from mmrlhf.images import list_images, load_images
from selection.embed import Embedder, embed_files


def test_embeddings_are_those_of_the_librarys_processor_and_model(clip_folder: Path) -> None:
    from transformers import CLIPImageProcessor, CLIPModel

    images = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    processor, model = CLIPImageProcessor.from_pretrained(clip_folder), CLIPModel.from_pretrained(clip_folder).eval()
    pixels = processor(images=images, do_rescale=False, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        projected = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
    expected = projected / projected.norm(dim=-1, keepdim=True)
    assert torch.allclose(Embedder(str(clip_folder), batch_size=2)(images), expected, atol=1e-5)


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
    with pytest.raises(UserError, match="cannot load the model .*give the folder or hub id of a CLIPModel"):
        Embedder(str(tmp_path))
    with pytest.raises(UserError, match="unknown model 'tiny-clap'"):
        Embedder("tiny-clap")
    broken = shutil.copytree(clip_folder, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="cannot load the model"):
        Embedder(str(broken))
