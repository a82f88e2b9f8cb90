"""The questions that follow from drift: about what became more frequent, each image beside an earlier one of its prompt."""

import json
from pathlib import Path

import numpy as np
import pytest

from apps.rate_items import read_questions
from mmrlhf.data import write_jsonl
from mmrlhf.drift import population_stability
from mmrlhf.errors import UserError
from mmrlhf.rewards.evaluation.drift_report import DriftConfig, drift
from mmrlhf.rewards.evaluation.round_scores import Sample, read_scores
from mmrlhf.rewards.evaluation.targeted import growth, targeted_pairs
from tests.small_clip import warm_pairs


def sample(scores: np.ndarray, folder: str, prompts: int = 20) -> Sample:
    """Images of some prompts in turn."""
    names = [f"p{i % prompts}" for i in range(len(scores))]
    return Sample(names, scores, 0, [Path(folder) / f"{i}.png" for i in range(len(scores))])


def test_growth_is_the_log_of_the_ratio_of_the_shares() -> None:
    before, after = np.arange(100.0), np.concatenate([np.arange(100.0), np.full(100, 95.0)])
    stability = population_stability(before, after)
    grown = growth(np.array([95.0, 5.0]), stability)
    # ten bins of 10; after, the last holds 110 of 200, each other 10
    expected = np.log([(110.5 / 205) / (10.5 / 105), (10.5 / 205) / (10.5 / 105)])
    np.testing.assert_allclose(grown, expected)


def test_what_became_frequent_is_asked_about_first_prompts_in_turn() -> None:
    generator = np.random.default_rng(0)
    before, after = sample(generator.normal(size=200), "old"), sample(generator.normal(size=200) + 1.5, "new")
    stability = population_stability(before.scores, after.scores)
    pairs = targeted_pairs(before, after, stability, 40, 0)
    assert len(pairs) == 40 and pairs == targeted_pairs(before, after, stability, 40, 0)
    rows = [int(image.stem) for _, image, _, _ in pairs]
    grown = growth(after.scores, stability)
    assert (grown[rows] > 0).all() and len(set(rows)) == 40
    assert [prompt for prompt, *_ in pairs[:20]] != [f"p{i}" for i in range(20)] and len(
        {p for p, *_ in pairs[:20]}
    ) == 20
    for prompt, image, other, why in pairs:
        assert image.parent.name == "new" and other.parent.name == "old"
        assert int(image.stem) % 20 == int(other.stem) % 20 == int(prompt[1:]) and why.startswith("drift: ")
    best = [max(grown[i::20]) for i in range(20)]  # each prompt's turn begins with its most grown image
    assert sorted(grown[rows[:20]]) == pytest.approx(sorted(best))


def test_a_new_prompt_s_images_meet_each_other() -> None:
    before = Sample(["old"] * 50, np.arange(50.0), 0, [Path(f"old/{i}.png") for i in range(50)])
    after = Sample(["new"] * 3, np.array([49.0, 49.0, 0.0]), 0, [Path(f"new/{i}.png") for i in range(3)])
    pairs = targeted_pairs(before, after, population_stability(before.scores, after.scores), 9, 0)
    names = {frozenset((image.name, other.name)) for _, image, other, _ in pairs}
    assert names == {frozenset(("0.png", "2.png")), frozenset(("1.png", "2.png"))}


def test_drift_proposes_a_round_that_the_rating_app_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [json.loads(line) for line in warm_pairs(tmp_path, prompts=10, each=3).read_text().splitlines()]
    generator = np.random.default_rng(0)
    for name, image, shift in (("before", "image_0", 0.0), ("after", "image_1", 3.0)):
        scores = generator.normal(size=len(rows)) + shift
        items = [
            {"prompt": r["prompt"], "image": r[image], "score": s} for r, s in zip(rows, scores.tolist(), strict=True)
        ]
        write_jsonl(items, tmp_path / f"{name}.jsonl")
    config = DriftConfig(tmp_path / "before.jsonl", tmp_path / "after.jsonl", tmp_path / "d.json",
                         targets=tmp_path / "next" / "pairs.jsonl", budget=12)  # fmt: skip
    assert drift(config)["targets"] == 12
    assert "12 pairs to ask about" in capsys.readouterr().out
    assert "The next questions for people, 12 pairs" in (tmp_path / "d.html").read_text()
    _, tasks = read_questions(tmp_path / "next" / "pairs.jsonl")
    assert len(tasks) == 12 and all(task.why.startswith("drift: such scores became ") for task in tasks)
    stable = drift(DriftConfig(tmp_path / "before.jsonl", tmp_path / "before.jsonl", tmp_path / "s.json",
                               targets=tmp_path / "none.jsonl"))  # fmt: skip
    assert stable["targets"] == 0 and not (tmp_path / "none.jsonl").exists()
    read_scores(tmp_path / "after.jsonl", None, 1).images[3].unlink()
    with pytest.raises(UserError, match="which is gone: put the image back, or leave out --targets"):
        drift(DriftConfig(tmp_path / "before.jsonl", tmp_path / "after.jsonl", tmp_path / "e.json",
                          targets=tmp_path / "gone.jsonl", budget=1000))  # fmt: skip
    assert not (tmp_path / "gone.jsonl").exists() and not (tmp_path / "e.json").exists()


def test_bounds_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "scores.jsonl"
    write_jsonl([{"prompt": "p", "image": "x.png", "score": 1}], file)
    with pytest.raises(UserError, match="--kl-bound got 1, allowed is above 0, with the --run"):
        drift(DriftConfig(file, file, tmp_path / "d.json", kl_bound=1.0))
    with pytest.raises(UserError, match="--budget got 0"):
        drift(DriftConfig(file, file, tmp_path / "d.json", budget=0))
    with pytest.raises(UserError, match="is another file of this command"):
        drift(DriftConfig(file, file, tmp_path / "d.json", targets=file))
