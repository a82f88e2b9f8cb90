"""SigLIP with its published kind of tokenizer, in sentencepiece: from the folder to `reward score`."""

import copy
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from sentencepiece import SentencePieceProcessor
from transformers import SiglipModel, SiglipTokenizer

from mmrlhf.images import load_image
from mmrlhf.rewards import load_reward
from mmrlhf.rewards.clip import CLIPReward
from mmrlhf.rewards.encoders.clip import load_backbone
from mmrlhf.rewards.encoders.siglip import SiglipBackbone
from mmrlhf.rewards.score import ScoreConfig, score
from mmrlhf.rewards.train import TrainConfig, train
from tests.rewards.test_clip import pictures
from tests.small_towers import MAX_TOKENS, sentencepiece_tokenizer, small_siglip

PROMPTS = {"A red, CAT!": "a red cat", "dog": "dog", "a  much longer red dog": "a much longer red dog"}
"""And what SigLIP makes of them: lower case, without signs, single spaces."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = sentencepiece_tokenizer(tmp_path_factory.mktemp("pieces"))
    return small_siglip(tmp_path_factory.mktemp("siglip"), tokenizer=tokenizer)


def test_prompts_are_the_pieces_padded_with_their_end(folder: Path) -> None:
    """Against sentencepiece itself; a mask, or padding with <pad>, would give other embeddings."""
    siglip = load_backbone(folder)
    assert isinstance(siglip, SiglipBackbone) and isinstance(siglip.tokenizer, SiglipTokenizer)
    pieces = SentencePieceProcessor(str(folder / "spiece.model"))
    ids = [pieces.encode(plain) for plain in PROMPTS.values()]
    assert all(0 < len(own) < MAX_TOKENS and 2 not in own for own in ids) and len({*map(tuple, ids)}) == 3
    model = SiglipModel.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = model.text_model(
            input_ids=torch.tensor([own + [1] * (MAX_TOKENS - len(own)) for own in ids])
        ).pooler_output
        padded = model.text_model(
            input_ids=torch.tensor([ids[0] + [1] + [0] * (MAX_TOKENS - 1 - len(ids[0]))])
        ).pooler_output
    expected = expected / expected.norm(dim=1, keepdim=True)
    found = siglip.embed_prompts(list(PROMPTS))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert (found[0] - padded[0] / padded.norm()).abs().max() > 0.01
    long = "dog " * 40
    assert siglip.count_truncated(["dog", long]) == 1
    assert torch.isfinite(siglip.embed_prompts([long])).all()


def test_saved_copied_and_pickled_it_is_the_same(folder: Path, tmp_path: Path) -> None:
    backbone = load_backbone(shutil.copytree(folder, tmp_path / "first"))
    expected = backbone.embed_prompts(list(PROMPTS))
    others = [copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))]
    shutil.rmtree(tmp_path / "first")
    backbone.save(tmp_path / "second")
    assert (tmp_path / "second" / "spiece.model").read_bytes() == (folder / "spiece.model").read_bytes()
    for other in (*others, load_backbone(tmp_path / "second")):
        assert torch.equal(other.embed_prompts(list(PROMPTS)), expected)


@pytest.mark.parametrize("trained", [False, True])
def test_reward_score_of_a_folder(folder: Path, pairs_file: Path, tmp_path: Path, trained: bool) -> None:
    """The plain score by SiglipModel's own logits, and a trained head."""
    items = []
    for i, (prompt, image) in enumerate(zip(PROMPTS, pictures(3, 32), strict=True)):
        Image.fromarray((image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()).save(tmp_path / f"{i}.png")
        items.append({"prompt": prompt, "image": f"{i}.png"})
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    out = tmp_path / "reward"
    if trained:
        train(TrainConfig(pairs_file, out=out, model=str(folder), epochs=3, device="cpu"))
    else:
        CLIPReward.from_pretrained(folder).save(out)
    rows = score(ScoreConfig(str(out), tmp_path / "items.jsonl", tmp_path / "scores.jsonl", device="cpu"))
    found = torch.tensor([row["score"] for row in rows])
    assert [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()] == rows
    if trained:
        images = torch.stack([load_image(tmp_path / f"{i}.png") for i in range(3)])
        torch.testing.assert_close(found, load_reward(out)(images, list(PROMPTS)), atol=1e-5, rtol=1e-5)
        return
    pixels = torch.stack([load_image(tmp_path / f"{i}.png") for i in range(3)]) * 2 - 1
    tokens = SiglipTokenizer.from_pretrained(folder)(
        list(PROMPTS), padding="max_length", max_length=MAX_TOKENS, return_tensors="pt"
    )
    with torch.no_grad():
        logits = (
            SiglipModel.from_pretrained(folder).eval()(pixel_values=pixels, input_ids=tokens.input_ids).logits_per_image
        )
    torch.testing.assert_close(found, logits.diagonal(), atol=1e-3, rtol=1e-4)
