"""The exported page: one file that needs nothing else, in which names and prompts stay texts."""

import base64
import hashlib
import json
import re
from datetime import datetime, timezone
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from apps.dashboard_page import MOST_SLIDES, picture_uri, write_page
from apps.dashboard_runs import read_board
from mmrlhf.images import save_image
from mmrlhf.runs import write_advice
from tests.apps.test_dashboard_runs import make_run

EVIL = "<img src=x onerror=alert(1)>"
VOID = {"meta", "img", "input", "br", "link"}
CURVE = [{"predicted": 0.2, "observed": 0.3, "size": 5}, {"predicted": 0.8, "observed": 0.7, "size": 5}]


class Page(HTMLParser):
    """What a browser would make of the text: elements with attributes, the text in them, and whether all were closed."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, (tag, self.open)

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two runs whose names, prompts, problems and settings try to be HTML; one has pictures."""
    root = tmp_path / "runs"
    prompts = [f"a cat {EVIL}", "</script><script>alert(2)</script>"]
    lines = [
        {"epoch": i, "loss": 1.0 / (i + 1), "reward_mean": float(i), "reward_std": 0.5, "kl": 0.1 * i, EVIL: 1.0,
         "problems": [f"flat {EVIL}"]}
        for i in range(4)
    ]  # fmt: skip
    digest = hashlib.sha256("\n".join(prompts).encode()).hexdigest()
    config = {"epochs": 4, "prompts": "prompts.txt", "prompts_sha256": digest, EVIL: 1, "model": EVIL}
    for name in (EVIL, "plain"):
        write_advice(make_run(root / name, lines, tail="{broken\n", **config), {f"flat {EVIL}": f"change {EVIL}"})
        config = config | {EVIL: 2, "model": "tiny-sd"}
    (root / "prompts.txt").write_text("\n".join(prompts) + "\n")
    for step in (0, 2):
        save_image(torch.full((3, 8, 8), step / 4), root / EVIL / "samples" / f"epoch-{step:04d}.png")
    (root / f"{EVIL}.json").write_text(json.dumps({"reliability": {EVIL: CURVE}, "agreement": 0.8}))
    checks = [{"check": EVIL, "verdict": f'"{EVIL}', "says": EVIL}]
    stability = {"before": [0.5, 0.5], "after": [0.4, 0.6], "edges": [0.0]}
    (root / "drift.json").write_text(json.dumps({"verdict": "look", "stability": stability, "checks": checks}))
    return root


def export(root: Path, out: Path, **options: float) -> Page:
    write_page(read_board([root]), out, now=datetime(2024, 5, 6, 7, 8, tzinfo=timezone.utc), **options)
    page = Page(out.read_text(encoding="utf-8"))
    assert page.open == []
    return page


def test_it_shows_everything_and_loads_nothing(runs: Path, tmp_path: Path) -> None:
    page = export(runs, tmp_path / "out" / "page.html")
    for words in ("As of 2024-05-06 07:08 UTC", "learned reward", "KL to the start", "Pictures", "Rewards, round by round",
                  "Calibration", "Drift", "Settings that differ", "4 of 4", "agreement 0.8"):  # fmt: skip
        assert words in page.text, words
    assert not page.all("link") and not page.all("iframe")
    sources = [value for _, attributes in page.elements for key, value in attributes.items() if key in ("src", "href")]
    assert len(sources) == 2 and all((value or "").startswith("data:image/png;base64,") for value in sources)
    text = (tmp_path / "out" / "page.html").read_text(encoding="utf-8")
    assert "http://" not in text and "https://" not in text and "@import" not in text and "url(" not in text
    assert "color-scheme: light dark" in text


def test_names_and_prompts_stay_texts(runs: Path, tmp_path: Path) -> None:
    page = export(runs, tmp_path / "page.html")
    assert not any("onerror" in attributes for _, attributes in page.elements)
    assert len(page.all("script")) == 1 and page.text.count("alert(1)") > 8
    for words in (f"a cat {EVIL}", "</script><script>alert(2)</script>", f"flat {EVIL} since epoch 0: change {EVIL}"):
        assert words in page.text, words
    assert {attributes["alt"] for attributes in page.all("img")} == {
        f"samples of {EVIL} at epoch 0", f"samples of {EVIL} at epoch 2"
    }  # fmt: skip


