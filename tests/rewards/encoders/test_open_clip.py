"""The open_clip backbone: the library's own encoders and transforms, SigLIP's towers of timm, features, and its folder."""

import copy
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmrlhf.errors import UserError
from mmrlhf.images import from_pil
from mmrlhf.rewards.encoders.clip import CLIPBackbone, load_backbone
from mmrlhf.rewards.encoders.dual_encoder import DualEncoder
from mmrlhf.rewards.encoders.open_clip import OpenClipBackbone, first_patches
from tests.rewards.encoders.test_siglip import files_of, images_of
from tests.rewards.test_clip import PROMPTS, pictures
from tests.small_clip import small_clip
from tests.small_towers import TEXT, VISION, small_open_clip

# as open_clip's ViT-B-16-SigLIP: a timm tower with attention pooling, no causal mask, a bias, a tokenizer of transformers
SIGLIP: dict[str, Any] = {
    "embed_dim": 96,
    "custom_text": True,
    "init_logit_bias": -10,
    "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none"},
    "text_cfg": TEXT | {"context_length": 16, "vocab_size": 9, "no_causal_mask": True, "proj_bias": True,
                        "pool_type": "last", "hf_tokenizer_name": "somewhere/on-the-hub"},
}  # fmt: skip
RESNET: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16},
    "text_cfg": TEXT,
}
SIGLIP_PIXELS = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_open_clip(tmp_path_factory.mktemp("small-open-clip"))


@pytest.fixture(scope="module")
def siglip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_open_clip(tmp_path_factory.mktemp("small-open-siglip"), SIGLIP, SIGLIP_PIXELS)


@pytest.fixture(params=["clip", "siglip"])
def any_folder(request: pytest.FixtureRequest, folder: Path, siglip_folder: Path) -> Path:
    return folder if request.param == "clip" else siglip_folder


def load(folder: Path) -> OpenClipBackbone:
    backbone = load_backbone(folder)
    assert isinstance(backbone, OpenClipBackbone) and isinstance(backbone, DualEncoder)
    return backbone


@pytest.mark.parametrize("shape", [None, (48, 80), (90, 37)])
def test_the_logits_are_those_of_open_clip(any_folder: Path, shape: tuple[int, int] | None) -> None:
    """exp(logit_scale)·cosine + bias, by the library's encoders on what its transform makes of the same files."""
    backbone = load(any_folder)
    files = files_of(3, shape or (backbone.image_size, backbone.image_size))
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{any_folder}")
    pixels = torch.stack([transform(file) for file in files])
    tokens = open_clip.get_tokenizer(f"local-dir:{any_folder}")(PROMPTS)
    with torch.no_grad():
        expected, _ = model.eval().get_logits(pixels, tokens)
    images = backbone.embed_images(images_of(files))
    logits = backbone.scale * images @ backbone.embed_prompts(PROMPTS).T + backbone.bias
    exact = shape is None  # the transform rounds a resized picture to 256 levels
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4 if exact else 0.05)
    assert expected.std() > 0.2  # so that the tolerance means something
    assert float(backbone.bias) == (-10 if backbone.image_size == 160 else 0)
    assert backbone.embedding_width == images.shape[1]


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("shape", [(48, 80), (90, 37), (20, 21), (61, 93)])
def test_resizing_is_that_of_the_library(
    folder: Path, shape: tuple[int, int], interpolation: str, resize_mode: str
) -> None:
    backbone = load(folder)
    settings = backbone.preprocessing | {"interpolation": interpolation, "resize_mode": resize_mode, "fill_color": 51}
    backbone.model.visual.preprocess_cfg = settings
    file = files_of(1, shape)[0]
    expected = image_transform_v2(PreprocessCfg(**settings | {"mean": (0,) * 3, "std": (1,) * 3}), is_train=False)(file)
    ours = backbone.preprocess(from_pil(file).unsqueeze(0))
    torch.testing.assert_close(ours[0], expected, rtol=0, atol=1.5 / 255)


