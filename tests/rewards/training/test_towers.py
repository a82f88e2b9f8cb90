"""Training the towers: which weights move, adapters that are merged, and the options of the loss."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPModel

from mmrlhf.data import Pair, read_pairs
from mmrlhf.errors import UserError
from mmrlhf.images import load_image
from mmrlhf.rewards.clip import CLIPReward
from mmrlhf.rewards.encoders.clip import CLIPBackbone
from mmrlhf.rewards.evaluate import evaluate_reward
from mmrlhf.rewards.training.pictures import Pictures
from mmrlhf.rewards.training.towers import embed, fine_tune
from tests.small_clip import noisy_colour, warm_pairs


def tuned(pairs: list[Pair], folder: Path, **changes: Any) -> tuple[CLIPReward, list[dict[str, Any]]]:
    lines: list[dict[str, Any]] = []
    settings: dict[str, Any] = {"seed": 0, "epochs": 6, "learning_rate": 1e-3, "weight_decay": 0.0, "batch_size": 16}
    settings |= {"warmup_steps": 2, "patience": 10, "progress": False, "on_epoch": lines.append} | changes
    return fine_tune(pairs, [], CLIPBackbone.load(folder), **settings), lines


@pytest.mark.parametrize(("tune", "rate"), [("last", 2e-3), ("lora", 2e-2)])
def test_some_weights_learn_and_the_others_stay(
    clip_folder: Path, pairs_file: Path, tmp_path: Path, tune: str, rate: float
) -> None:
    pairs = read_pairs(pairs_file)
    reward, lines = tuned(pairs, clip_folder, tune=tune, last_blocks=1, lora_rank=4, learning_rate=rate, epochs=12)
    assert lines[-1]["loss"] < 0.7 * lines[0]["loss"]
    fresh = read_pairs(warm_pairs(tmp_path / "fresh", prompts=20, each=2, seed=1))
    assert evaluate_reward(reward, fresh)["agreement"] > 0.8
    reward.save(tmp_path / "out")
    old, new = (load_file(folder / "model.safetensors") for folder in (clip_folder, tmp_path / "out"))
    moved = {name for name in old if not torch.equal(old[name], new[name])}
    assert old.keys() == new.keys()
    if tune == "lora":
        assert moved and all("_proj.weight" in name for name in moved)
    else:
        assert "visual_projection.weight" in moved and not any(".layers.0." in name for name in moved)
        assert any(".layers.1." in name for name in moved) and not any("embeddings" in name for name in moved)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    plain = CLIPReward(CLIPBackbone.load(tmp_path / "out"))
    torch.testing.assert_close(plain(images, ["a", "b"]), reward(images, ["a", "b"]))
    assert isinstance(CLIPModel.from_pretrained(tmp_path / "out"), CLIPModel)


@pytest.mark.parametrize("tune", ["last", "lora"])
def test_killed_and_resumed_is_never_killed(clip_folder: Path, pairs_file: Path, tmp_path: Path, tune: str) -> None:
    pairs = read_pairs(pairs_file)
    common: dict[str, Any] = {"tune": tune, "last_blocks": 1, "lora_rank": 2, "epochs": 3, "loss": "davidson"}
    whole, _ = tuned(pairs, clip_folder, **common)

    def kill(line: dict[str, Any]) -> None:
        if line["epoch"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tuned(pairs, clip_folder, **common, checkpoint=tmp_path / "c.pt", on_epoch=kill)
    state = torch.load(tmp_path / "c.pt", weights_only=True)
    assert sum(value.numel() for value in state["model"].values()) < sum(
        p.numel() for p in whole.backbone.model.parameters()
    )
    again, _ = tuned(pairs, clip_folder, **common, state=state)
    for name, value in whole.backbone.model.state_dict().items():
        assert torch.equal(value, again.backbone.model.state_dict()[name]), name


@pytest.mark.parametrize("batch_size", [64, 3])
def test_pairs_of_weight_0_are_left_out(clip_folder: Path, pairs_file: Path, batch_size: int) -> None:
    pairs = read_pairs(pairs_file)
    weights = torch.cat([torch.ones(30), torch.zeros(30)])
    silent, _ = tuned(pairs, clip_folder, epochs=1, weights=weights, batch_size=batch_size)
    half, _ = tuned(pairs[:30], clip_folder, epochs=1, batch_size=batch_size)
    first, second = (r.backbone.model.visual_projection.weight for r in (silent, half))
    assert torch.equal(first, second)
    with pytest.raises(UserError, match="got 60 pairs to train on, none of weight above 0"):
        tuned(pairs, clip_folder, weights=torch.zeros(60))


def test_davidsons_tie_parameter_is_trained_and_told(clip_folder: Path, pairs_file: Path) -> None:
    """It rises where all are ties."""
    ties = [Pair(pair.prompt, pair.image_0, pair.image_1, 0.5) for pair in read_pairs(pairs_file)]
    _, lines = tuned(ties, clip_folder, loss="davidson", learning_rate=1e-6)
    told = [line["log_tie"] for line in lines]
    assert told == sorted(told) and told[-1] > 0.1
    assert "log_tie" not in tuned(ties, clip_folder, epochs=1)[1][0]


def test_ties_have_no_preferred_image_to_find_its_prompt(clip_folder: Path, pairs_file: Path) -> None:
    ties = [Pair(pair.prompt, pair.image_0, pair.image_1, 0.5) for pair in read_pairs(pairs_file)]
    losses = [tuned(ties, clip_folder, epochs=1, negatives=weight)[1][0]["loss"] for weight in (0.0, 1.0)]
    assert losses[0] == losses[1]


def test_negatives_ask_the_preferred_image_for_its_prompt(
    backbone: CLIPBackbone, clip_folder: Path, pairs_file: Path
) -> None:
    """One step's loss with them is the loss without, and the weight times a cross entropy over the prompts."""
    pairs = [pair for pair in read_pairs(pairs_file) if pair.label_0 != 0.5][:9]
    losses = [tuned(pairs, clip_folder, epochs=1, negatives=weight)[1][0]["loss"] for weight in (0.0, 0.7)]
    plain, prompts = CLIPReward(backbone), sorted({pair.prompt for pair in pairs})
    total = 0.0
    for pair in pairs:
        image = load_image(pair.image_0 if pair.label_0 else pair.image_1).unsqueeze(0)
        scores = plain(image.expand(len(prompts), -1, -1, -1), prompts)
        share = 1 / (sum(other.prompt == pair.prompt for other in pairs) * len(prompts))
        total -= share * float(scores.log_softmax(0)[prompts.index(pair.prompt)])
    assert losses[1] - losses[0] == pytest.approx(0.7 * total, rel=1e-4)


