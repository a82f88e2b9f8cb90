"""`mmrlhf select pairs`: pairs within prompts, spread over prompts and images, in a file that `mmrlhf rate` takes as it is."""

import itertools
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from apps.rate_items import read_questions
from mmrlhf.cli import main
from mmrlhf.errors import UserError
from mmrlhf.images import load_image, save_image
from selection import build_pairs
from selection.bradley_terry import PRECISIONS, WHITENINGS, principal
from selection.build_pairs import PairsConfig, build
from selection.embed import Embedder
from selection.pair_items import drawn_pairs
from selection.pair_limits import Caps, PairLimits, caps_for, roomiest
from selection.v_optimal import v_optimal
from tests.selection.data import seeded

SIZES = {"a": 5, "b": 4, "c": 3, "d": 1}  # images of each prompt


@pytest.fixture
def items(tmp_path: Path) -> Path:
    """An ITEMS.jsonl of four prompts, in turns."""
    generator = seeded()
    rows = []
    for prompt, size in SIZES.items():
        for number in range(size):
            path = tmp_path / "pictures" / f"{prompt}{number}.png"
            save_image(torch.rand(3, 8, 8, generator=generator).repeat_interleave(4, 1).repeat_interleave(4, 2), path)
            rows.append({"prompt": prompt, "image": f"pictures/{path.name}"})
    rows.sort(key=lambda row: row["image"][-5])
    (tmp_path / "ITEMS.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "ITEMS.jsonl"


@pytest.fixture
def choose(items: Path, clip_folder: Path) -> Any:
    """Runs the command on the items."""

    def run(**options: Any) -> list[dict[str, Any]]:
        given: dict[str, Any] = {
            "items": items,
            "model": str(clip_folder),
            "out": items.parent / "out" / "PAIRS.jsonl",
        } | options
        return build(PairsConfig(**given))

    return run


def counts(rows: list[dict[str, Any]]) -> tuple[Counter[str], Counter[str]]:
    """How often each prompt and each image comes."""
    images = Counter(row[name] for row in rows for name in ("image_0", "image_1"))
    return Counter(row["prompt"] for row in rows), images


def test_the_rating_app_takes_the_file_as_it_is(choose: Any, items: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = items.parent / "out" / "PAIRS.jsonl"
    rows = choose(budget=9)
    assert [json.loads(line) for line in out.read_text().splitlines()] == rows
    _, tasks = read_questions(out)
    assert [(task.prompt, task.why) for task in tasks] == [(row["prompt"], row["why"]) for row in rows]
    assert len({task.key for task in tasks}) == 9
    for row in rows:
        assert Path(row["image_0"]).name[0] == Path(row["image_1"]).name[0] == row["prompt"]
    assert "9 pairs of 3 of 4 prompts, " in capsys.readouterr().out
    assert choose(budget=9) == rows


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(2, 6), min_size=1, max_size=6),
    most=st.integers(1, 4),
    least=st.integers(0, 2),
    shown=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_limits_are_kept_by_any_choice(sizes: list[int], most: int, least: int, shown: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    starts = np.cumsum([0, *sizes])
    groups = [range(start, start + size) for start, size in zip(starts.tolist(), sizes, strict=False)]
    pairs = np.array([pair for group in groups for pair in itertools.combinations(group, 2)])
    prompts = np.searchsorted(starts, pairs[:, 0], side="right") - 1
    least = min(least, most)
    limits = PairLimits(prompts, pairs, Caps(most, least, shown))
    budget = least * len(sizes) + 3
    chosen: list[int] = []
    for left in range(budget, 0, -1):
        allowed = np.flatnonzero(limits.allows(left))
        if not len(allowed):
            break
        chosen.append(int(random.choice(allowed)))
        limits.take(chosen[-1])
    assert len(set(chosen)) == len(chosen) <= roomiest(np.array(sizes), Caps(most, least, shown))
    of_prompt = np.bincount(prompts[chosen], minlength=len(sizes))
    assert of_prompt.max() <= most and np.bincount(pairs[chosen].ravel()).max() <= shown
    if len(chosen) == budget and shown >= max(sizes):  # where no cap of images is in the way, each gets its least
        assert (of_prompt >= np.minimum(least, np.bincount(prompts))).all()


def test_quotas_and_caps(choose: Any) -> None:
    prompts, images = counts(choose(budget=9, most_per_prompt=3, least_per_prompt=3, most_per_image=2))
    assert prompts == {"a": 3, "b": 3, "c": 3} and max(images.values()) <= 2
    prompts, images = counts(choose(budget=5, most_per_image=1))
    assert set(images.values()) == {1} and prompts == {"a": 2, "b": 2, "c": 1}
    for strategy in (
        "v-optimal",
        "spread",
        "random",
    ):  # without being asked: every prompt, and at most twice the even share
        prompts, images = counts(choose(budget=6, strategy=strategy))
        assert set(prompts) == {"a", "b", "c"} and max(prompts.values()) <= 4 and max(images.values()) <= 2


def test_caps_that_nobody_asked_for_give_way_to_the_budget(choose: Any) -> None:
    prompts, _ = counts(choose(budget=19))
    assert prompts == {"a": 10, "b": 6, "c": 3}
    assert caps_for(20, np.array([2, 50]), None, None, None) == Caps(20, 1, 2)


def differences(items: Path, clip_folder: Path, whitening: float = 0.0) -> dict[tuple[str, str], np.ndarray]:
    """What the images of each candidate pair differ in, by their names, in the order of the candidates."""
    listed = [json.loads(line) for line in items.read_text().splitlines()]
    images = torch.stack([load_image(items.parent / row["image"], 32) for row in listed])
    features = principal(Embedder(str(clip_folder))(images).numpy(), whitening=whitening)
    z = {}
    for i, one in enumerate(listed):
        for j in range(i + 1, len(listed)):
            if listed[j]["prompt"] == one["prompt"]:
                z[one["image"][9:], listed[j]["image"][9:]] = features[i] - features[j]
    return z


def names(row: dict[str, Any]) -> tuple[str, str]:
    """Which images are shown."""
    return Path(row["image_0"]).name, Path(row["image_1"]).name


FREE = {"most_per_prompt": 19, "least_per_prompt": 0, "most_per_image": 19}


def test_v_optimal_is_the_default_and_asks_less_about_what_a_reward_is_sure_of(
    choose: Any, items: Path, clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    z = differences(items, clip_folder)
    rows, order = np.stack(list(z.values())), list(z)
    plain = choose(budget=6, out=items.parent / "first.jsonl", **FREE)
    first = v_optimal(rows, 6, generator=seeded()).indices.tolist()
    assert [names(row) for row in plain] == [order[i] for i in first]
    assert "lowers the mean doubt by" in plain[0]["why"]
    then = v_optimal(rows, 3, already=first, generator=seeded()).indices
    more = choose(budget=3, already=items.parent / "first.jsonl", **FREE)
    assert [names(row) for row in more] == [order[i] for i in then]
    monkeypatch.setattr(
        build_pairs, "load_on", lambda name, device: Unsure(False)
    )  # sure, but of prompt b it says nothing
    assert {row["prompt"] for row in choose(budget=6, reward="it", **FREE)} == {"b"} != {row["prompt"] for row in plain}


def test_spread_is_k_center_on_what_the_images_differ_in(choose: Any, items: Path, clip_folder: Path) -> None:
    z = differences(items, clip_folder)
    rows = choose(budget=6, strategy="spread", **FREE)
    chosen: list[np.ndarray] = []
    for row in rows:
        gaps = {
            pair: min([np.linalg.norm(y), *(min(np.linalg.norm(y - x), np.linalg.norm(y + x)) for x in chosen)])
            for pair, y in z.items()
        }
        pair = names(row)
        assert gaps[pair] == pytest.approx(max(gaps.values()), abs=1e-6)
        chosen.append(z[pair])


class Unsure:
    """A reward of two members that disagree about prompt b only, and abstains there when asked for one score."""

    differentiable = False

    def __init__(self, members: bool) -> None:
        self.count = 2 if members else 1
        if members:
            self.members = self.score_each

    def score_each(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        brightness = 40 * images.mean(dim=(1, 2, 3))
        sign = torch.tensor([-1.0 if prompt == "b" else 1.0 for prompt in prompts])
        return torch.stack([brightness, sign * brightness])[: self.count]

    def __call__(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        scores = 1e6 * images.mean(dim=(1, 2, 3))
        return torch.where(torch.tensor([prompt == "b" for prompt in prompts]), torch.nan, scores)


@pytest.mark.parametrize("members", [True, False])
def test_what_a_reward_is_unsure_of_comes_first(members: bool, choose: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_pairs, "load_on", lambda name, device: Unsure(members))
    free = {"most_per_prompt": 9, "least_per_prompt": 0, "most_per_image": 9}
    for strategy in ("uncertain", "spread"):
        rows = choose(budget=6, reward="it", strategy=strategy, **free)
        assert {row["prompt"] for row in rows} == {"b"}
    assert "uncertain" in rows[0]["why"]
    prompts, _ = counts(choose(budget=6, reward="it", strategy="uncertain", most_per_prompt=4))
    assert prompts["b"] == 4 and prompts["a"] == prompts["c"] == 1


def test_earlier_pairs_are_not_asked_again_and_count(choose: Any, items: Path) -> None:
    out = items.parent / "first.jsonl"
    first = choose(budget=6, out=out)
    second = choose(budget=6, already=out)
    pairs = [{row["image_0"].split("/")[-1], row["image_1"].split("/")[-1]} for row in [*first, *second]]
    assert all(pairs.count(pair) == 1 for pair in pairs)
    prompts, _ = counts([*first, *choose(budget=3, already=out, most_per_prompt=3)])
    assert prompts == {"a": 3, "b": 3, "c": 3}
    labelled = [row | {"label_0": 1, "label_1": 0, "has_label": False} for row in first]  # but nobody judged
    out.write_text("".join(json.dumps({key: row[key] for key in row if key != "why"}) + "\n" for row in labelled))
    assert choose(budget=6, already=out) == second
    rest = choose(budget=13, already=out)
    assert len(rest) == 13
    with pytest.raises(UserError, match="--budget got 14, allowed is 1 to 13: .* 6 asked earlier"):
        choose(budget=14, already=out)


def answer(rows: list[dict[str, Any]], z: dict[tuple[str, str], np.ndarray], taste: np.ndarray) -> list[dict[str, Any]]:
    """The rows as three raters of one taste answer them; every other the other way round."""
    found = []
    for row in rows:
        label = float(z[names(row)] @ taste > 0)
        found += 3 * [
            {key: row[key] for key in ("prompt", "image_0", "image_1")} | {"label_0": label, "label_1": 1 - label}
        ]
        if len(found) % 2:
            swap = {"image_0": row["image_1"], "image_1": row["image_0"], "label_0": 1 - label, "label_1": label}
            found[-1] = found[-1] | swap
    return found


def likeliest_head(
    choices: list[np.ndarray], asked: list[int], labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """(features, weights, precision of the prior) of the largest evidence, by scipy's minimiser."""
    found = []
    for z in choices:
        for precision in PRECISIONS:
            x, sign = z[asked], 2 * labels - 1  # labels are 0 or 1 here

            def loss(w: np.ndarray, x: np.ndarray = x, sign: np.ndarray = sign, precision: float = precision) -> float:
                return float(np.log1p(np.exp(-sign * (x @ w))).sum() + precision / 2 * w @ w)

            best = minimize(loss, np.zeros(z.shape[1]), method="BFGS", options={"gtol": 1e-6})
            p = 1 / (1 + np.exp(-(x @ best.x)))
            hessian = (x.T * (p * (1 - p))) @ x + precision * np.eye(len(best.x))
            evidence = len(best.x) / 2 * np.log(precision) - best.fun - np.linalg.slogdet(hessian)[1] / 2
            found.append((evidence, z, best.x, precision))
    return max(found, key=lambda each: each[0])[1:]


def test_without_a_reward_a_head_of_the_answers_chooses(
    choose: Any, items: Path, clip_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of all 330 choices of four, the answers' mean doubt after it, from scratch, is among the lowest."""
    z = differences(items, clip_folder)
    order, path = list(z), items.parent / "first.jsonl"
    taste = next(iter(z.values())) - list(z.values())[7]
    first = choose(budget=8, out=path, **FREE)
    unanswered = choose(budget=4, already=path, **FREE)
    answers = answer(first, z, taste)
    path.write_text("".join(json.dumps(row) + "\n" for row in answers))
    rows = choose(budget=4, already=path, **FREE)
    assert "fitted a head on the embeddings to 24 answers of" in capsys.readouterr().out
    assert {names(row) for row in rows} != {names(row) for row in unanswered}
    assert not {names(row) for row in rows} & {names(row) for row in first}

    asked = [order.index(min(names(row), names(row)[::-1])) for row in answers]
    labels = np.array([row["label_0"] if names(row) in z else row["label_1"] for row in answers])
    choices = [np.stack(list(differences(items, clip_folder, whitening).values())) for whitening in WHITENINGS]
    features, weights, precision = likeliest_head(choices, asked, labels)
    chance = 1 / (1 + np.exp(-(features @ weights)))
    weighted = features * np.sqrt(chance * (1 - chance))[:, None]
    before = set(asked)

    def doubt(picks: tuple[int, ...]) -> float:
        known = weighted[[*before, *picks]]
        inverse = np.linalg.inv(precision * np.eye(features.shape[1]) + known.T @ known)
        return float(np.einsum("ij,jk,ik->i", weighted, inverse, weighted).mean())

    free = [number for number in range(len(order)) if number not in before]
    every = np.array([doubt(picks) for picks in itertools.combinations(free, 4)])
    chosen, other = (doubt(tuple(order.index(names(row)) for row in part)) for part in (rows, unanswered))
    assert len(every) == 330 and (every < chosen - 1e-9).mean() < 0.02
    assert chosen < other and chosen < every.mean()
    for strategy in ("spread", "uncertain"):
        assert "uncertain" in choose(budget=4, already=path, strategy=strategy, **FREE)[0]["why"]


def test_answers_that_say_nothing_of_these_images(choose: Any, items: Path) -> None:
    path = items.parent / "first.jsonl"
    choose(budget=3, out=path)
    with pytest.raises(UserError, match="has no label of these images; --strategy uncertain needs --reward"):
        choose(budget=3, already=path, strategy="uncertain")
    row = json.loads(path.read_text().splitlines()[0])
    path.write_text(json.dumps(row | {"label_0": 1, "label_1": 1}) + "\n")
    with pytest.raises(UserError, match="label_0 1 and label_1 1 sum to 2"):
        choose(budget=3, already=path)
    path.write_text(json.dumps(row | {"label_0": 1}) + "\n")
    with pytest.raises(UserError, match="lacks label_1"):
        choose(budget=3, already=path)


def test_copies_and_unreadable_images_are_left_out(
    choose: Any, items: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = items.parent / "pictures"
    (folder / "c1.png").write_bytes((folder / "c0.png").read_bytes())
    (folder / "b0.png").write_bytes(b"broken")
    prompts, images = counts(choose(budget=14))
    assert prompts == {"a": 10, "b": 3, "c": 1} and not any("b0.png" in name for name in images)
    assert "skipped 1 unreadable files; first: " in capsys.readouterr().out


def test_a_folder_is_one_prompt_or_its_list(choose: Any, items: Path) -> None:
    assert counts(choose(items=items.parent / "pictures", budget=20))[0] == {"": 20}
    assert choose(items=items.parent, budget=5) == choose(budget=5)


def test_of_many_images_pairs_are_drawn_that_show_each(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = drawn_pairs(np.arange(100, 200), 350, seeded())
    assert len(set(pairs)) == len(pairs) == 400 and all(low < high for low, high in pairs)
    assert set(np.bincount(np.array(pairs).ravel())[100:]) == {8}
    assert drawn_pairs(np.arange(4), 6, seeded()) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    for count, amount in ((5, 9), (4, 5), (3, 2), (6, 14)):
        found = drawn_pairs(np.arange(count), amount, seeded())
        assert len(set(found)) >= amount and set(np.array(found).ravel()) == set(range(count))


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no budget": ({"budget": 0}, "--budget got 0, allowed is 1 or more"),
    "much": ({"budget": 20}, "--budget got 20, allowed is 1 to 19: 3 prompts with 12 images have 19 pairs"),
    "caps": ({"budget": 10, "most_per_prompt": 3}, "allowed is 1 to 9: .* at most 3 a prompt"),
    "images": ({"budget": 6, "most_per_image": 1}, "allowed is 1 to 5: .* and 1 an image"),
    "least": ({"budget": 5, "least_per_prompt": 2}, "--least-per-prompt got 2, allowed is up to 1: 3 prompts share 5 pairs"),
    "least above most": ({"budget": 9, "least_per_prompt": 3, "most_per_prompt": 2}, "--budget got 9, allowed is 1 to 6"),
    "below 0": ({"budget": 5, "least_per_prompt": -1}, "--least-per-prompt got -1, allowed is 0 or more"),
    "no reward": ({"budget": 5, "strategy": "uncertain"}, "--strategy uncertain needs --reward"),
    "idle reward": ({"budget": 5, "strategy": "random", "reward": "x"}, "--strategy random takes no --reward"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_done_is_told_and_leaves_nothing(kind: str, choose: Any, items: Path) -> None:
    options, message = BAD[kind]
    with pytest.raises(UserError, match=message):
        choose(**options)
    assert not (items.parent / "out" / "PAIRS.jsonl").exists()


def test_prompts_of_one_image_have_no_pair(choose: Any, items: Path) -> None:
    items.write_text('{"prompt": "a", "image": "pictures/a0.png"}\n{"prompt": "d", "image": "pictures/d0.png"}\n')
    with pytest.raises(UserError, match="none of 2 prompts has two different images"):
        choose(budget=1)
    with pytest.raises(UserError, match="is a file to read"):
        choose(budget=1, out=items)


def test_from_the_command_line(
    items: Path, clip_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = items.parent / "PAIRS.jsonl"
    words = ["select", "pairs", "--items", str(items), "--budget", "4", "--model", str(clip_folder), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["mmrlhf", *words])
    main()
    assert capsys.readouterr().out.strip().endswith(str(out)) and len(out.read_text().splitlines()) == 4
    monkeypatch.setattr(sys, "argv", ["mmrlhf", *words, "--most-per-image", "0"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2 and "--most-per-image got 0, allowed is 1 or more" in capsys.readouterr().err
