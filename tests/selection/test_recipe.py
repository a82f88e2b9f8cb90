"""What recipes refuse, from Python and from YAML."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from mmrlhf.errors import UserError
from selection.recipe import (
    KINDS,
    Balance,
    Diversity,
    PerGroup,
    Similarity,
    Threshold,
    Typicality,
    Uncertainty,
    Weights,
    kind_of,
    label,
    plain,
)
from selection.recipe_file import read_recipe, strategies_of

ALL = """
strategies:
  - {type: diversity, strength: 2, minimum_distance: 0.5}
  - {type: typicality, neighbours: 5}
  - type: similarity
    query: [cat.png, a red heart]
  - {type: weights, column: sharpness, strength: -1, scale: rank}
  - {type: uncertainty, measure: margin}
  - type: balance
    column: weather
    shares: {sunny: 0.5, 3: 0.25, yes: 0.25}
  - {type: threshold, condition: sharpness >= 0.2}
  - {type: per-group, column: prompt, most: 2, least: 1}
"""


def written(text: str, folder: Path) -> Path:
    path = folder / "r.yaml"
    path.write_text(text)
    return path


def test_every_strategy_is_read(tmp_path: Path) -> None:
    recipe = read_recipe(written(ALL, tmp_path))
    assert recipe == (
        Diversity(2.0, 0.5),
        Typicality(neighbours=5),
        Similarity(("cat.png", "a red heart")),
        Weights("sharpness", -1.0, "rank"),
        Uncertainty("margin"),
        Balance("weather", {"sunny": 0.5, "3": 0.25, "true": 0.25}),
        Threshold("sharpness >= 0.2"),
        PerGroup("prompt", 2, 1),
    )
    assert [kind_of(strategy) for strategy in recipe] == list(KINDS)


def test_what_a_result_holds_can_be_read_again(tmp_path: Path) -> None:
    recipe = read_recipe(written(ALL, tmp_path))
    content = [{key: value for key, value in plain(strategy).items() if value is not None} for strategy in recipe]
    assert strategies_of(json.loads(json.dumps(content))) == recipe


def test_one_query_needs_no_list() -> None:
    assert strategies_of([{"type": "similarity", "query": "a cat"}]) == (Similarity(("a cat",)),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "strategies: [{type: diversty}]",
            r"strategy 1: unknown type diversty \(did you mean diversity\?\): allowed are div",
        ),
        (
            "strategies: [{type: weights, colum: a}]",
            r"unknown key colum \(did you mean column\?\): allowed are type, column, str",
        ),
        ("strategies: [{type: weights}]", r"strategy 1 \(weights\) lacks column"),
        (
            "strategies: [{type: diversity}, {type: diversity, strength: much}]",
            r"strategy 2 \(diversity\): strength got 'much'",
        ),
        ("strategies: [{type: diversity, strength: true}]", "strength got true, allowed is a number"),
        (
            "strategies: [{type: diversity, strength: 0}]",
            "strategy 1, diversity: strength got 0.0, allowed is any number but 0",
        ),
        ("strategies: [{type: weights, column: a, scale: log}]", "scale got 'log', allowed is one of range, rank"),
        ("strategies: [{type: balance, column: a, shares: [1]}]", "allowed is a mapping such as"),
        ("strategies: [{type: balance, column: a, shares: {x: half}}]", "shares of x got 'half', allowed is a number"),
        ("strategies: [diversity]", "strategy 1 got 'diversity', allowed is a mapping with a type: one of diversity"),
        ("strategies: []", "allowed is a list of entries"),
        ("strategies: {type: diversity}", "allowed is a list of entries"),
        ("[1]", "has no key strategies"),
        ("", "has no key strategies"),
        ("strategies: [{type: diversity}]\nbudget: 3", "unknown key budget, allowed is strategies"),
        ("strategies: [", "is not YAML"),
        ("!!python/object/apply:os.system [ls]", "is not YAML"),
    ],
)
def test_a_mistake_in_the_file_is_told(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read_recipe(written(text, tmp_path))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the recipe"):
        read_recipe(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (Diversity, {"strength": math.nan}, "strength got nan"),
        (Diversity, {"minimum_distance": -1.0}, "minimum_distance got -1.0, allowed is 0 or more"),
        (Typicality, {"neighbours": 0}, "neighbours got 0, allowed is 1 or more"),
        (Weights, {"column": "a", "strength": 0.0}, "weights: strength got 0.0"),
        (Balance, {"column": "a", "shares": {"x": 1.5}}, "the share of 'x' is 1.5, allowed is 0 to 1"),
        (Balance, {"column": "a", "shares": {"x": 0.8, "y": 0.4}}, "the shares sum to 1.2, allowed is at most 1"),
        (Threshold, {"condition": "sharp"}, "cannot read the condition 'sharp'"),
        (PerGroup, {"column": "a"}, "sets no limit: give most, least or both"),
        (PerGroup, {"column": "a", "most": 0}, "got most 0 and least 0"),
        (PerGroup, {"column": "a", "most": 1, "least": 2}, "got most 1 and least 2"),
    ],
)
def test_values_are_checked_in_python_too(kind: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        kind(**values)


def test_labels_are_alike_from_every_kind_of_file() -> None:
    assert [label(value) for value in (True, 3, 3.0, "3", 0.5, "x")] == ["true", "3", "3", "3", "0.5", "x"]


SHIPPED = sorted((Path(__file__).parents[2] / "configs" / "select" / "recipes").glob("*.yaml"))


def test_there_are_shipped_recipes() -> None:
    assert SHIPPED


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_recipe_is_headed_by_its_command_and_can_be_read(path: Path) -> None:
    assert path.read_text().startswith(f"# mmrlhf select --recipe configs/select/recipes/{path.name} ")
    assert len(read_recipe(path)) > 1