def test_a_model_without_blocks_cannot_train_its_last_ones(
    backbone: CLIPBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CLIPBackbone, "vision_blocks", [])
    with pytest.raises(UserError, match="without transformer blocks in both towers: give --train full"):
        fine_tune([Pair("p", Path("a"), Path("b"), 1.0)], [], backbone, seed=0, epochs=1, learning_rate=1e-3, weight_decay=0.0,
                  batch_size=1, warmup_steps=0, patience=1, tune="last")  # fmt: skip


def test_no_more_blocks_than_there_are(clip_folder: Path, pairs_file: Path) -> None:
    with pytest.raises(UserError, match="--last-blocks got 3, allowed is 1 to 2"):
        tuned(read_pairs(pairs_file), clip_folder, tune="last", last_blocks=3)


def test_adapters_leave_nothing_behind(clip_folder: Path, pairs_file: Path) -> None:
    """A second round on the same model is as the first."""
    pairs = read_pairs(pairs_file)
    reward, _ = tuned(pairs, clip_folder, tune="lora", epochs=1)
    untouched = CLIPBackbone.load(clip_folder).model
    assert vars(reward.backbone.model).keys() == vars(untouched).keys()
    assert [type(m) for m in reward.backbone.model.modules()] == [type(m) for m in untouched.modules()]


def test_pictures_are_decoded_once_and_kept_within_bounds(
    backbone: CLIPBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [noisy_colour(tmp_path / f"{i}.png", (i / 4, 0.5, 0.5), torch.Generator().manual_seed(i)) for i in range(4)]
    decoded: list[Path] = []

    def counted(path: Path) -> torch.Tensor:
        decoded.append(path)
        return load_image(path)

    monkeypatch.setattr("mmrlhf.rewards.training.pictures.load_image", counted)
    pictures = Pictures(backbone, most_bytes=3 * 3 * 32 * 32)
    batch = pictures.load(files[:3])
    torch.testing.assert_close(batch[1], load_image(files[1]))
    pictures.load(files[:3])
    assert sorted(decoded) == files[:3]
    pictures.load([files[3]])  # takes the place of the one used longest ago
    assert pictures.bytes <= pictures.most_bytes and list(pictures.kept) == files[1:]
    pictures.load([files[0]])
    assert decoded[3:] == [files[3], files[0]]


def test_each_image_and_prompt_of_a_batch_is_encoded_once(backbone: CLIPBackbone, tmp_path: Path) -> None:
    a, b, c = (
        noisy_colour(tmp_path / f"{i}.png", (i / 3, 0.5, 0.5), torch.Generator().manual_seed(i)) for i in range(3)
    )
    batch = [Pair("x", a, b, 1.0), Pair("x", b, c, 0.0), Pair("y", c, a, 0.5)]
    seen, texts, rows, own = embed(backbone, batch, Pictures(backbone).load([a, b, c]))
    assert (len(seen), len(texts)) == (3, 2)
    assert rows.tolist() == [[0, 1], [1, 2], [2, 0]] and own.tolist() == [0, 0, 1]
