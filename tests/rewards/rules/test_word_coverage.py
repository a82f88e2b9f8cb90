"""Which words of a prompt a picture shows: by hand on made-up embeddings, and with tiny-clip on pictures of tiny-sd."""

import pickle
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from mmrlhf.errors import UserError
from mmrlhf.images import load_image
from mmrlhf.rewards.encoders.clip import CLIPBackbone
from mmrlhf.rewards.rules.word_coverage import OTHER_WORDS, TEMPLATE, WordCoverage

SHEET = Path(__file__).parents[3] / "docs" / "images" / "tiny-sd.png"
TILES = {"clock": (0, 2), "giraffe": (2, 4), "airplane": (2, 5), "heart": (5, 2), "rainbow": (7, 4), "bird": (4, 2)}


def test_by_hand(backbone: CLIPBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cosine of a word with an image is the word's number times the image's red."""
    numbers = {"wizard": 0.8, "wand": 0.2, "dogs": 0.5, "dog": 0.9, "bird": 0.48}
    cosines = {TEMPLATE.format(word): value for word, value in numbers.items()}

    def embed_prompts(prompts: Sequence[str]) -> torch.Tensor:
        return torch.tensor([[cosines.get(prompt, 0.0), 0.0, 0.0] for prompt in prompts])

    monkeypatch.setattr(backbone, "embed_images", lambda images: images[:, :, 0, 0])
    monkeypatch.setattr(backbone, "embed_prompts", embed_prompts)
    images = torch.tensor([1.0, 0.5, 1.0, 1.0]).view(4, 1, 1, 1).expand(4, 3, 2, 2)
    prompts = ["a photo of a wizard with a wand", "wizard, wand", "two dogs", "the picture"]
    others = len(OTHER_WORDS)
    usual = (0.9 + 0.48) / others  # the mean cosine with the other words
    # "dogs" is not compared with "dog", and "two" is a word too
    expected = [0.2 - usual, (0.2 - usual) / 2, 0.0 - 0.48 / (others - 1), torch.nan]
    torch.testing.assert_close(WordCoverage(backbone)(images, prompts), torch.tensor(expected), equal_nan=True)
    mean = WordCoverage(backbone, "mean")(images[:1], prompts[:1])
    torch.testing.assert_close(mean, torch.tensor([0.5 - usual]))


@pytest.fixture(scope="module")
def coverage() -> WordCoverage:
    return WordCoverage.from_pretrained("tiny-clip")


def test_tiny_clip_finds_the_picture_of_a_word(coverage: WordCoverage) -> None:
    sheet = load_image(SHEET)
    images = torch.stack([sheet[:, 65 * r : 65 * r + 64, 65 * c : 65 * c + 64] for r, c in TILES.values()])
    with torch.no_grad():
        scores = torch.stack([coverage(images, [f"a photo of a {word}"] * len(images)) for word in TILES])
        both = coverage(images, ["a bird and a rainbow"] * len(images))
    assert scores.argmax(dim=1).tolist() == list(range(len(TILES)))
    assert scores.diagonal().min() > 0.1
    # one word that is missing counts: no picture shows both as well as it shows its own
    assert both.max() < scores.diagonal().min()


def test_rows_are_independent_and_gradients_reach_the_images(backbone: CLIPBackbone) -> None:
    reward = WordCoverage(backbone)
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    prompts = ["a red cat", "dogs", "of the"]
    together = reward(images, prompts)
    alone = torch.cat([reward(images[i : i + 1], prompts[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, equal_nan=True)
    torch.testing.assert_close(pickle.loads(pickle.dumps(reward))(images, prompts), together, equal_nan=True)
    together[0].backward()
    assert images.grad is not None and images.grad[0].abs().sum() > 0 and images.grad[1:].eq(0).all()
    assert reward(images[:0], []).shape == (0,)


def test_mistakes(backbone: CLIPBackbone) -> None:
    with pytest.raises(UserError, match="1 images and 2 prompts"):
        WordCoverage(backbone)(torch.zeros(1, 3, 4, 4), ["a", "b"])
