"""How numbers, pictures and figures go into a page."""

import base64
import io
from pathlib import Path

import jinja2
import pytest
import torch
from PIL import Image

from mmrlhf.images import save_image
from mmrlhf.page import figure_uri, new_figure, number, numbers, percent, percents, render, thumbnail_uri


def test_numbers() -> None:
    assert percent(0.1234) == "12.3\N{NO-BREAK SPACE}%" and percent(None) == "–"
    assert percents([0.1, 0.2], 0) == "10–20\N{NO-BREAK SPACE}%" and percents(None) == "–"
    assert number(-0.5, 1) == "−0.5" and number(float("nan")) == number(None) == "–"
    assert numbers([-0.1, 0.25], 2) == "−0.10 to 0.25" and numbers(None) == "–"


def test_thumbnails_are_small_pictures(tmp_path: Path) -> None:
    save_image(torch.full((3, 48, 400), 0.5), tmp_path / "wide.png")
    kind, _, data = thumbnail_uri(tmp_path / "wide.png", side=100).partition(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (100, 12)


def test_figures_are_inline_and_the_same_each_time() -> None:
    def drawn() -> str:
        figure, (left, right) = new_figure(columns=2)
        left.plot([0, 1], [1, 0])
        right.set_xlabel("x")
        return figure_uri(figure)

    assert base64.b64decode(drawn().partition(",")[2]).startswith(b"<?xml")


def test_a_missing_name_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError):
        render("rewards/evaluation/drift_report.html")
