"""Judgements become winners and losers, or liked images; each image is encoded once; held-out prompts stay out."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion.denoising import denoising_errors
from diffusion.noise import gaussian
from diffusion.policy import DiffusionPolicy
from diffusion.preference_data import (
    FIXED_DRAWS,
    PreferenceConfig,
    encode_once,
    encode_pairs,
    fixed_errors,
    hold_out,
    identity,
    read_likings,
    read_preferences,
    validate_preferences,
)
from mmrlhf.data import Item, Pair, write_pairs
from mmrlhf.errors import UserError
from mmrlhf.images import load_images, save_image
from mmrlhf.outcomes import Outcome, Ranking, Rating, write_outcomes
from mmrlhf.seeding import seeded
from mmrlhf.store import Judgement, Preference, Store


def bright_and_dark(folder: Path, count: int, side: int = 64) -> Path:
    """A PAIRS.jsonl of `count` prompts, each with a speckled bright image, preferred, and a dark one, in either order."""
    generator, pairs = torch.Generator().manual_seed(0), []
    for number in range(count):
        files = [folder / f"{name}{number}.png" for name in ("bright", "dark")]
        for level, file in zip((0.85, 0.15), files, strict=True):
            speckled = level + 0.1 * torch.randn(3, 8, 8, generator=generator)
            save_image(speckled.repeat_interleave(side // 8, 1).repeat_interleave(side // 8, 2).clamp(0, 1), file)
        first, second = files if number % 2 else files[::-1]
        pairs.append(Pair(f"a cat {number}", first, second, float(number % 2)))
    write_pairs(pairs, folder / "pairs.jsonl")
    return folder / "pairs.jsonl"


def faithful(patch: pytest.MonkeyPatch) -> None:
    """In place of a random autoencoder, one that gives back what it was given: pixels are three of the four channels."""

    def decode(self: DiffusionPolicy, latents: torch.Tensor) -> torch.Tensor:
        return (latents[:, :3] / 4 + 0.5).clamp(0, 1).repeat_interleave(8, 2).repeat_interleave(8, 3)

    def encode(self: DiffusionPolicy, images: torch.Tensor) -> torch.Tensor:
        colours = (images[:, :, ::8, ::8] - 0.5) * 4
        return torch.cat([colours, colours.mean(dim=1, keepdim=True)], dim=1)

    patch.setattr(DiffusionPolicy, "decode", decode)
    patch.setattr(DiffusionPolicy, "encode_images", encode)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Four images that differ, of two sizes."""
    paths = [tmp_path / f"{name}.png" for name in "abcd"]
    for number, path in enumerate(paths):
        save_image(torch.full((3, 64, 64 + 16 * (number % 2)), 0.2 * number), path)
    return paths


@pytest.fixture
def config(tmp_path: Path) -> PreferenceConfig:
    return PreferenceConfig("tiny-sd", tmp_path / "run", data=tmp_path / "judged.jsonl")


def test_winners_come_first_and_ties_are_counted(config: PreferenceConfig, files: list[Path]) -> None:
    a, b, c, d = files
    pairs = [Pair("p", a, b, 1.0), Pair("p", a, b, 0.0), Pair("p", a, c, 0.5), Pair("q", c, d, 0.25, annotator="ann")]
    write_pairs(pairs, Path(str(config.data)))
    expected = [Pair("p", a, b, 1.0), Pair("p", b, a, 1.0), Pair("q", d, c, 0.75, annotator="ann")]
    assert read_preferences(config) == (expected, 1)


