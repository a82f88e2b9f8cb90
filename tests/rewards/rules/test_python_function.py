"""A user's function as a reward: found, checked, pickled by reference, and its mistakes told in one line."""

import pickle
import sys
from pathlib import Path

import pytest
import torch

from mmrlhf.errors import UserError
from mmrlhf.rewards.rules.python_function import FunctionReward
from mmrlhf.types import Reward

SOURCE = '''
import numpy as np, torch
import weights_beside
from dataclasses import dataclass

def redness(images, prompts):
    return weights_beside.FACTOR * images[:, 0].mean(dim=(1, 2))
redness.differentiable = True

def words(images, prompts):
    return [len(prompt.split()) for prompt in prompts]

def array(images, prompts):
    return np.array([float("nan")] + [2.0] * (len(images) - 1))[::-1]

@dataclass
class Model:
    bias: float = 3.0
    def __call__(self, images, prompts):
        return torch.full((len(images),), self.bias, dtype=torch.float16)

class Needy:
    def __init__(self, path): ...

def cut(images, prompts):
    return redness(images.detach(), prompts)
cut.differentiable = True

def raises(images, prompts):
    return prompts[99]

def column(images, prompts): return torch.zeros(len(images), 1)
def infinite(images, prompts): return [float("-inf")] * len(images)
def text(images, prompts): return "good"
def texts(images, prompts): return ["good"] * len(images)
def nothing(images, prompts): return [None] * len(images)
def complex_numbers(images, prompts): return torch.zeros(len(images), dtype=torch.complex64)
number = 3
'''  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "weights_beside.py").write_text("FACTOR = 2\n")
    (tmp_path / "mine.py").write_text(SOURCE)
    return tmp_path / "mine.py"


@pytest.fixture(autouse=True)
def forget_the_modules():
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("mmrlhf_user_") or name in ("weights_beside", "mine"):
            del sys.modules[name]


IMAGES = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
PROMPTS = ["a", "a b", ""]


def test_tensors_lists_arrays_and_objects(file: Path) -> None:
    def scores(name: str) -> torch.Tensor:
        return FunctionReward(f"python:{file}:{name}")(IMAGES, PROMPTS)

    torch.testing.assert_close(scores("redness"), 2 * IMAGES[:, 0].mean(dim=(1, 2)))
    assert scores("words").tolist() == [1, 2, 0] and scores("words").dtype == torch.float32
    torch.testing.assert_close(scores("array"), torch.tensor([2, 2, torch.nan]).double(), equal_nan=True)
    assert scores("Model").tolist() == [3, 3, 3] and scores("Model").dtype == torch.float32
    assert str(file.parent) not in sys.path


def test_gradients_only_where_declared(file: Path) -> None:
    declared, other = FunctionReward(f"{file}:redness"), FunctionReward(f"{file}:Model")
    assert isinstance(declared, Reward) and declared.differentiable and not other.differentiable
    images = IMAGES.clone().requires_grad_()
    declared(images, PROMPTS).sum().backward()
    assert images.grad is not None
    torch.testing.assert_close(images.grad[:, 0], torch.full((3, 4, 4), 2 / 16))
    assert not other(images, PROMPTS).requires_grad
    with torch.no_grad():
        assert not declared(images, PROMPTS).requires_grad
    with pytest.raises(UserError, match="mine.py:cut says differentiable, but its scores do not depend on the images"):
        FunctionReward(f"{file}:cut")(images, PROMPTS)


def test_it_is_pickled_as_a_reference(file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(file.parent)
    data = pickle.dumps(FunctionReward("python:mine.py:redness"))
    assert len(data) < 300
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for name in [name for name in sys.modules if name.startswith("mmrlhf_user_mine")]:
        del sys.modules[name]  # as in another process
    again = pickle.loads(data)
    assert again.differentiable and again.function.__name__ == "redness"
    torch.testing.assert_close(again(IMAGES, PROMPTS), 2 * IMAGES[:, 0].mean(dim=(1, 2)))


def test_a_module_in_the_working_directory_or_installed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    assert FunctionReward("mine:words")(IMAGES, PROMPTS).tolist() == [1, 2, 0]
    brightness = FunctionReward("python:mmrlhf.rewards.rules.simple:Brightness")
    assert brightness.differentiable and brightness(IMAGES, PROMPTS).shape == (3,)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("raises", r"failed with IndexError \(list index out of range\) at mine.py:\d+: mend it"),
        ("column", r"returned shape \(3, 1\) for 3 images, allowed is .*shape \(3,\)"),
        ("infinite", "returned -inf, allowed are finite numbers, and NaN to abstain"),
        ("text", "returned a str, allowed is a tensor, an array or a list of one number an image"),
        ("texts", r"returned \['good', 'good', 'good'\] .*, allowed is a tensor"),
        ("nothing", r"returned \[None, None, None\] .*, allowed is a tensor"),
        ("complex_numbers", "returned complex numbers for 3 images"),
    ],
)
def test_what_a_function_may_not_do(file: Path, name: str, what: str) -> None:
    with pytest.raises(UserError, match=f"reward python:.*mine.py:{name} {what}") as caught:
        FunctionReward(f"{file}:{name}")(IMAGES, PROMPTS)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_found(file: Path) -> None:
    (file.parent / "broken.py").write_text("import torch\n\n1 / 0\n")
    (file.parent / "nonsense.py").write_text("def f(:\n")
    for reference, what in [
        (f"{file}", "names no function: write python:package.module:function or python:path/to/file.py:function"),
        (f"{file}:no-name", "names no function"),
        (f"{file}:rednes", "mine.py has no 'rednes': there are .*redness, words, array, Model"),
        (f"{file}:number", "number is a int, allowed is a function"),
        (f"{file}:Needy", r"Needy cannot be called without arguments \(TypeError \(.*'path'\)"),
        (f"{file.parent / 'other.py'}:f", r"no file .*other.py: write python:path/to/file.py:function"),
        (
            f"{file.parent / 'broken.py'}:f",
            r"cannot import .*broken.py \(ZeroDivisionError .* at broken.py:3\): mend it",
        ),
        (f"{file.parent / 'nonsense.py'}:f", r"cannot import .*nonsense.py \(SyntaxError \(.*nonsense.py, line 1\)\)"),
        (
            "no_such_module:f",
            r"cannot import no_such_module \(ModuleNotFoundError .*\): install it, or go to the folder",
        ),
    ]:
        with pytest.raises(UserError, match=what) as caught:
            FunctionReward(f"python:{reference}")
        assert "\n" not in str(caught.value)
