"""Features of parts from an image-text model: those of transformers, what a reward learns from them, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from mmrlhf.errors import UserError
from mmrlhf.images import from_pil, save_image
from mmrlhf.models import resolve_model
from mmrlhf.rewards.encoders.clip import CLIPBackbone, load_backbone
from mmrlhf.rewards.language.inputs import Row
from tests.small_clip import noisy_colour, small_clip
from tests.small_towers import small_open_clip, small_siglip
from tests.vlm.helpers import pictures, write_rows
from vlm.answer_readers import digest_of, open_reader, source_of
from vlm.answer_rewards import check_judgements
from vlm.clip_features import ClipReader, views_of
from vlm.reward import RewardConfig, train
from vlm.segment_reward import HallucinationReward, load_answer_reward

COLOURS = {"red": (0.85, 0.1, 0.1), "green": (0.1, 0.7, 0.15), "blue": (0.1, 0.2, 0.85), "yellow": (0.95, 0.85, 0.1)}


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(small_clip(tmp_path_factory.mktemp("clip")))


def marked(folder: Path, count: int = 80) -> Path:
    """Pictures of one colour; the first sentence says the right or a wrong colour, the second is right of every picture."""
    generator, noise = np.random.default_rng(0), torch.Generator().manual_seed(0)
    rows = []
    for i in range(count):
        colour = str(generator.choice(list(COLOURS)))
        noisy_colour(folder / f"{i}.png", COLOURS[colour], noise, size=64)
        wrong = generator.random() < 0.5
        said = str(generator.choice([name for name in COLOURS if name != colour])) if wrong else colour
        first, answer = f"A {said} picture.", f"A {said} picture. It is plain."
        segments = [{"start": 0, "end": len(first), "tag": "misleading" if wrong else "correct"},
                    {"start": len(first) + 1, "end": len(answer), "tag": "correct"}]  # fmt: skip
        rows.append({"prompt": "What?", "image": f"{i}.png", "answer": answer, "segments": segments})
    return write_rows(rows, folder / "marked.jsonl")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("reward")
    config = RewardConfig("tiny-clip", marked(folder), folder / "reward", features="clip", validation=0.5, epochs=60)
    return folder, train(config)


def embedded(folder: str, texts: list[str], files: list[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
    """Unit embeddings by transformers' own steps, one text and one picture at a time."""
    model, tokenizer = (
        CLIPModel.from_pretrained(folder, dtype=torch.float32).eval(),
        CLIPTokenizer.from_pretrained(folder),
    )
    processor, limit = CLIPImageProcessor.from_pretrained(folder), model.config.text_config.max_position_embeddings
    read, seen = [], []
    with torch.no_grad():
        for text in texts:
            tokens = tokenizer([text], truncation=True, max_length=limit, return_tensors="pt")
            pixels = processor(files[0], return_tensors="pt").pixel_values
            read.append(model(pixel_values=pixels, **tokens).text_embeds[0].double().numpy())
        for file in files:
            pixels = processor(file, return_tensors="pt").pixel_values
            tokens = tokenizer(["a"], return_tensors="pt")
            seen.append(model(pixel_values=pixels, **tokens).image_embeds[0].double().numpy())
    return np.stack(read), np.stack(seen)


@pytest.mark.parametrize("crops", [1, 2, 3])
def test_features_are_those_of_transformers(clip_folder: str, tmp_path: Path, crops: int) -> None:
    side = 32  # what the tower takes, so that no picture is rounded to 256 levels again
    levels = np.random.default_rng(0).integers(0, 256, (2, crops * side, crops * side, 3), dtype=np.uint8)
    for i, array in enumerate(levels):
        Image.fromarray(array).save(tmp_path / f"{i}.png")
    long = "a dog " * 30
    answers = ["A red cat. A dog!", f"A dog! {long}.", ""]
    rows = [Row("What?", answer, tmp_path / f"{i % 2}.png") for i, answer in enumerate(answers)]
    texts = ClipReader(CLIPBackbone.load(clip_folder), crops).read(rows, "sentence")
    assert texts.mask.tolist() == [[True, True], [True, True], [False, False]]
    assert texts.offsets == [[(0, 10), (11, 17)], [(0, 6), (7, len(answers[1]))], []]
    read, _ = embedded(clip_folder, ["A red cat.", "A dog!", f"{long}."], [Image.fromarray(levels[0])])
    for i, own in enumerate([[0, 1], [1, 2]]):
        whole = Image.fromarray(levels[i])
        pieces = [whole.crop((x, y, x + side, y + side))
                  for y in range(0, crops * side, side) for x in range(0, crops * side, side)]  # fmt: skip
        _, seen = embedded(clip_folder, ["a"], [whole, *pieces])
        for place, text in enumerate(own):
            t, v = read[text], seen[0]
            cosines = seen[1:] @ t
            expected = [*t, *v, *(t * v * 4), t @ v]  # 4 is the root of the width 16
            expected += [cosines.max(), cosines.mean(), *cosines] if crops > 1 else []
            exact = 3e-5 if crops == 1 else 0.02  # the whole picture is made smaller, and rounded by the processor
            np.testing.assert_allclose(texts.features[i, place].numpy(), expected, rtol=0, atol=exact)
            if crops > 1:  # the pieces are not made smaller
                np.testing.assert_allclose(texts.features[i, place, -(crops**2) :].numpy(), cosines, rtol=0, atol=3e-5)
    assert not texts.features[2].any()