def test_likings(config: PreferenceConfig, files: list[Path]) -> None:
    a, b, c, _ = files
    names = ("p", True, "ann", "")
    judged: list[Outcome] = [
        Pair("p", a, b, 0.25), Pair("p", a, b, 0.5), Rating("p", a, 5), Rating("p", b, 2), Rating("p", c, 3),
        Rating("q", a, 1, 2), Ranking("q", (a, b, c), (1.0, 2.0, 2.0), *names),
    ]  # fmt: skip
    write_outcomes(judged, Path(str(config.data)))
    likings, left_out = read_likings(config)
    found = [(liking.prompt, liking.image.stem, liking.liked, liking.unit) for liking in likings]
    assert found == [
        ("p", "a", -0.5, "p"), ("p", "b", 0.5, "p"), ("p", "a", 1, "p"), ("p", "b", -0.5, "p"), ("q", "a", -1, "q"),
        ("q", "a", 1, "p"), ("q", "b", -1, "p"), ("q", "a", 1, "p"), ("q", "c", -1, "p"),
    ]  # fmt: skip
    assert left_out == 2


def test_a_veto_is_a_dislike_by_its_own_criterion(config: PreferenceConfig, files: list[Path]) -> None:
    rows = [{"prompt": "p", "image": "a.png", "safe": False}, {"prompt": "p", "image": "b.png", "rating": 5}]
    Path(str(config.data)).write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"got several criteria, allowed is one of \['', 'safety'\]: choose with"):
        read_likings(config)
    assert [liking.liked for liking in read_likings(replace(config, criterion="safety"))[0]] == [-1]
    assert [liking.liked for liking in read_likings(replace(config, criterion=""))[0]] == [1]


@pytest.fixture
def store(tmp_path: Path, files: list[Path]) -> str:
    """Two answers to one pair, the second shown the other way round, a tie, and scores."""
    url = str(tmp_path / "s.db")
    store = Store(url)
    store.add_items({path.stem: (path, "p") for path in files})
    store.add(Preference("p", ("a", "b"), 1.0, "ann", "human", ("a", "b")))
    store.add(Preference("p", ("a", "b"), 1.0, "bot", "ai", ("b", "a")))
    store.add(Preference("p", ("a", "c"), 0.5, "ann", "human", ("a", "c")))
    store.add_judgement(Judgement("p", "d", 1.0, "ann", "human"))
    store.close()
    return url


def test_a_store(config: PreferenceConfig, files: list[Path], store: str) -> None:
    a, b, *_ = files
    config = replace(config, data=None, store=store)
    assert read_preferences(config) == ([Pair("p", a, b, 1.0, annotator=name) for name in ("ann", "bot")], 1)
    assert read_preferences(replace(config, source="ai")) == ([Pair("p", a, b, 1.0, annotator="bot")], 0)
    likings, left_out = read_likings(config)
    assert [(each.image.stem, each.liked) for each in likings] == [("a", 1), ("b", -1), ("b", -1), ("a", 1), ("d", -1)]
    assert left_out == 1


def test_held_out_prompts_are_not_trained_on_and_what_nobody_judged_is_not_measured_on(
    config: PreferenceConfig, files: list[Path]
) -> None:
    a, b, *_ = files
    judged = [Pair(f"p{i // 3}", a, b, 1.0, has_label=bool(i % 3)) for i in range(30)]
    rest, held = hold_out(judged, replace(config, validation=0.3))
    assert len(rest) == 21 and len(held) == 6
    assert {pair.prompt for pair in rest}.isdisjoint(pair.prompt for pair in held)
    assert all(pair.has_label for pair in held) and any(not pair.has_label for pair in rest)
    assert hold_out(judged, replace(config, validation=0.3)) == (rest, held)
    assert hold_out(judged, replace(config, validation=0.0)) == (judged, [])


def test_the_identity_is_of_images_and_judgements(config: PreferenceConfig, files: list[Path], tmp_path: Path) -> None:
    items = [Item("p", files[0]), Item("p", files[1])]
    told = identity(items, [1.0], config)
    moved = tmp_path / "moved.png"
    moved.write_bytes(files[0].read_bytes())
    assert told == identity([Item("p", moved), items[1]], [1.0], config) and told.keys() == {"data_sha256"}
    others = [(items, [0.9]), (items[::-1], [1.0]), ([Item("q", files[0]), items[1]], [1.0])]
    assert all(identity(*other, config) != told for other in others)
    assert identity(items, [1.0], replace(config, data=None, store="s.db")).keys() == {"store_sha256"}


