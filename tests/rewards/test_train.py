"""Training: a preference by colour is learnt, a killed run resumes to the same weights, and folders are respected."""

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mmrlhf.data import Pair, read_pairs
from mmrlhf.errors import UserError
from mmrlhf.images import load_image
from mmrlhf.outcomes import items_of
from mmrlhf.rewards.clip import CLIPReward
from mmrlhf.rewards.encoders.cache import embed_items
from mmrlhf.rewards.encoders.clip import CLIPBackbone
from mmrlhf.rewards.evaluate import evaluate_reward
from mmrlhf.rewards.train import TrainConfig, fit_reward, train
from mmrlhf.rewards.training.fit import resample_counts
from mmrlhf.rewards.training.towers import batch_margins, make_optimizer, order_by_prompt
from tests.small_clip import noisy_colour, warm_pairs


def config(data: Path, model: Path, out: Path, **changes: Any) -> TrainConfig:
    return TrainConfig(data=data, out=out, model=str(model), **{"epochs": 4, **changes})


def same_weights(first: Path, second: Path) -> bool:
    files = sorted(path.name for path in first.glob("*.safetensors"))
    assert files and files == sorted(path.name for path in second.glob("*.safetensors"))
    pairs = [(load_file(first / name), load_file(second / name)) for name in files]
    return all(torch.equal(a[key], b[key]) for a, b in pairs for key in a.keys() | b.keys())


def lines(out: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in found]


def test_a_liking_for_red_is_learnt_and_found_in_new_pictures(
    clip_folder: Path, pairs_file: Path, tmp_path: Path
) -> None:
    """Random towers: the colour can only come through the features and the head."""
    fresh = read_pairs(warm_pairs(tmp_path / "fresh", prompts=30, each=2, seed=1))
    before = evaluate_reward(CLIPReward.from_pretrained(clip_folder), fresh)["agreement"]
    history: list[dict[str, Any]] = []
    reward = fit_reward(read_pairs(pairs_file), clip_folder, seed=0, progress=False, on_epoch=history.append)
    after = evaluate_reward(reward, fresh)
    assert after["agreement"] > max(0.9, before)
    assert after["agreement_ci95"][0] > 0.75
    assert history[-1]["loss"] < 0.6 * history[0]["loss"]
    generator = torch.Generator().manual_seed(5)
    red, blue = (
        load_image(noisy_colour(tmp_path / f"{i}.png", colour, generator, size=50)).unsqueeze(0)
        for i, colour in enumerate([(0.9, 0.5, 0.1), (0.1, 0.5, 0.9)])
    )
    assert reward(red, ["never seen"]) > reward(blue, ["never seen"])


def test_the_prompt_can_matter(clip_folder: Path, tmp_path: Path) -> None:
    """Red for one prompt and blue for the other: only a reward that reads prompts can tell."""
    generator = torch.Generator().manual_seed(0)
    pairs = []
    for i in range(60):
        red = noisy_colour(tmp_path / f"r{i}.png", (0.9, 0.5, 0.1), generator)
        blue = noisy_colour(tmp_path / f"b{i}.png", (0.1, 0.5, 0.9), generator)
        pairs += [Pair("cat", red, blue, 1.0), Pair("a dog, red", red, blue, 0.0)]
    reward = fit_reward(pairs, clip_folder, seed=0, epochs=30, validation=0.0, progress=False)
    assert evaluate_reward(reward, pairs)["agreement"] > 0.95


def test_the_same_seed_gives_the_same_reward(clip_folder: Path, pairs_file: Path) -> None:
    pairs = read_pairs(pairs_file)
    heads = [fit_reward(pairs, clip_folder, seed=seed, epochs=2, progress=False).head for seed in (0, 0, 1)]
    states = [head.state_dict() for head in heads if head is not None]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[0]["first"], states[2]["first"])