@pytest.mark.parametrize("make", [small_siglip, small_open_clip])
def test_other_models_read_too(make: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = str(make(tmp_path / "model"))
    source = source_of("clip", folder, crops=2)
    assert source["digest"] == digest_of(source) != digest_of(source | {"model": "tiny-clip"})
    image = torch.rand(3, 40, 56, generator=torch.Generator().manual_seed(0))
    texts = open_reader(source, "cpu").read([Row("What?", "A cat. A dog.", image)], "sentence").features[0]
    backbone = load_backbone(folder)
    read = backbone.embed_prompts(["A cat.", "A dog."])
    pieces = [image[:, y : y + 20, x : x + 28] for y in (0, 20) for x in (0, 28)]
    seen = torch.cat([backbone.embed_images(view.unsqueeze(0)) for view in (image, *pieces)])
    width = backbone.embedding_width
    torch.testing.assert_close(texts[:, : 2 * width], torch.cat([read, seen[:1].expand(2, -1)], dim=1))
    torch.testing.assert_close(texts[:, 3 * width], read @ seen[0])
    torch.testing.assert_close(texts[:, -4:], read @ seen[1:].T)


def test_each_text_and_picture_is_read_once(clip_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = pictures(tmp_path, 3)
    tensor = torch.rand(3, 40, 50, generator=torch.Generator().manual_seed(9))
    images: list[Path | torch.Tensor] = [tmp_path / names[0], tmp_path / names[1], tmp_path / names[0], tensor, tensor]
    rows = [Row("What?", f"A cat. A dog. {'A cat.' if i % 2 else 'It.'}", image) for i, image in enumerate(images)]
    reader = ClipReader(CLIPBackbone.load(clip_folder), 2)
    looked: list[int] = []
    written: list[str] = []
    embed, encode = CLIPBackbone.embed_images, CLIPBackbone.encode_prompts

    def look(own: CLIPBackbone, images: torch.Tensor) -> torch.Tensor:
        looked.append(len(images))
        return embed(own, images)

    def write(own: CLIPBackbone, prompts: list[str]) -> torch.Tensor:
        written.extend(prompts)
        return encode(own, prompts)

    monkeypatch.setattr(CLIPBackbone, "embed_images", look)
    monkeypatch.setattr(CLIPBackbone, "encode_prompts", write)
    texts = reader.read(rows, "sentence")
    assert sum(looked) == 3 * 5 and sorted(written) == ["A cat.", "A dog.", "It."]
    torch.testing.assert_close(texts.features[0], texts.features[2])
    assert not torch.allclose(texts.features[0, 0], texts.features[1, 0], atol=1e-3)


def test_a_picture_falls_into_pieces_that_cover_it() -> None:
    image = torch.arange(7 * 5).reshape(1, 7, 5).float().expand(3, -1, -1)
    for crops in (2, 3, 6, 8):
        whole, *pieces = views_of(image, crops)
        assert torch.equal(whole, image) and len(pieces) == crops**2
        assert all(piece.numel() for piece in pieces)
        assert set(torch.cat([piece[0].flatten() for piece in pieces]).tolist()) == set(range(35))
    pieces = views_of(from_pil(Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))), 2)[1:]
    assert [round(float(piece[0, 0, 0] * 255)) for piece in pieces] == [0, 6, 24, 30]  # row by row


