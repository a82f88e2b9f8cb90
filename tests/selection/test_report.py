"""The page about a selection: what it says, that it stands alone, and what its figures draw."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selection.curve import Curve
from selection.drawing import draw_curve, ticks
from selection.report import MOST_PICTURES, pictures, settings
from selection.select import SelectConfig, select
from tests.selection.data import gaussian

VOID = {"meta", "img", "tr", "td", "th"}  # tr, td and th may close by themselves


class Balanced(HTMLParser):
    """Collects tags that are closed without having been opened, or never closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID and (not self.open or self.open.pop() != tag):
            self.wrong.append(tag)


def written(folder: Path, **options: Any) -> tuple[str, dict[str, Any]]:
    """The page and the result of a selection."""
    config = SelectConfig(out=folder / "o.json", report=folder / "r.html", **options)
    result = select(config)
    page = (folder / "r.html").read_text()
    parser = Balanced()
    parser.feed(page)
    assert parser.open == parser.wrong == []
    outside = re.findall(r"""(?:src|href|url\()\s*=?\s*["']?(?!data:)(\w[^"')>]*)""", page)
    assert outside == [] and "http" not in page and "<script" not in page and "nan" not in page.lower()
    return page, result


def test_the_page_of_a_matrix(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", gaussian(200, 6))
    page, result = written(tmp_path, embeddings=tmp_path / "x.npy", budget=15)
    assert page.count('class="chosen"') == 15 and page.count('class="row"') == 200 and "earlier" not in page
    assert page.count("<polyline") == 4 and page.count('class="band"') == 2
    assert f"{result['coverage']['radius']:.4g}" in page and f"{result['baseline_random']['radius']:.4g}" in page
    assert "prefers-color-scheme: dark" in page and "Recipe" not in page and "<img" not in page
    assert all(why in page for why in result["why"])


def test_the_page_of_images_shows_them_with_why(clip_folder: Path, pictures: Path, tmp_path: Path) -> None:
    page, result = written(tmp_path, images=pictures, model=str(clip_folder), budget=5)
    assert page.count('<img loading="lazy"') == 5 == page.count("data:image/jpeg;base64,")
    sheet = page[page.index('class="sheet"') : page.index("<h2>Map")]
    assert all(why in sheet for why in result["why"]) and "Point at one" in page
    assert [Path(path).name for path in result["paths"]] == re.findall(r'alt="([^"]*)"', sheet)


def test_the_page_of_a_recipe_names_what_it_was(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", gaussian(40, 6))
    (tmp_path / "m.csv").write_text("kind\n" + "\n".join("ab" * 20) + "\n")
    (tmp_path / "r.yaml").write_text("strategies: [{type: diversity}, {type: balance, column: kind, shares: {a: 0.3}}]")
    (tmp_path / "a").write_text("3\n4\n")
    page, result = written(
        tmp_path, embeddings=tmp_path / "x.npy", budget=9, recipe=tmp_path / "r.yaml", metadata=tmp_path / "m.csv",
        already=tmp_path / "a",
    )  # fmt: skip
    assert "column kind; shares a 30.0%" in page and "chosen earlier" in page and page.count('class="already"') == 2
    names = [pick["strategy"] for pick in result["picks"]]
    assert f"diversity {names.count('diversity')}" in page


def test_names_are_escaped(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", gaussian(10, 2))
    name = "a<b>&c"
    (tmp_path / "m.jsonl").write_text("".join(f'{{"{name}": {n}}}\n' for n in range(10)))
    (tmp_path / "r.yaml").write_text(f"strategies: [{{type: weights, column: '{name}'}}]")
    page, _ = written(
        tmp_path, embeddings=tmp_path / "x.npy", budget=3, recipe=tmp_path / "r.yaml", metadata=tmp_path / "m.jsonl"
    )
    assert "<b>&c" not in page and "a&lt;b&gt;&amp;c" in page


def test_rows_that_cannot_be_drawn_apart(tmp_path: Path) -> None:
    for x in (np.ones((5, 3), np.float32), gaussian(5, 1), gaussian(1, 4)):
        np.save(tmp_path / "x.npy", x)
        written(tmp_path, embeddings=tmp_path / "x.npy", budget=1)


def test_images_that_have_gone_are_left_out_and_there_are_not_too_many(pictures_of: list[str]) -> None:
    picks = [{"index": n, "strategy": "s", "gain": 0.0, "why": ""} for n in range(len(pictures_of))]
    found = pictures({"paths": ["/none.png", *pictures_of], "picks": [*picks, picks[0]]})
    assert [each["number"] for each in found] == list(range(2, MOST_PICTURES + 1))
    assert pictures({"picks": picks}) == []


@pytest.fixture
def pictures_of(pictures: Path) -> list[str]:
    """Paths of more images than a page shows, some of them many times."""
    return [str(pictures / f"{n % 11:02}.png") for n in range(MOST_PICTURES + 20)]


def test_a_curve_is_drawn_to_scale() -> None:
    own = Curve(np.array([1, 5, 9]), np.array([4.0, 2, 1]), np.array([4.0, 2, 1]))
    drawn = [own._replace(mean=own.mean + 1), own._replace(mean=own.mean + 3)]
    picture = draw_curve(own, drawn, lambda curve: curve.mean, "mean")
    lines = {kind: points for kind, points in re.findall(r'<polyline class="(\w+)" points="([^"]*)"', picture)}
    at = {kind: np.array([p.split(",") for p in points.split()], float) for kind, points in lines.items()}
    x, y = at["own"].T
    assert x[1] - x[0] == pytest.approx(x[2] - x[1]) and (y[1] - y[0]) == pytest.approx(2 * (y[2] - y[1]), abs=0.2)
    unit = y[2] - y[1]
    assert np.allclose(at["random"][:, 1], y - 2 * unit, atol=0.2)  # the mean of + 1 and + 3


def test_ticks_are_round_and_few() -> None:
    assert ticks(1.4) == [0, 0.5, 1] and ticks(80.0, whole=True) == [0, 20, 40, 60, 80] and ticks(0.0) == [0]
    assert ticks(3.0, whole=True) == [0, 1, 2, 3]
    for high in np.random.default_rng(0).lognormal(0, 8, 200):
        assert 2 <= len(ticks(float(high))) <= 6


def test_settings_in_words() -> None:
    strategy = {
        "type": "balance",
        "column": "k",
        "shares": {"a": 0.25},
        "strength": 1.0,
        "none": None,
        "query": ["a", "b"],
    }
    assert settings(strategy) == ("balance", "column k; shares a 25.0%; strength 1.0; query a, b")