def test_members_differ_and_a_single_one_sees_every_pair(clip_folder: Path, pairs_file: Path) -> None:
    reward = fit_reward(read_pairs(pairs_file), clip_folder, seed=0, epochs=3, ensemble=3, progress=False)
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    members = reward.members(images, ["a"] * 4)
    assert members.shape == (3, 4) and members.std(dim=0).min() > 1e-3
    generator = torch.Generator().manual_seed(0)
    assert resample_counts(1, 5, generator).tolist() == [[1.0] * 5]
    counts = resample_counts(3, 50, generator)
    assert counts.sum(dim=1).tolist() == [50.0] * 3 and (counts == 0).any(dim=1).all()


def test_each_image_is_encoded_once_and_as_the_reward_does(
    backbone: CLIPBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b, c = (noisy_colour(tmp_path / f"{n}.png", (0.5, n / 3, 0.5), generator, size=40 + n) for n in range(3))
    copy = Path(shutil.copy(a, tmp_path / "copy.png"))
    pairs = [Pair("cat", a, b, 1.0), Pair("a long long prompt", copy, c, 0.0), Pair("cat", c, a, 0.5)]
    expected = [backbone.image_features(load_image(path).unsqueeze(0)) for path in (a, b, c)]
    encoded, original = [], CLIPBackbone.image_features

    def counted(self: CLIPBackbone, images: Tensor) -> Tensor:
        encoded.append(len(images))
        return original(self, images)

    monkeypatch.setattr(CLIPBackbone, "image_features", counted)
    found = embed_items(backbone, [item for pair in pairs for item in items_of(pair)])
    assert sum(encoded) == 3 and len(found.prompts) == 2
    for item, image in enumerate([0, 1, 0, 2, 2, 0]):
        torch.testing.assert_close(found.images[found.image_rows[item]], expected[image][0], atol=1e-5, rtol=1e-4)
        text = backbone.embed_prompts([pairs[item // 2].prompt])[0]
        torch.testing.assert_close(found.prompts[found.prompt_rows[item]], text, atol=1e-5, rtol=1e-4)


def test_train_writes_a_reward_and_a_line_an_epoch(
    clip_folder: Path, pairs_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train(config(pairs_file, clip_folder, tmp_path / "run"))
    assert f"the reward is in {tmp_path / 'run'}" in capsys.readouterr().out.splitlines()[-1]
    assert [line["epoch"] for line in lines(tmp_path / "run")] == [0, 1, 2, 3]
    assert {"loss", "held_out_loss", "held_out_agreement"} < set(lines(tmp_path / "run")[0])
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    loaded = CLIPReward.load(tmp_path / "run")
    torch.testing.assert_close(loaded(images, ["a", "b"]), result.reward(images, ["a", "b"]))
    assert not list((tmp_path / "run").glob("*.tmp"))


def test_the_best_epoch_is_kept_and_training_stops_after_it(clip_folder: Path, pairs_file: Path) -> None:
    history: list[dict[str, Any]] = []
    pairs = read_pairs(pairs_file)
    reward = fit_reward(
        pairs, clip_folder, seed=0, epochs=60, patience=3, validation=0.3, progress=False, on_epoch=history.append
    )
    ranks = [(line["held_out_agreement"], -line["held_out_loss"]) for line in history]
    best = max(range(len(ranks)), key=lambda i: ranks[i])
    assert len(history) == best + 4 < 60
    again = fit_reward(pairs, clip_folder, seed=0, epochs=best + 1, validation=0.3, progress=False)
    assert reward.head is not None and again.head is not None
    assert torch.equal(reward.head.last, again.head.last)


def test_full_training_learns_and_changes_the_towers(clip_folder: Path, pairs_file: Path, tmp_path: Path) -> None:
    settings = config(
        pairs_file, clip_folder, tmp_path / "run", train="full", epochs=12, learning_rate=1e-3, batch_size=16
    )
    train(settings)
    history = lines(tmp_path / "run")
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    fresh = read_pairs(warm_pairs(tmp_path / "fresh", prompts=20, each=2, seed=1))
    reward = CLIPReward.load(tmp_path / "run")
    assert reward.head is None
    assert evaluate_reward(reward, fresh)["agreement"] > 0.85
    old, new = (load_file(folder / "model.safetensors") for folder in (clip_folder, tmp_path / "run"))
    assert not torch.equal(old["visual_projection.weight"], new["visual_projection.weight"])
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


@pytest.mark.parametrize("kind", ["full", "head"])
def test_killed_and_resumed_is_never_killed(
    clip_folder: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    rate = 1e-3 if kind == "full" else None
    whole = config(pairs_file, clip_folder, tmp_path / "whole", train=kind, learning_rate=rate, batch_size=16)
    train(whole)
    cut = dataclasses.replace(whole, out=tmp_path / "cut")
    original = __import__("mmrlhf.rewards.train", fromlist=["write_jsonl"]).write_jsonl

    def killed_after_two(rows: list[dict[str, Any]], path: Path) -> None:
        original(rows, path)
        if len(rows) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mmrlhf.rewards.train.write_jsonl", killed_after_two)
        with pytest.raises(KeyboardInterrupt):
            train(cut)
    assert (cut.out / "checkpoint.pt").exists() is (kind == "full")
    with pytest.raises(UserError, match="already holds files: give an empty folder, or --resume"):
        train(cut)
    result = train(dataclasses.replace(cut, resume=True))
    assert same_weights(whole.out, cut.out)
    assert lines(whole.out) == lines(cut.out)
    again = train(dataclasses.replace(cut, resume=True))  # finished: only read back
    assert again.metrics == result.metrics


def test_a_resumed_run_must_have_the_same_settings(clip_folder: Path, pairs_file: Path, tmp_path: Path) -> None:
    train(config(pairs_file, clip_folder, tmp_path / "run", epochs=1))
    with pytest.raises(UserError, match=r"other settings \(seed; seed was 0, now 1\)"):
        train(config(pairs_file, clip_folder, tmp_path / "run", epochs=1, seed=1, resume=True))
    other = warm_pairs(tmp_path / "other", prompts=5, seed=3)
    with pytest.raises(UserError, match=r"other settings \(data_sha256"):
        train(config(other, clip_folder, tmp_path / "run", epochs=1, resume=True))


def test_folders_of_something_else_stay_as_they_are(clip_folder: Path, pairs_file: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.png").write_bytes(b"x")
    for resume, message in [(False, "already holds files"), (True, "holds files but no run")]:
        with pytest.raises(UserError, match=message):
            train(config(pairs_file, clip_folder, tmp_path / "photos", resume=resume))
    with pytest.raises(UserError, match="is a file: give a folder"):
        train(config(pairs_file, clip_folder, tmp_path / "photos" / "me.png"))
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["me.png"]


def test_bad_input_writes_nothing(clip_folder: Path, pairs_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match="is empty"):
        train(config(tmp_path / "empty.jsonl", clip_folder, out))
    with pytest.raises(UserError, match="cannot load the image-text model"):
        train(config(pairs_file, tmp_path, out))
    changes: list[tuple[dict[str, Any], str]] = [
        ({"epochs": 0}, "--epochs got 0, allowed is 1 or more"),
        ({"learning_rate": math.nan}, "--learning-rate got nan, allowed is above 0"),
        ({"dropout": 1.0}, "--dropout got 1.0"),
        ({"validation": 1.0}, "--validation got 1.0"),
        ({"device": "abacus"}, "--device got 'abacus'"),
    ]
    for change, message in changes:
        with pytest.raises(UserError, match=message):
            train(config(pairs_file, clip_folder, out, **change))
    assert not out.exists()


def test_an_unreadable_image_is_named(clip_folder: Path, pairs_file: Path, tmp_path: Path) -> None:
    data = warm_pairs(tmp_path / "data", prompts=5)
    broken = read_pairs(data)[3].image_0
    broken.write_bytes(b"no picture")
    for kind in ("head", "full"):
        with pytest.raises(UserError, match=f"{broken.name} is not a readable image"):
            train(config(data, clip_folder, tmp_path / kind, train=kind))
        assert not (tmp_path / kind).exists()  # so that the mended command may have it


def test_a_loss_that_is_no_number_is_no_reward(clip_folder: Path, pairs_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the loss is no longer a number in epoch .*: lower --learning-rate"):
        train(config(pairs_file, clip_folder, tmp_path / "run", validation=0.0, learning_rate=1e30))
    assert not (tmp_path / "run").exists()


def test_features_are_standardised_over_both_sides(clip_folder: Path, pairs_file: Path) -> None:
    """The winner first in every pair: their mean must not stand for the mean of all."""
    pairs = [
        p if p.label_0 >= 0.5 else Pair(p.prompt, p.image_1, p.image_0, 1 - p.label_0) for p in read_pairs(pairs_file)
    ]
    head = fit_reward(pairs, clip_folder, seed=0, epochs=1, validation=0.0, progress=False).head
    items = [item for pair in pairs for item in items_of(pair)]
    embedded = embed_items(CLIPBackbone.load(clip_folder), items, progress=False)
    seen = embedded.images[embedded.image_rows]
    assert head is not None
    torch.testing.assert_close(head.mean[: seen.shape[1]], seen.mean(dim=0), atol=1e-4, rtol=1e-4)


def test_a_first_write_that_was_cut_off_does_not_block_the_folder(
    clip_folder: Path, pairs_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "train.json.123.tmp").write_text("{")
    assert train(config(pairs_file, clip_folder, tmp_path / "run", epochs=1, resume=True)).metrics


def test_a_broken_checkpoint(clip_folder: Path, pairs_file: Path, tmp_path: Path) -> None:
    settings = config(pairs_file, clip_folder, tmp_path / "run", train="full", epochs=1)
    train(settings)
    (settings.out / "reward.json").unlink()
    (settings.out / "checkpoint.pt").write_bytes(b"cut")
    with pytest.raises(UserError, match="is broken: remove it to start again from the beginning"):
        train(dataclasses.replace(settings, resume=True))


def test_pairs_of_a_prompt_share_a_batch_and_none_is_lost() -> None:
    pairs = [Pair(f"p{i % 7}", Path(f"{i}a"), Path(f"{i}b"), 1.0) for i in range(35)]
    orders = [order_by_prompt(pairs, torch.Generator().manual_seed(seed)).tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == list(range(35))
    prompts = [pairs[row].prompt for row in orders[0]]
    assert sum(a != b for a, b in zip(prompts, prompts[1:], strict=False)) == 6


def test_full_margins_are_differences_of_the_plain_score(backbone: CLIPBackbone, pairs_file: Path) -> None:
    batch = read_pairs(pairs_file)[:4]
    plain = CLIPReward(backbone)
    sides = [
        torch.stack([load_image(path) for path in paths])
        for paths in zip(*[(p.image_0, p.image_1) for p in batch], strict=True)
    ]
    first, second = (plain(images, [pair.prompt for pair in batch]) for images in sides)
    torch.testing.assert_close(batch_margins(backbone, batch), first - second, atol=1e-4, rtol=1e-4)


def test_biases_norms_and_the_scale_do_not_decay(backbone: CLIPBackbone) -> None:
    model = backbone.model.requires_grad_(True)
    decayed, kept = make_optimizer(model, 1e-3, 0.3).param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.3, 0.0)
    assert any(p is model.logit_scale for p in kept["params"])
    assert len(decayed["params"]) + len(kept["params"]) == len(list(model.parameters()))


def test_no_pairs(clip_folder: Path) -> None:
    with pytest.raises(UserError, match="got no pairs to train on"):
        fit_reward([], clip_folder, seed=0)
