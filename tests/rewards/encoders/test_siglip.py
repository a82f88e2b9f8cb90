"""The SigLIP backbone: transformers' own logits, its preprocessing, its padding, and its folder."""

import copy
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, SiglipImageProcessor, SiglipModel

from mmrlhf.errors import UserError
from mmrlhf.images import from_pil
from mmrlhf.rewards.encoders.clip import CLIPBackbone, load_backbone
from mmrlhf.rewards.encoders.dual_encoder import DualEncoder
from mmrlhf.rewards.encoders.siglip import SiglipBackbone
from tests.rewards.test_clip import pictures
from tests.small_towers import MAX_TOKENS, SIZE, small_siglip

PROMPTS = ["a red cat", "dog", "a much longer red dog"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_siglip(tmp_path_factory.mktemp("small-siglip"))


@pytest.fixture
def siglip(folder: Path) -> SiglipBackbone:
    backbone = load_backbone(folder)
    assert isinstance(backbone, SiglipBackbone) and isinstance(backbone, DualEncoder)
    return backbone


def files_of(count: int, shape: tuple[int, int]) -> list[Image.Image]:
    levels = (pictures(count, 160)[:, :, : shape[0], : shape[1]] * 255).round().to(torch.uint8)
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in levels]


def images_of(files: list[Image.Image]) -> torch.Tensor:
    return torch.stack([from_pil(file) for file in files])


@pytest.mark.parametrize("shape", [(SIZE, SIZE), (48, 80), (90, 37)])
def test_the_logits_are_those_of_transformers(folder: Path, siglip: SiglipBackbone, shape: tuple[int, int]) -> None:
    """logit_scale.exp()·cosine + logit_bias, computed by SiglipModel's forward on what its processor makes of the same files."""
    files = files_of(3, shape)
    model, tokenizer = SiglipModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    pixels = SiglipImageProcessor.from_pretrained(folder)(files, return_tensors="pt").pixel_values
    tokens = tokenizer(PROMPTS, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(pixel_values=pixels, **tokens).logits_per_image
    images = siglip.embed_images(images_of(files))
    logits = siglip.scale * images @ siglip.embed_prompts(PROMPTS).T + siglip.bias
    exact = shape == (SIZE, SIZE)  # the processor rounds a resized picture to 256 levels
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4 if exact else 0.05)
    assert expected.std() > 0.5  # so that the tolerance means something
    torch.testing.assert_close(images.norm(dim=1), torch.ones(3))
    assert siglip.embedding_width == images.shape[1]


@pytest.mark.parametrize("resample", [2, 3])
def test_resizing_is_that_of_the_processor(tmp_path: Path, resample: int) -> None:
    """SigLIP's bicubic and SigLIP 2's bilinear differ by more than the tolerance."""
    folder = small_siglip(tmp_path, resample=resample)
    file = files_of(1, (90, 61))[0]
    expected = SiglipImageProcessor.from_pretrained(folder)(file, return_tensors="pt", do_normalize=False).pixel_values
    image = from_pil(file).unsqueeze(0)
    backbone = SiglipBackbone.load(folder)
    torch.testing.assert_close(backbone.preprocess(image), expected, rtol=0, atol=1.5 / 255)
    backbone.resample = 5 - resample
    assert (backbone.preprocess(image) - expected).abs().max() > 4 / 255


def test_a_prompt_does_not_see_the_others_and_is_padded_to_full_length(siglip: SiglipBackbone) -> None:
    siglip.tokenizer.padding_side = (
        "left"  # as Gemma's tokenizer, SigLIP 2's, has it by itself; the training padded right
    )
    together = siglip.embed_prompts(PROMPTS)
    alone = torch.cat([siglip.embed_prompts([prompt]) for prompt in PROMPTS])
    torch.testing.assert_close(alone, together, atol=1e-6, rtol=1e-5)
    ids = torch.tensor([[3, 4, 5, 1] + [0] * (MAX_TOKENS - 4)])  # a red cat </s> <pad> …
    full = siglip.model.text_model(input_ids=ids).pooler_output[0]
    short = siglip.model.text_model(input_ids=ids[:, :4]).pooler_output[0]
    torch.testing.assert_close(together[0], full / full.norm(), atol=1e-6, rtol=1e-5)
    assert (together[0] - short / short.norm()).abs().max() > 0.05  # what padding to the batch would give


def test_prompts_are_lower_case_as_in_training(siglip: SiglipBackbone) -> None:
    torch.testing.assert_close(siglip.embed_prompts(["A Red CAT"]), siglip.embed_prompts(["a red cat"]))


