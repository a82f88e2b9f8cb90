"""Combinations in YAML: what a file says, where its paths start, and every mistake in one line."""

import math
from pathlib import Path

import pytest
import torch

from mmrlhf.errors import UserError
from mmrlhf.rewards.clip import CLIPReward
from mmrlhf.rewards.rules.combine import Combination
from mmrlhf.rewards.rules.combine_file import load_combination
from mmrlhf.rewards.rules.python_function import FunctionReward
from mmrlhf.rewards.rules.simple import Brightness, JpegSize, Redness

IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
PROMPTS = ["a", "b", "c", "d"]


def write(folder: Path, text: str, name: str = "both.yaml") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_a_file_with_everything(tmp_path: Path, headed: CLIPReward, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rewards").mkdir()
    headed.save(tmp_path / "rewards" / "trained")
    (tmp_path / "rewards" / "mine.py").write_text("def half(images, prompts): return [0.5] * len(images)\n")
    write(tmp_path / "rewards", "parts:\n- reward: redness\n", "inner.yml")
    write(
        tmp_path / "rewards",
        """
parts:
  - {reward: brightness, weight: 2, mean: 0.5, std: 1e-1}
  - {reward: trained, weight: -0.5}
  - reward: python:mine.py:half
  - reward: inner.yml
constraints:
  - {reward: jpeg-size, at_most: 1000}
  - {reward: python:mine.py:half, at_least: 0, at_most: 0.5}
veto_score: -100
""",
    )
    monkeypatch.chdir(tmp_path)  # paths are the file's own
    combination = load_combination(Path("rewards/both.yaml"))
    assert isinstance(combination.parts[2].reward, FunctionReward) and isinstance(
        combination.parts[3].reward, Combination
    )
    assert combination.constraints[0].reward == JpegSize() and combination.constraints[0].at_most == 1000
    expected = 20 * (Brightness()(IMAGES, PROMPTS) - 0.5) - 0.5 * headed(IMAGES, PROMPTS) + 0.5
    expected += Redness()(IMAGES, PROMPTS)
    torch.testing.assert_close(combination(IMAGES, PROMPTS), expected.detach())


def test_settings_after_a_folder(tmp_path: Path, headed: CLIPReward, monkeypatch: pytest.MonkeyPatch) -> None:
    headed.save(tmp_path / "rewards" / "trained")
    write(tmp_path / "rewards", "parts: [{reward: 'trained:pessimism=1'}]")
    monkeypatch.chdir(tmp_path)
    combination = load_combination(Path("rewards/both.yaml"))
    members = headed.members(IMAGES, PROMPTS)
    assert (combination(IMAGES, PROMPTS) < members.mean(dim=0)).all()


def test_abstaining_and_no_constraints(tmp_path: Path) -> None:
    vetoed = load_combination(
        write(tmp_path, "parts: [{reward: warmth}]\nconstraints: [{reward: redness, at_least: 2}]\nabstain: true")
    )
    assert vetoed(IMAGES, PROMPTS).isnan().all()
    plain = load_combination(write(tmp_path, "parts:\n- {reward: warmth, weight: 3}"))
    assert math.isnan(plain.veto_score) and plain.differentiable


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("parts: [{reward: warmth, wieght: 1}]",
         r"part 1: unknown key wieght \(did you mean weight\?\): allowed are reward, weight, mean, std"),
        ("part: []", r"unknown key part \(did you mean parts\?\): allowed are parts, constraints, veto_score, abstain"),
        ("", "has no part with a weight other than 0"),
        ("parts: [{reward: warmth, weight: 0}]", "has no part with a weight other than 0"),
        ("parts: warmth", "parts got 'warmth', allowed is a list"),
        ("parts: [warmth]", "part 1 got 'warmth', allowed are keys and values: write 'reward: NAME'"),
        ("parts: [{weight: 1}]", "part 1: reward got None, allowed is a reward's name or path"),
        ("parts: [{reward: warmht}]", "reward 'warmht' is neither a name nor a folder"),
        ("parts: [{reward: warmth, weight: .inf}]", "part 1: weight got inf, allowed is a finite number"),
        ("parts: [{reward: warmth, weight: true}]", "part 1: weight got True, allowed is a finite number"),
        ("parts: [{reward: warmth, weight: much}]", "part 1: weight got 'much', allowed is a finite number"),
        ("parts: [{reward: warmth, mean: 1}]", "part 1 has only one of mean and std: give both, or neither"),
        ("parts: [{reward: warmth, mean: 1, std: 0}]", "part 1: std got 0, allowed is a number above 0"),
        ("parts: [{reward: warmth}]\nconstraints: [{reward: redness}]\nabstain: true", "constraint 1 has no limit"),
        ("parts: [{reward: warmth}]\nconstraints: [{reward: redness, at_least: 1, at_most: 0}]\nabstain: true",
         "constraint 1 has at_least 1 above at_most 0"),
        ("parts: [{reward: warmth}]\nconstraints: [{reward: redness, at_least: 1}]",
         "has 0 of veto_score and abstain: give one of 'veto_score: NUMBER' and 'abstain: true'"),
        ("parts: [{reward: warmth}]\nveto_score: -1", "has 1 of veto_score and abstain: give them together with constraints"),
        ("parts: [{reward: warmth}]\nabstain: perhaps", "abstain got 'perhaps', allowed is true or false"),
        ("parts: [", "both.yaml is not YAML"),
        ("parts: [{reward: !!python/object/apply:os.getcwd []}]", "both.yaml is not YAML"),
        ("parts: [{reward: both.yaml}]", r"names itself \(both.yaml → both.yaml\)"),
        ("parts: [{reward: other.yaml}]", r"names itself \(both.yaml → other.yaml → both.yaml\)"),
        ("parts: [{reward: nowhere.yaml}]", "cannot read the combination .*nowhere.yaml"),
    ],
)  # fmt: skip
def test_mistakes(tmp_path: Path, text: str, what: str) -> None:
    write(tmp_path, "parts: [{reward: ./both.yaml}]", "other.yaml")
    with pytest.raises(UserError, match=what) as caught:
        load_combination(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_file_and_a_function_are_rewards_by_name(tmp_path: Path) -> None:
    from mmrlhf.rewards import load_reward

    (tmp_path / "mine.py").write_text("def red(images, prompts):\n    return images[:, 0].mean((1, 2))\n")
    (tmp_path / "both.yaml").write_text(
        "parts:\n  - {reward: 'python:mine.py:red', weight: 2}\n  - {reward: brightness}\n"
    )
    images = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    red = load_reward(f"python:{tmp_path / 'mine.py'}:red")(images, ["p"] * 3)
    torch.testing.assert_close(red, images[:, 0].mean((1, 2)))
    both = load_reward(tmp_path / "both.yaml")(images, ["p"] * 3)
    torch.testing.assert_close(both, 2 * red + load_reward("brightness")(images, ["p"] * 3), atol=1e-5, rtol=1e-5)
