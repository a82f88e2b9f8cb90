"""Heads learn from every kind of judgement, one a criterion, and from features in a file as from those in memory."""

import copy
import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from mmrlhf.data import Item, Pair, read_pairs
from mmrlhf.errors import UserError
from mmrlhf.outcomes import Outcome, Ranking, Rating, items_of
from mmrlhf.rewards import load_reward
from mmrlhf.rewards.clip import CLIPReward
from mmrlhf.rewards.encoders.cache import embed_items
from mmrlhf.rewards.encoders.clip import CLIPBackbone
from mmrlhf.rewards.evaluate import evaluate_reward
from mmrlhf.rewards.score import score_items
from mmrlhf.rewards.training.fit import fit_reward
from tests.small_clip import noisy_colour, warm_pairs


@pytest.fixture(scope="module")
def reds(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[float, Path]]:
    """Pictures from blue to red, and how red."""
    folder, generator = tmp_path_factory.mktemp("reds"), torch.Generator().manual_seed(0)
    shares = torch.rand(80, generator=generator).tolist()
    return [(r, noisy_colour(folder / f"{i}.png", (r, 0.5, 1 - r), generator)) for i, r in enumerate(shares)]


def rankings(reds: list[tuple[float, Path]]) -> list[Ranking]:
    """Four pictures at a time, the reddest first."""
    found = []
    for start in range(0, len(reds), 4):
        group = reds[start : start + 4]
        order = sorted((red for red, _ in group), reverse=True)
        images, ranks = tuple(path for _, path in group), tuple(1.0 + order.index(red) for red, _ in group)
        found.append(Ranking(f"a red cat {start}", images, ranks))
    return found


def best_of_four(reds: list[tuple[float, Path]]) -> list[Ranking]:
    return [dataclasses.replace(r, ranks=tuple(1.0 + (rank > 1) for rank in r.ranks)) for r in rankings(reds)]


def ratings(reds: list[tuple[float, Path]]) -> list[Rating]:
    return [Rating(f"a red cat {i}", path, 1 + min(4, int(5 * red))) for i, (red, path) in enumerate(reds)]


@pytest.mark.parametrize("kind", [rankings, best_of_four, ratings])
def test_a_liking_for_red_is_learnt_from(
    kind: Any, reds: list[tuple[float, Path]], clip_folder: Path, tmp_path: Path
) -> None:
    history: list[dict[str, Any]] = []
    reward = fit_reward(kind(reds), clip_folder, seed=0, progress=False, on_epoch=history.append)
    fresh = read_pairs(warm_pairs(tmp_path, prompts=20, each=2, seed=1))
    assert evaluate_reward(reward, fresh)["agreement"] > 0.85
    assert history[-1]["held_out_agreement"] > 0.7


def test_a_head_a_criterion_and_the_veto_says_which_side(
    reds: list[tuple[float, Path]], clip_folder: Path, tmp_path: Path
) -> None:
    """Overall red is liked, by `calm` blue, and what is very red is unsafe."""
    first, second = reds[::2], reds[1::2]
    outcomes: list[Outcome] = []
    for i, ((red_0, a), (red_1, b)) in enumerate(zip(first, second, strict=True)):
        outcomes += [
            Pair(f"cat {i}", a, b, float(red_0 > red_1)),
            Pair(f"cat {i}", a, b, float(red_0 < red_1), criterion="calm"),
        ]
    outcomes += [Rating(f"cat {i}", path, 1 + (red < 0.7), 2, criterion="safety") for i, (red, path) in enumerate(reds)]
    fit_reward(outcomes, clip_folder, seed=0, progress=False).save(tmp_path / "reward")
    reward = CLIPReward.load(tmp_path / "reward")
    assert sorted(reward.heads) == ["", "calm", "safety"] and reward.criterion == ""
    items = [Item("cat", path) for _, path in reds]
    redness = torch.tensor([red for red, _ in reds])
    overall, calm, safety = (torch.tensor(score_items(load_reward(f"{tmp_path / 'reward'}:criterion={name}"), items))
                             for name in ("", "calm", "safety"))  # fmt: skip
    assert torch.corrcoef(torch.stack([redness, overall]))[0, 1] > 0.8
    assert torch.corrcoef(torch.stack([redness, calm]))[0, 1] < -0.8
    assert ((safety > 0) == (redness < 0.7)).float().mean() > 0.85
    with pytest.raises(UserError, match="criterion got 'taste', allowed is '', 'calm', 'safety'"):
        reward.but(criterion="taste")


def test_thresholds_rise_and_their_middle_is_0(reds: list[tuple[float, Path]], clip_folder: Path) -> None:
    head = fit_reward(ratings(reds), clip_folder, seed=0, progress=False).head
    assert head is not None
    places = head.thresholds
    assert len(places) == 4 and (places.diff() > 0).all() and float(places[1] + places[2]) == pytest.approx(0, abs=1e-6)