def test_each_prompt_is_encoded_once(siglip: SiglipBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, original = [], SiglipBackbone.encode_prompts

    def counted(self: SiglipBackbone, prompts: list[str]) -> torch.Tensor:
        seen.extend(prompts)
        return original(self, prompts)

    monkeypatch.setattr(SiglipBackbone, "encode_prompts", counted)
    rows = siglip.embed_prompts(["dog", "a red cat", "dog"])
    assert seen == ["dog", "a red cat"]
    assert torch.equal(rows[0], rows[2]) and not torch.equal(rows[0], rows[1])


def test_long_prompts_are_counted_and_keep_their_end(siglip: SiglipBackbone) -> None:
    long = "dog " * 40
    assert siglip.count_truncated(["dog", long, long]) == 1
    ids = torch.tensor([[6] * (MAX_TOKENS - 1) + [1]])
    cut = siglip.model.text_model(input_ids=ids).pooler_output[0]
    torch.testing.assert_close(siglip.embed_prompts([long])[0], cut / cut.norm(), atol=1e-6, rtol=1e-5)


def test_features_are_the_parts_of_clips(siglip: SiglipBackbone) -> None:
    """The unit embedding and the last layer's mean against transformers; the border against hand-picked patches."""
    images = pictures(70)
    features = siglip.image_features(images)
    assert features.shape == (70, siglip.feature_width) and siglip.feature_width == 32 + 4 * 32
    torch.testing.assert_close(features[:, :32], siglip.embed_images(images), atol=1e-5, rtol=1e-4)
    pixels = (images[66:] - 0.5) / 0.5
    last = siglip.model.vision_model(pixel_values=pixels).last_hidden_state
    first = siglip.model.vision_model.embeddings(pixels)
    torch.testing.assert_close(features[66:, 32:64], last.mean(dim=1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(features[66:, 64:96], first.mean(dim=1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(features[66:, 96:128], first.std(dim=1, correction=0), atol=1e-4, rtol=1e-3)
    border = [0, 1, 2, 3, 4, 7, 8, 11, 12, 13, 14, 15]
    torch.testing.assert_close(features[66:, 128:], first[:, border].mean(dim=1), atol=1e-5, rtol=1e-4)


def test_gradients_reach_the_images_and_not_the_weights(siglip: SiglipBackbone) -> None:
    images = pictures(2, 48).requires_grad_(True)
    texts = siglip.embed_prompts(PROMPTS[:2])

    def total(images: torch.Tensor) -> torch.Tensor:
        return (siglip.scale * (siglip.embed_images(images) * texts).sum(dim=1)).sum()

    total(images).backward()
    assert images.grad is not None
    direction, step = images.grad / images.grad.norm(), 0.02
    with torch.no_grad():
        slope = (total(images + step * direction).double() - total(images - step * direction).double()) / (2 * step)
    assert float(slope) == pytest.approx(float(images.grad.norm()), rel=0.03)
    assert all(weight.grad is None for weight in siglip.model.parameters())


def test_saved_copied_and_pickled_it_is_the_same(folder: Path, tmp_path: Path) -> None:
    backbone = load_backbone(shutil.copytree(folder, tmp_path / "first"))
    images, texts = pictures(3, 48), ["a red cat", "dog", "much"]
    expected = (backbone.embed_images(images), backbone.embed_prompts(texts))
    backbone.save(tmp_path / "second")
    assert {path.suffix for path in (tmp_path / "second").iterdir()} <= {".json", ".safetensors"}  # nothing pickled
    shutil.rmtree(tmp_path / "first")
    for other in (load_backbone(tmp_path / "second"), copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        for ours, theirs in zip((other.embed_images(images), other.embed_prompts(texts)), expected, strict=True):
            assert torch.equal(ours, theirs)


def test_lora_wraps_the_attention_of_every_block(siglip: SiglipBackbone) -> None:
    """And not the pooling head, whose fused attention would pass the LoRA by."""
    before = siglip.embed_images(pictures(1)), siglip.embed_prompts(["dog"])
    inject_adapter_in_model(LoraConfig(r=2, target_modules=list(siglip.lora_targets)), siglip.model)
    blocks = [*siglip.vision_blocks, *siglip.text_blocks]
    down = [name for name, _ in siglip.model.named_parameters() if "lora_A" in name]
    up = {name: part for name, part in siglip.model.named_parameters() if "lora_B" in name}
    assert len(blocks) == 4 and len(down) == len(up) == 4 * len(blocks)
    assert not [name for name in down if ".head." in name]
    torch.testing.assert_close(siglip.embed_images(pictures(1)), before[0])  # it starts as nothing
    for part in up.values():
        part.data.normal_(generator=torch.Generator().manual_seed(0))
    assert (siglip.embed_images(pictures(1)) - before[0]).abs().max() > 0.01
    assert (siglip.embed_prompts(["dog"]) - before[1]).abs().max() > 0.01


def test_half_precision_weights_are_computed_in_float32(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "half")
    SiglipModel.from_pretrained(folder).half().save_pretrained(tmp_path / "half")
    assert load_file(tmp_path / "half" / "model.safetensors")["logit_bias"].dtype == torch.float16
    assert load_backbone(tmp_path / "half").embed_images(pictures(1).half()).dtype == torch.float32


def test_models_that_are_none(folder: Path, clip_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a clip, allowed is a SiglipModel"):
        SiglipBackbone.load(clip_folder)
    with pytest.raises(UserError, match="is a siglip, allowed is a CLIPModel"):
        CLIPBackbone.load(folder)
    assert isinstance(load_backbone(clip_folder), CLIPBackbone)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match="is a bert, allowed are clip, siglip"):
        load_backbone(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match="cannot load the image-text model"):
        load_backbone(tmp_path)
    with pytest.raises(UserError, match="unknown model 'siglip'"):
        load_backbone("siglip")
    shutil.copytree(folder, tmp_path / "cut")
    (tmp_path / "cut" / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(UserError, match="cannot load the SigLIP model"):
        load_backbone(tmp_path / "cut")


def test_missing_weights_are_not_left_random(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "holes")
    weights = load_file(folder / "model.safetensors")
    del weights["text_model.head.weight"], weights["vision_model.head.probe"]
    save_file(weights, tmp_path / "holes" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="lack text_model.head.weight and 1 more: give the whole SiglipModel"):
        load_backbone(tmp_path / "holes")


def test_another_way_to_resize_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "lanczos")
    file = tmp_path / "lanczos" / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"resample": 1}))
    with pytest.raises(UserError, match=r"resizes with 1, allowed are 2 \(bilinear\) and 3 \(bicubic\)"):
        load_backbone(tmp_path / "lanczos")