def test_only_its_own_script_may_run(runs: Path, tmp_path: Path) -> None:
    page = export(runs, tmp_path / "page.html")
    (policy,) = [each["content"] for each in page.all("meta") if each.get("http-equiv") == "Content-Security-Policy"]
    script = re.findall(r"<script>(.*?)</script>", (tmp_path / "page.html").read_text(encoding="utf-8"), re.DOTALL)[-1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy is not None and "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy


def test_broken_lines_are_told(runs: Path, tmp_path: Path) -> None:
    page = export(runs, tmp_path / "page.html")
    assert "line 5 of plain/metrics.jsonl is no JSON object: left out" in page.text


def test_halves_of_characters_do_not_hinder_the_writing(tmp_path: Path) -> None:
    make_run(tmp_path / "r", [{"epoch": 0, "loss": 1.0, "problems": ["\ud800"], "a\udfff": 2}], model="\ud83d")
    page = export(tmp_path, tmp_path / "page.html")
    assert "\N{REPLACEMENT CHARACTER} since epoch 0" in page.text


def test_a_run_without_lines_is_shown_too(tmp_path: Path) -> None:
    make_run(tmp_path / "r", [])
    page = export(tmp_path, tmp_path / "page.html")
    assert "no line yet" in page.text and "No run has written a figure yet" in page.text


def test_settings_that_differ_are_those_that_several_runs_have(tmp_path: Path) -> None:
    make_run(tmp_path / "a", [{"epoch": 0, "loss": 1.0}], seed=1, model="m", only_here=1, out="a")
    make_run(tmp_path / "b", [{"epoch": 0, "loss": 1.0}], seed=2, model="m", out="b")
    page = export(tmp_path, tmp_path / "page.html")
    assert "seed" in page.text and "only_here" not in page.text and "model" not in page.text


def test_many_pictures_are_an_even_choice_with_both_ends(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r", [{"epoch": 0, "loss": 1.0}])
    for step in range(40):
        save_image(torch.zeros(3, 4, 4), folder / "samples" / f"epoch-{step:04d}.png")
    page = export(tmp_path, tmp_path / "page.html")
    steps = [int(each["data-step"] or "") for each in page.all("img")]
    assert len(steps) == MOST_SLIDES and steps[0] == 0 and steps[-1] == 39
    assert f"{MOST_SLIDES} of 40 pictures" in page.text
    assert [("hidden" in each) for each in page.all("img")] == [True] * (MOST_SLIDES - 1) + [False]


def test_a_large_picture_is_made_smaller_and_a_broken_one_left_out(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    save_image(torch.rand(3, 600, 1600, generator=generator), tmp_path / "large.png")
    uri = picture_uri(tmp_path / "large.png", [tmp_path])
    assert uri.startswith("data:image/jpeg;base64,") and len(uri) < (tmp_path / "large.png").stat().st_size
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "page.png").write_text("<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>")
    for name in ("broken.png", "page.png", "missing.png"):
        assert picture_uri(tmp_path / name, [tmp_path]) == ""
    assert picture_uri(tmp_path / "large.png", [tmp_path / "elsewhere"]) == ""
    Image.new("RGB", (2, 2)).save(tmp_path / "small.png")
    assert picture_uri(tmp_path / "small.png", [tmp_path]).startswith("data:image/png;base64,")


def test_smoothing_shows_the_values_behind(runs: Path, tmp_path: Path) -> None:
    assert "faint" not in re.sub(r"<style>.*?</style>", "", _text(runs, tmp_path / "a.html", 0.0), flags=re.DOTALL)
    assert "faint" in re.sub(r"<style>.*?</style>", "", _text(runs, tmp_path / "b.html", 0.6), flags=re.DOTALL)


def _text(root: Path, out: Path, smooth: float) -> str:
    export(root, out, smooth=smooth)
    return out.read_text(encoding="utf-8")