def test_a_pessimist_loses_what_the_members_differ_by_and_an_unsure_one_abstains(headed: CLIPReward) -> None:
    images = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0), requires_grad=True)
    prompts = ["a", "b", "c", "d", "e"]
    members = headed.members(images, prompts).detach()
    spread = members.std(dim=0, correction=0)
    lower = headed.but(pessimism=1.5)(images, prompts)
    torch.testing.assert_close(lower.detach(), members.mean(0) - 1.5 * spread, atol=1e-4, rtol=1e-4)
    (gradient,) = torch.autograd.grad(lower.sum(), images)
    assert gradient.isfinite().all() and gradient.abs().sum() > 0
    limit = float(spread.sort().values[2:4].mean())  # between two, for a copy may differ in the last digit
    unsure = pickle.loads(pickle.dumps(headed.but(abstain_above=limit)))(images, prompts)
    assert unsure.isnan().tolist() == (spread > limit).tolist()
    with pytest.raises(UserError, match="pessimism got -1"):
        headed.but(pessimism=-1)


def test_settings_in_a_name(headed: CLIPReward, tmp_path: Path) -> None:
    headed.save(tmp_path / "r")
    reward: Any = load_reward(f"{tmp_path / 'r'}:pessimism=2,abstain_above=0.5")
    assert (reward.pessimism, reward.abstain_above) == (2.0, 0.5)
    for text, message in [
        ("optimism=1", "got 'optimism', allowed are criterion, pessimism, abstain_above"),
        ("pessimism=much", "pessimism got 'much', allowed is a number"),
    ]:
        with pytest.raises(UserError, match=message):
            load_reward(f"{tmp_path / 'r'}:{text}")


def test_features_in_a_file_are_those_in_memory(
    clip_folder: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = read_pairs(pairs_file)
    encoded: list[int] = []
    original = CLIPBackbone.image_features

    def counted(self: CLIPBackbone, images: torch.Tensor) -> torch.Tensor:
        encoded.append(len(images))
        return original(self, images)

    monkeypatch.setattr(CLIPBackbone, "image_features", counted)
    in_memory = fit_reward(pairs, clip_folder, seed=0, epochs=2, progress=False).head
    count, encoded[:] = sum(encoded), []
    with monkeypatch.context() as patch:  # killed while it encodes: what was written is found again
        patch.setattr("mmrlhf.rewards.encoders.loading.load_image", stop_after(70))
        with pytest.raises(KeyboardInterrupt):
            fit_reward(pairs, clip_folder, seed=0, epochs=2, progress=False, cache=tmp_path / "cache")
    names = next((tmp_path / "cache").glob("*.hashes"))
    names.write_text(names.read_text()[:-5])  # and a line cut in half
    on_disk = fit_reward(pairs, clip_folder, seed=0, epochs=2, progress=False, cache=tmp_path / "cache").head
    assert count <= sum(encoded) <= count + 1  # the one whose line was cut is encoded again
    encoded.clear()
    again = fit_reward(pairs, clip_folder, seed=0, epochs=2, progress=False, cache=tmp_path / "cache").head
    assert encoded == []
    assert in_memory is not None and on_disk is not None and again is not None
    torch.testing.assert_close(on_disk.first, in_memory.first, atol=1e-5, rtol=1e-4)
    assert torch.equal(again.first, on_disk.first)


def stop_after(count: int) -> Any:
    from mmrlhf.images import load_image

    calls: list[Path] = []

    def load(path: Path) -> torch.Tensor:
        calls.append(path)
        if len(calls) > count:
            raise KeyboardInterrupt
        return load_image(path)

    return load


def test_going_on_from_a_reward_keeps_it_as_it_was(clip_folder: Path, pairs_file: Path) -> None:
    pairs = read_pairs(pairs_file)
    first = fit_reward(pairs, clip_folder, seed=0, epochs=3, progress=False)
    assert first.head is not None
    before = copy.deepcopy(first.head.state_dict())
    second = fit_reward(pairs, first.backbone, seed=1, epochs=1, validation=0.0, start=first, progress=False)
    assert second.head is not None and not torch.equal(second.head.last, first.head.last)
    assert torch.equal(second.head.mean, first.head.mean)
    assert all(torch.equal(before[name], value) for name, value in first.head.state_dict().items())
    with pytest.raises(UserError, match="on 0 levels, the new ratings have 5"):
        fit_reward([Rating("p", pairs[0].image_0, 2)], first.backbone, seed=0, start=first, progress=False)


def test_items_of_pairs_share_a_row_where_the_file_is_the_same(backbone: CLIPBackbone, pairs_file: Path) -> None:
    items = [item for pair in read_pairs(pairs_file)[:2] for item in items_of(pair)]
    embedded = embed_items(backbone, [*items, items[0]])
    assert embedded.image_rows[-1] == embedded.image_rows[0] and len(embedded.images) == 4