def test_rows_do_not_see_each_other(any_folder: Path) -> None:
    backbone = load(any_folder)
    images = pictures(3, 48)
    for encode, inputs in ((backbone.embed_images, images), (backbone.image_features, images)):
        alone = torch.cat([encode(inputs[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(alone, encode(inputs), atol=2e-5, rtol=1e-4)
    texts = torch.cat([backbone.embed_prompts([prompt]) for prompt in PROMPTS])
    torch.testing.assert_close(texts, backbone.embed_prompts(PROMPTS), atol=1e-5, rtol=1e-4)


def test_each_prompt_is_encoded_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    original = OpenClipBackbone.encode_prompts

    def counted(self: OpenClipBackbone, prompts: list[str]) -> Tensor:
        seen.extend(prompts)
        return original(self, prompts)

    monkeypatch.setattr(OpenClipBackbone, "encode_prompts", counted)
    rows = load(folder).embed_prompts(["dog", "cat", "dog"])
    assert seen == ["dog", "cat"]
    assert torch.equal(rows[0], rows[2]) and not torch.equal(rows[0], rows[1])


def test_long_prompts_are_counted(folder: Path, siglip_folder: Path) -> None:
    for backbone, room in ((load(folder), 22), (load(siglip_folder), 15)):  # less the tokens at the ends
        assert backbone.count_truncated(["dog", "dog " * room, "dog " * (room + 1), "dog " * (room + 1)]) == 1
        assert backbone.embed_prompts(["dog " * 60]).isfinite().all()


def test_features_are_the_parts_of_clips(any_folder: Path) -> None:
    """What the blocks really take and give, caught by hooks, against the features."""
    backbone = load(any_folder)
    images = pictures(3, backbone.image_size)
    caught: dict[str, Tensor] = {}
    blocks = backbone.vision_blocks
    start = backbone.model.visual.ln_pre if hasattr(backbone.model.visual, "ln_pre") else blocks[0]
    start.register_forward_pre_hook(lambda _, inputs: caught.update(first=inputs[0]))
    blocks[-1].register_forward_hook(lambda _, inputs, out: caught.update(last=out))
    embedding = backbone.embed_images(images)
    first, last = caught["first"][:, 1:], caught["last"][:, 1:]  # both towers have one token before the patches
    features = backbone.image_features(images)
    width, count = backbone.embedding_width, first.shape[2]
    assert features.shape == (3, backbone.feature_width) and backbone.feature_width == width + 4 * count
    parts = features[:, width:].split(count, dim=1)
    torch.testing.assert_close(features[:, :width], embedding, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(first_patches(backbone.model.visual, backbone.pixels(images)), first)
    torch.testing.assert_close(parts[0], last.mean(dim=1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(parts[1], first.mean(dim=1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(parts[2], first.std(dim=1, correction=0), atol=1e-4, rtol=1e-3)


def test_the_same_weights_give_the_features_of_transformers(tmp_path: Path) -> None:
    """A CLIPModel's weights written under open_clip's names: the same embeddings and features from both backbones."""
    theirs = CLIPBackbone.load(small_clip(tmp_path / "clip"))
    config = theirs.model.config
    text = TEXT | {"vocab_size": config.text_config.vocab_size}
    wide = VISION | {"width": 32, "head_width": 16, "mlp_ratio": 2.0}
    architecture = {"embed_dim": 16, "quick_gelu": True, "vision_cfg": wide, "text_cfg": text | {"mlp_ratio": 2.0}}
    model = open_clip.CLIP(**architecture)
    model.load_state_dict(open_clip_names(theirs.model.state_dict()), strict=True)
    open_clip.model.set_model_preprocess_cfg(model, vars(PreprocessCfg(size=32)))
    ours = OpenClipBackbone(model, None, architecture)
    images = pictures(3, 48)
    torch.testing.assert_close(ours.image_features(images), theirs.image_features(images), atol=1e-5, rtol=1e-4)
    assert ours.feature_width == theirs.feature_width


def open_clip_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' names of a CLIP's weights as open_clip's."""
    found = {
        "logit_scale": state["logit_scale"],
        "visual.proj": state["visual_projection.weight"].T,
        "text_projection": state["text_projection.weight"].T,
        "visual.class_embedding": state["vision_model.embeddings.class_embedding"],
        "visual.conv1.weight": state["vision_model.embeddings.patch_embedding.weight"],
        "visual.positional_embedding": state["vision_model.embeddings.position_embedding.weight"],
        "token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": state["text_model.embeddings.position_embedding.weight"],
    }
    norms = [("vision_model.pre_layrnorm", "visual.ln_pre"), ("vision_model.post_layernorm", "visual.ln_post"),
             ("text_model.final_layer_norm", "ln_final")]  # fmt: skip
    for tower, prefix in (("vision_model", "visual."), ("text_model", "")):
        for block in range(2):
            old, new = f"{tower}.encoder.layers.{block}", f"{prefix}transformer.resblocks.{block}"
            norms += [(f"{old}.layer_norm{i}", f"{new}.ln_{i}") for i in (1, 2)]
            norms += [(f"{old}.mlp.fc1", f"{new}.mlp.c_fc"), (f"{old}.mlp.fc2", f"{new}.mlp.c_proj")]
            norms += [(f"{old}.self_attn.out_proj", f"{new}.attn.out_proj")]
            for part in ("weight", "bias"):
                fused = [state[f"{old}.self_attn.{name}_proj.{part}"] for name in "qkv"]
                found[f"{new}.attn.in_proj_{part}"] = torch.cat(fused)
    found |= {f"{new}.{part}": state[f"{old}.{part}"] for old, new in norms for part in ("weight", "bias")}
    return found


def test_a_tower_without_patches_gives_its_embedding(tmp_path: Path) -> None:
    backbone = load(small_open_clip(tmp_path, RESNET))
    images = pictures(2)
    assert backbone.feature_width == backbone.embedding_width == 16
    torch.testing.assert_close(backbone.image_features(images), backbone.embed_images(images))
    assert len(backbone.vision_blocks) == 0 and len(backbone.text_blocks) == 2


def test_gradients_reach_the_images_and_not_the_weights(any_folder: Path) -> None:
    backbone = load(any_folder)
    weights = torch.randn(backbone.embedding_width, generator=torch.Generator().manual_seed(0))
    images = pictures(2, 48).requires_grad_(True)

    def total(images: Tensor) -> Tensor:
        return (backbone.embed_images(images) @ weights).sum()

    total(images).backward()
    assert images.grad is not None
    direction, step = images.grad / images.grad.norm(), 0.02
    with torch.no_grad():
        slope = (total(images + step * direction).double() - total(images - step * direction).double()) / (2 * step)
    assert float(slope) == pytest.approx(float(images.grad.norm()), rel=0.03)
    assert all(weight.grad is None for weight in backbone.model.parameters())


def test_saved_copied_and_pickled_it_is_the_same(any_folder: Path, tmp_path: Path) -> None:
    backbone = load(shutil.copytree(any_folder, tmp_path / "first"))
    images, texts = pictures(3, 48), ["a red cat", "dog", "much"]
    expected = (backbone.image_features(images), backbone.embed_prompts(texts))
    backbone.save(tmp_path / "second")
    assert {path.suffix for path in (tmp_path / "second").iterdir()} <= {".json", ".safetensors"}  # nothing pickled
    shutil.rmtree(tmp_path / "first")
    for other in (load(tmp_path / "second"), copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        for ours, theirs in zip((other.image_features(images), other.embed_prompts(texts)), expected, strict=True):
            assert torch.equal(ours, theirs)
    model, _ = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path / 'second'}")  # open_clip reads it too
    assert torch.equal(model.logit_scale, backbone.model.logit_scale)


def test_lora_wraps_every_block(any_folder: Path) -> None:
    backbone = load(any_folder)
    before = backbone.embed_images(pictures(1)), backbone.embed_prompts(["dog"])
    native, timm = len(backbone.text_blocks), len(backbone.vision_blocks)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the adapters' start
        inject_adapter_in_model(LoraConfig(r=2, target_modules=list(backbone.lora_targets)), backbone.model)
    up = {name: part for name, part in backbone.model.named_parameters() if "lora_B" in name}
    assert (native, timm) in {(2, 2), (2, 9)} and len(up) == 2 * native + 2 * timm
    for part in up.values():
        part.data.normal_(generator=torch.Generator().manual_seed(0))
    assert (backbone.embed_images(pictures(1)) - before[0]).abs().max() > 1e-5
    assert (backbone.embed_prompts(["dog"]) - before[1]).abs().max() > 1e-3


def test_half_precision_weights_are_computed_in_float32(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "half")
    weights = load_file(folder / "open_clip_model.safetensors")
    save_file({name: part.half() for name, part in weights.items()}, tmp_path / "half" / "open_clip_model.safetensors")
    backbone = load(tmp_path / "half")
    assert {part.dtype for part in backbone.model.parameters()} == {torch.float32}
    assert backbone.embed_images(pictures(1).half()).dtype == torch.float32


def test_folders_that_are_none(folder: Path, tmp_path: Path) -> None:
    bad = shutil.copytree(folder, tmp_path / "bad")
    settings = json.loads((bad / "open_clip_config.json").read_text())
    (bad / "open_clip_model.safetensors").write_bytes(b"cut short")
    with pytest.raises(UserError, match="cannot load the open_clip model .*bad"):
        load_backbone(bad)
    (bad / "open_clip_model.safetensors").unlink()
    with pytest.raises(UserError, match="could not be loaded.*give a folder with open_clip_config.json"):
        load_backbone(bad)
    (bad / "open_clip_config.json").write_text("{")
    with pytest.raises(UserError, match="cannot load the open_clip model"):
        load_backbone(bad)
    settings["model_cfg"]["vision_cfg"] = VISION | {"image_size": [32, 48]}
    wide = small_open_clip(tmp_path / "wide", settings["model_cfg"])
    with pytest.raises(UserError, match="takes images of 32×48, allowed are square ones"):
        load_backbone(wide)
    with pytest.raises(UserError, match="cannot load the open_clip model hf-hub:nobody/nothing"):
        load_backbone("hf-hub:nobody/nothing")


def test_weights_that_would_run_code_are_refused(folder: Path, tmp_path: Path) -> None:
    bad = shutil.copytree(folder, tmp_path / "bad")
    (bad / "open_clip_model.safetensors").unlink()
    torch.save({"logit_scale": torch.nn.Linear(1, 1)}, bad / "open_clip_pytorch_model.bin")
    with pytest.raises(UserError, match="cannot load the open_clip model"):
        load_backbone(bad)
