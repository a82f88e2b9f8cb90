"""What is saved must load in plain diffusers and draw the same pictures."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from diffusion.families.unets import LORA_TARGETS
from diffusion.loading import LORA_FILE, load_pipeline
from diffusion.policy import DiffusionPolicy
from mmrlhf.errors import UserError
from mmrlhf.models import pick_device
from tests.diffusion.test_policy import disturb, load

CPU = torch.device("cpu")


def unet_output(unet: torch.nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    latents, context = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 24, 32, generator=generator)
    with torch.no_grad():
        return unet(latents, torch.tensor([500, 20]), encoder_hidden_states=context, return_dict=False)[0]


@pytest.mark.parametrize("targets", LORA_TARGETS)
def test_saved_lora_loads_in_diffusers_and_gives_the_same_outputs(model: Path, tmp_path: Path, targets: str) -> None:
    policy = load(model, lora_alpha=6.0, lora_targets=targets)
    start = unet_output(policy.network)
    disturb(policy)
    folder = policy.save(tmp_path / "out")
    pipeline = StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
    torch.testing.assert_close(unet_output(pipeline.unet), start)
    pipeline.load_lora_weights(str(folder))
    torch.testing.assert_close(unet_output(pipeline.unet), unet_output(policy.network))
    assert (unet_output(policy.network) - start).abs().max() > 1e-3
    assert [path.name for path in folder.iterdir()] == [LORA_FILE]


def test_saved_lora_loads_in_a_policy_and_can_be_switched_off(model: Path, tmp_path: Path) -> None:
    policy = load(model)
    disturb(policy)
    again = DiffusionPolicy.load(str(model), lora=policy.save(tmp_path), num_steps=4, device="cpu")
    torch.testing.assert_close(unet_output(again.network), unet_output(policy.network))
    assert again.parameters() == []
    with again.reference(), policy.reference():
        torch.testing.assert_close(unet_output(again.network), unet_output(policy.network))


def test_all_weights_are_saved_as_a_pipeline(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = load(model, lora_rank=0)
    disturb(policy)
    capsys.readouterr()
    for _ in range(2):  # the second replaces the first
        folder = policy.save(tmp_path)
    assert "".join(capsys.readouterr()) == ""  # no progress bars beside the run's own
    assert folder == tmp_path / "model" and [path.name for path in tmp_path.iterdir()] == ["model"]
    torch.testing.assert_close(
        unet_output(load_pipeline(str(folder), CPU, torch.float32).unet), unet_output(policy.network)
    )
    StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)


def test_only_lora_weights_learn_and_they_are_float32(model: Path) -> None:
    policy = load(model, dtype="bfloat16", lora_rank=2)
    assert {weight.dtype for weight in policy.parameters()} == {torch.float32}
    frozen = [weight for name, weight in policy.network.named_parameters() if "lora" not in name]
    assert {weight.dtype for weight in frozen} == {torch.bfloat16}
    assert not any(weight.requires_grad for weight in frozen)
    assert sum(weight.numel() for weight in policy.parameters()) < 0.1 * sum(weight.numel() for weight in frozen)


def test_lora_starts_as_no_change_and_by_its_seed(model: Path) -> None:
    plain = load_pipeline(str(model), CPU, torch.float32).unet
    policies = [load(model, seed=seed) for seed in (0, 0, 1)]
    for policy in policies:
        torch.testing.assert_close(unet_output(policy.network), unet_output(plain))
    first, same, other = ([weight for weight in policy.parameters() if weight.any()] for policy in policies)
    assert all(a.equal(b) for a, b in zip(first, same, strict=True))
    assert not any(a.equal(b) for a, b in zip(first, other, strict=True))


def test_refuses_what_is_not_a_stable_diffusion_pipeline(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot load the model .*give a folder"):
        load(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "AnimateDiffPipeline"}))
    with pytest.raises(UserError, match="is a AnimateDiffPipeline, allowed are StableDiffusionPipeline"):
        load(tmp_path)
    with pytest.raises(UserError, match="unknown model"):
        load(tmp_path / "missing")


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


BREAK = {
    "TypeError: ": lambda folder: edit(folder / "model_index.json", unet=7),
    "AttributeError: ": lambda folder: (folder / "model_index.json").write_text("[1]"),
    "NotImplementedError: ": lambda folder: edit(folder / "scheduler" / "scheduler_config.json", beta_schedule="odd"),
    "SafetensorError: ": lambda folder: (folder / "text_encoder" / "model.safetensors").write_bytes(b"cut off"),
    "ValueError: the files of its tokenizer/ are missing .* 2 tokens": lambda folder: shutil.rmtree(
        folder / "tokenizer"
    ),
    "ValueError: the files of its tokenizer/ .* model_max_length 1e.30": lambda folder: (
        folder / "tokenizer" / "tokenizer_config.json"
    ).unlink(),
    "ValueError: the weights of its unet/ lack ": lambda folder: shutil.copy(
        folder / "vae" / "diffusion_pytorch_model.safetensors", folder / "unet"
    ),
}


@pytest.mark.filterwarnings("ignore")  # what the libraries say of a broken file before they fail
@pytest.mark.parametrize("reason", BREAK)
def test_a_broken_folder_is_one_line(model: Path, tmp_path: Path, reason: str) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(model, folder)
    BREAK[reason](folder)
    with pytest.raises(UserError, match=rf"cannot load the model {folder} \({reason}.*\): give a folder") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_refuses_options_that_do_not_go_together(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dtype got 'float8', allowed are float32, bfloat16, float16"):
        load(model, dtype="float8")
    with pytest.raises(UserError, match="lora_rank 0, allowed is float32"):
        load(model, dtype="bfloat16", lora_rank=0)
    with pytest.raises(UserError, match="both given"):
        load(model, lora=tmp_path)
    with pytest.raises(UserError, match="lora_targets got 'everything', allowed are attention, "):
        load(model, lora_targets="everything")
    with pytest.raises(UserError, match="no LoRA weights at .*--lora-rank 1 or more"):
        load(model, lora_rank=None, lora=tmp_path)
    (tmp_path / LORA_FILE).write_bytes(b"junk")
    with pytest.raises(UserError, match="do not fit the model"):
        load(model, lora_rank=None, lora=tmp_path)
    with pytest.raises(UserError, match="device got 'tpu9' .*allowed are auto, cpu"):
        pick_device("tpu9")