@pytest.fixture(scope="module")
def policy(model: Path) -> DiffusionPolicy:
    return DiffusionPolicy.load(str(model), lora_rank=2, num_steps=2, device="cpu")


def test_each_different_image_is_encoded_once(
    policy: DiffusionPolicy, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, sizes = policy.encode_images, list[tuple[int, ...]]()

    def watched(images: torch.Tensor) -> torch.Tensor:
        sizes.append(tuple(images.shape))
        return encode(images)

    monkeypatch.setattr(policy, "encode_images", watched)
    latents = encode_once(policy, [*files, *files[::-1]], 3)
    assert sizes == [(3, 3, 64, 64), (1, 3, 64, 64)]
    for path in files:
        torch.testing.assert_close(latents[path], encode(load_images([path], 64))[0], atol=1e-5, rtol=1e-4)
    a, b, c, _ = files
    data = encode_pairs(latents, [Pair("p", a, b, 1.0), Pair("q", c, a, 0.75)])
    assert data.prompts == ["p", "q"] and data.labels.tolist() == [1.0, 0.75]
    assert data.winners[1].equal(latents[c]) and data.losers[0].equal(latents[b]) and data.losers[1].equal(latents[a])


def test_fixed_errors_are_at_the_same_times_and_noise_each_time(policy: DiffusionPolicy) -> None:
    clean, prompts = torch.randn(3, *policy.latent_shape, generator=seeded(5)), ["a cat", "red", "a cat"]
    found = fixed_errors(policy, clean, prompts, 7, 2)
    assert found.equal(fixed_errors(policy, clean, prompts, 7, 2))
    assert not found.equal(fixed_errors(policy, clean, prompts, 8, 2))
    generator, sums = seeded(7), torch.zeros(3)
    for _ in range(FIXED_DRAWS):
        for rows in (slice(0, 2), slice(2, 3)):
            texts = prompts[rows]
            times = policy.forward.draw(len(texts), generator)
            noise = gaussian((len(texts), *policy.latent_shape), generator, policy.device)
            with torch.no_grad():
                sums[rows] += denoising_errors(policy, clean[rows], noise, times, policy.embed(texts))
    torch.testing.assert_close(found, sums / FIXED_DRAWS)


def test_bad_input(config: PreferenceConfig, files: list[Path], store: str) -> None:
    with pytest.raises(UserError, match="got neither of --data and --store: give one of them"):
        read_preferences(replace(config, data=None))
    with pytest.raises(UserError, match="got both of --data and --store: give one of them"):
        read_likings(replace(config, store=store))
    with pytest.raises(UserError, match="cannot read .*judged.jsonl"):
        read_preferences(config)
    with pytest.raises(UserError, match="no answers to pairs .source: simulated. in"):
        read_preferences(replace(config, data=None, store=store, source="simulated"))
    write_pairs([Pair("p", files[0], files[1], 0.5)], Path(str(config.data)))
    with pytest.raises(UserError, match="none of the 1 pairs of .* has a winner: give pairs that are not ties"):
        read_preferences(config)
    with pytest.raises(UserError, match="none of the 1 judgements of .* says that an image is liked or disliked"):
        read_likings(config)
    with pytest.raises(UserError, match=r"got --criterion 'fit', allowed is one of \[''\]"):
        read_preferences(replace(config, criterion="fit"))
    with pytest.raises(UserError, match=r"--validation got 0.1, but got 1 prompts .* or --validation 0"):
        hold_out([Pair("p", files[0], files[1], 1.0)], config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beta": 0.0}, "--beta got 0.0, allowed is above 0"),
        ({"validation": 1.0}, "--validation got 1.0, allowed is 0 up to, but not, 1"),
        ({"kl_samples": 0}, "--kl-samples got 0, allowed is 1 or more"),
        ({"epochs": 0}, "--epochs got 0, allowed is 1 or more"),
    ],
)
def test_bad_values(config: PreferenceConfig, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        validate_preferences(replace(config, **change))
