"""The hallucination reward learns what misleads, knows how sure it is, is kept on disk, and refuses what it cannot learn from."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmrlhf.errors import UserError
from mmrlhf.images import save_image
from mmrlhf.rewards.language.inputs import Row
from mmrlhf.segments import SegmentedItem, SegmentScore
from mmrlhf.types import SegmentLabel
from tests.vlm.helpers import pictures, write_rows
from vlm.answer_rewards import check_judgements
from vlm.reward import RewardConfig, auroc, best_temperature, f1, train, value_of
from vlm.segment_reward import HallucinationReward, load_answer_reward


def marked(folder: Path, count: int = 60) -> Path:
    """Answers of two sentences: that with an x is wrong, and so is the one that says B of a dark picture."""
    generator = np.random.default_rng(0)
    rows = []
    for i in range(count):
        light = bool(i % 2)
        save_image(torch.full((3, 32, 32), 0.9 if light else 0.1), folder / f"{i}.png")
        first = "A x A." if generator.random() < 0.5 else "A B A."
        second = "B B." if generator.random() < 0.5 else "A A."
        answer = f"{first} {second}"
        tags = ["misleading" if "x" in first else "correct", "misleading" if (second == "B B.") != light else "correct"]
        spans = [(0, len(first)), (len(first) + 1, len(answer))]
        segments = [{"start": a, "end": b, "tag": tag} for (a, b), tag in zip(spans, tags, strict=True)]
        rows.append({"prompt": "What?", "image": f"{i}.png", "answer": answer, "segments": segments})
    return write_rows(rows, folder / "marked.jsonl")


@pytest.fixture(scope="module")
def trained(small_llava: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("reward")
    out = folder / "reward"
    figures = train(RewardConfig(small_llava, marked(folder), out, validation=0.4, epochs=60, layers="both"))
    return folder, figures


def test_it_tells_what_misleads_by_words_and_by_the_picture(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, figures = trained
    assert figures["auroc"] > 0.9 and figures["auroc_ci95"][0] > 0.7
    assert json.loads((folder / "reward" / "metrics.json").read_text()) == figures
    reward = HallucinationReward.load(folder / "reward")
    dark, light = folder / "0.png", folder / "1.png"
    rows = [Row("What?", answer, image) for answer, image in (
        ("A B A. A A.", dark), ("A x A. A A.", dark), ("A B A. B B.", dark), ("A B A. B B.", light))]  # fmt: skip
    judgements = reward(rows)
    check_judgements(judgements, rows)
    assert judgements[0].spans[0].value > judgements[1].spans[0].value + 0.5
    assert judgements[3].spans[1].value > judgements[2].spans[1].value + 0.5
    assert all(-1 <= span.value <= 1 for judgement in judgements for span in judgement.spans)
    page = (folder / "reward" / "report.html").read_text()
    assert "AUROC" in page and page.count("data:image") >= 5


def test_a_judgement_does_not_depend_on_the_others(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = trained
    reward = load_answer_reward(str(folder / "reward"))
    rows = [Row("What?", answer, folder / "0.png") for answer in ("A B A. A A.", "A.", "A x A. B B. A B A B A.")]
    together = reward(rows)
    for row, judgement in zip(rows, together, strict=True):
        alone = reward([row])[0]
        assert [span[:2] for span in alone.spans] == [span[:2] for span in judgement.spans]
        assert [span.value for span in alone.spans] == pytest.approx([s.value for s in judgement.spans], abs=1e-4)
    assert reward([Row("What?", "", folder / "0.png")])[0].spans == ()


def test_probabilities_sum_to_one_and_follow_the_temperature(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = trained
    reward = HallucinationReward.load(folder / "reward")
    row = Row("What?", "A x A. A A.", folder / "0.png")
    first = reward.probabilities([row])[0]
    torch.testing.assert_close(first.sum(1), torch.ones(2))
    reward.temperature = 2 * reward.temperature
    second = reward.probabilities([row])[0]
    expected = torch.sigmoid(torch.logit(first[:, 0].double()) / 2)
    torch.testing.assert_close(second[:, 0].double(), expected, atol=1e-3, rtol=0)


def test_another_model_is_refused(trained: tuple[Path, dict[str, Any]], small_qwen_vl: str, tmp_path: Path) -> None:
    settings = json.loads((trained[0] / "reward" / "reward.json").read_text())
    for file in (trained[0] / "reward").glob("segment.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "reward.json").write_text(json.dumps(settings | {"model": small_qwen_vl}))
    with pytest.raises(UserError, match="is not the one that the reward .* learned from"):
        HallucinationReward.load(tmp_path)
    with pytest.raises(UserError, match="--reward got 'nothing', allowed are a folder that mmrlhf vlm reward wrote"):
        load_answer_reward("nothing")
    with pytest.raises(UserError, match="--reward got 'no.such:thing'"):
        load_answer_reward("no.such:thing")


def test_auroc_and_f1_by_brute_force() -> None:
    generator = np.random.default_rng(0)
    scores, truth = generator.integers(0, 6, 40) / 5, generator.random(40) < 0.4
    pairs = [(a, b) for a in scores[truth] for b in scores[~truth]]
    assert auroc(scores, truth) == pytest.approx(np.mean([(a > b) + 0.5 * (a == b) for a, b in pairs]))
    assert np.isnan(auroc(scores[truth], truth[truth]))
    said = scores > 0.5
    precision, recall = (said & truth).sum() / said.sum(), (said & truth).sum() / truth.sum()
    assert f1(said, truth) == pytest.approx(2 * precision * recall / (precision + recall))


def test_the_temperature_makes_overconfidence_honest() -> None:
    generator = np.random.default_rng(1)
    odds = generator.normal(0, 1.5, 4000)
    truth = generator.random(4000) < 1 / (1 + np.exp(-odds))
    assert best_temperature(1 / (1 + np.exp(-3 * odds)), truth) == pytest.approx(3, rel=0.1)


def test_a_part_has_the_worst_tag_in_it() -> None:
    labels = (
        SegmentLabel("i", 0, 3, "correct"),
        SegmentLabel("i", 4, 6, "misleading"),
        SegmentLabel("i", 7, 9, "irrelevant"),
    )
    item = SegmentedItem("i", labels, answer="abc de fg hi")
    assert value_of(item, (0, 6)) == "misleading" and value_of(item, (0, 4)) == "correct"
    assert value_of(item, (6, 12)) == "irrelevant" and value_of(item, (9, 12)) is None
    scored = SegmentedItem("i", (SegmentScore("i", 0, 3, 1.0), SegmentScore("i", 4, 6, -2.0)), answer="abc de fg hi")
    assert value_of(scored, (0, 6)) == -0.5


def test_bad_input_is_told_in_one_line(small_llava: str, tmp_path: Path) -> None:
    data = marked(tmp_path)
    rows = [json.loads(line) for line in data.read_text().splitlines()]

    def refused(rows: list[dict[str, Any]], words: str, **options: Any) -> None:
        file = write_rows(rows, tmp_path / "bad.jsonl")
        with pytest.raises(UserError, match=words):
            train(RewardConfig(small_llava, file, tmp_path / "out", **options))
        assert not (tmp_path / "out").exists()

    refused(rows[:10], "marked answers about 10 prompts and images, allowed are 20 or more")
    refused(
        [rows[0] | {"segments": [{"start": 0, "end": 99, "tag": "correct"}]}], "row 1 segment 1: start got 0, end 99"
    )
    crossing = [{"start": 0, "end": 5, "tag": "correct"}, {"start": 3, "end": 8, "tag": "misleading"}]
    refused([rows[0] | {"segments": crossing}], "but they overlap")
    refused(rows, "--validation got 0.0, allowed is above 0 and below 1", validation=0.0)
    correct = [row | {"segments": [{"start": 0, "end": 3, "tag": "correct"}]} for row in rows]
    refused(correct, "correct")
    long = [row | {"answer": "A" * 2000, "segments": [{"start": 0, "end": 3, "tag": "correct"}]} for row in rows]
    refused(long, "answers are longer than the .* tokens that are read")
    pictures(tmp_path, 1)
    (tmp_path / "3.png").write_bytes(b"no picture")
    refused(rows, "3.png")