def test_it_learns_which_colour_a_picture_has(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, figures = trained
    assert figures["features"] == "clip" and figures["auroc"] > 0.85 and figures["auroc_ci95"][0] > 0.7
    assert json.loads((folder / "reward" / "metrics.json").read_text()) == figures
    assert "AUROC" in (folder / "reward" / "report.html").read_text()
    reward = load_answer_reward(str(folder / "reward"))
    noise = torch.Generator().manual_seed(5)
    rows, right = [], []
    for shown, colour in COLOURS.items():
        picture = noisy_colour(folder / "new" / f"{shown}.png", colour, noise, size=64)
        rows += [Row("What?", f"A {said} picture. It is plain.", picture) for said in COLOURS]
        right += [said == shown for said in COLOURS]
    judgements = reward(rows)
    check_judgements(judgements, rows)
    values = np.array([judgement.spans[0].value for judgement in judgements])
    truth = np.array(right)
    assert values[truth].mean() > values[~truth].mean() + 0.5
    assert all(-1 <= span.value <= 1 for judgement in judgements for span in judgement.spans)


def test_what_is_saved_judges_alike(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, figures = trained
    reward = HallucinationReward.load(folder / "reward")
    settings = json.loads((folder / "reward" / "reward.json").read_text())
    assert {name: settings[name] for name in ("features", "model", "crops", "parts", "temperature")} == {
        "features": "clip", "model": "tiny-clip", "crops": 1, "parts": "sentence", "temperature": figures["temperature"],
    }  # fmt: skip
    reward.save(tmp_path / "again")
    again = HallucinationReward.load(tmp_path / "again")
    rows = [Row("What?", "A red picture. A dog.", folder / "0.png"), Row("What?", "It is plain.", folder / "1.png")]
    assert again(rows) == reward(rows)
    found = reward.probabilities(rows)
    torch.testing.assert_close(torch.cat(found).sum(1), torch.ones(3))


def test_a_judgement_does_not_depend_on_the_others(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = trained
    reward = HallucinationReward.load(folder / "reward")
    longer = "A blue picture of a very large sea under a very blue sky. A dog. A red picture."
    rows = [Row("What?", text, folder / f"{i}.png") for i, text in enumerate(("A red picture.", "", longer))]
    together = reward(rows)
    for row, judgement in zip(rows, together, strict=True):
        alone = reward([row._replace(prompt="Who?")])[0]  # nor on the prompt
        assert [span[:2] for span in alone.spans] == [span[:2] for span in judgement.spans]
        assert [span.value for span in alone.spans] == pytest.approx([s.value for s in judgement.spans], abs=1e-4)
    assert together[1].spans == () and reward([]) == []
    first, second = (reward([Row("What?", longer, folder / "2.png")])[0].spans[i].value for i in (0, 2))
    whole = reward.probabilities(rows[2:], [[(0, len(longer))]])[0]  # any span is judged by the parts that it touches
    assert whole.shape == (1, 3) and first != second


def test_another_model_is_refused(clip_folder: str, trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    settings = json.loads((trained[0] / "reward" / "reward.json").read_text())
    for file in (trained[0] / "reward").glob("segment.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())

    def saved(**changed: Any) -> None:
        (tmp_path / "reward.json").write_text(json.dumps(settings | changed))
        HallucinationReward.load(tmp_path)

    with pytest.raises(UserError, match="is not the one that the reward .* learned from"):
        saved(model=clip_folder)
    with pytest.raises(UserError, match=r"the hallucination reward in .* is broken \('words'\)"):
        saved(features="words")
    with pytest.raises(UserError, match="features got a width of 391, allowed is 385"):
        (tmp_path / "reward.json").write_text(json.dumps(settings | {"crops": 2}))
        HallucinationReward.load(tmp_path)([Row("What?", "A.", trained[0] / "0.png")])


def test_long_parts_are_told_of(capsys: pytest.CaptureFixture[str], picture_file: Path) -> None:
    reader = ClipReader(CLIPBackbone.load("tiny-clip"))
    reader.check([Row("What?", "A dog. " + "a dog " * 40 + ".", picture_file)], "sentence")
    assert "note: 1 parts are longer than the text tower's 24 tokens and are cut" in capsys.readouterr().out


def test_bad_input_is_told_in_one_line(small_llava: str, tmp_path: Path) -> None:
    data = marked(tmp_path, 24)
    rows = [json.loads(line) for line in data.read_text().splitlines()]

    def refused(words: str, rows: list[dict[str, Any]] = rows, model: str = "tiny-clip", **options: Any) -> None:
        file = write_rows(rows, tmp_path / "bad.jsonl")
        with pytest.raises(UserError, match=words) as caught:
            train(RewardConfig(model, file, tmp_path / "out", **{"features": "clip", **options}))
        assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()

    refused("--crops got 0, allowed is 1 .none. to 8", crops=0)
    refused("--layers got both, which is of --features states alone, and --features got clip", layers="both")
    refused("--adapter got .*, which is of --features states alone", adapter=tmp_path)
    refused("--crops got 2, which is of --features clip alone", model=small_llava, features="states", crops=2)
    refused("is a llava, allowed are clip, siglip", model=small_llava)
    refused("unknown model 'nothing'", model="nothing")
    bare = [
        {name: value for name, value in row.items() if name != "image"} | {"group": f"{i}"}
        for i, row in enumerate(rows)
    ]
    refused("the answer .* has no image, which a reward of --features clip compares it with", bare)
    (tmp_path / "3.png").write_bytes(b"no picture")
    refused("3.png")


def test_a_model_without_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class ImagesOnly:
        max_tokens = 0

    monkeypatch.setattr("vlm.clip_features.load_backbone", lambda model: ImagesOnly())
    with pytest.raises(UserError, match="model images reads no text, which --features clip compares with pictures"):
        ClipReader.load({"model": "images", "crops": 1}, "cpu")


def test_tiny_clip_is_where_it_is_said(tmp_path: Path) -> None:
    save_image(torch.zeros(3, 64, 64), tmp_path / "black.png")
    reader = ClipReader.load({"model": "tiny-clip", "crops": 3}, "cpu")
    assert reader.width == 3 * 128 + 1 + 2 + 9 and Path(resolve_model("tiny-clip")).is_dir()
    assert reader.read([Row("What?", "A dog.", tmp_path / "black.png")], "word").features.shape == (1, 3, reader.width)
