"""The dashboard as people meet it: the command line, the routes, and the page in a real browser."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch

from apps.dashboard import DashboardConfig, dashboard
from apps.dashboard_runs import read_board
from mmrlhf.errors import UserError
from mmrlhf.images import save_image
from tests.apps.test_dashboard_runs import make_run

ROOT = Path(__file__).parents[2]
EVIL = "<img src=x onerror=document.title='hacked'>"


def write_run(folder: Path, epochs: int) -> Path:
    lines = [{"epoch": i, "loss": 1.0 / (i + 1), "kl": 0.1 * i, "entropy": 2.0, "seconds": 1.0} for i in range(epochs)]
    return make_run(folder, lines, epochs=5)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, one with pictures of two steps, one with a name that tries to be HTML; a link to a picture elsewhere."""
    root = tmp_path_factory.mktemp("runs")
    for name in ("ddpo", EVIL):
        write_run(root / name, 3)
    for step, level in ((0, 0.2), (4, 0.8)):
        save_image(torch.full((3, 8, 8), level), root / "ddpo" / "samples" / f"epoch-{step:04d}.png")
    save_image(torch.zeros(3, 8, 8), root.parent / "outside.png")
    return root


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runs": ()}, "--runs got no folder"),
        ({"runs": (Path("nowhere"),)}, "--runs nowhere is not there: give the folder"),
        ({"runs": (Path(__file__),)}, "is a file: give the folder"),
        ({"smooth": 1.0}, "--smooth got 1.0, allowed is from 0"),
        ({"smooth": float("nan")}, "--smooth got nan"),
        ({"refresh": 0.5}, "--refresh got 0.5, allowed is 1 second or more"),
        ({"export": Path(__file__).parent}, "--export .* is a folder: give the name of a file"),
        ({"port": 70000}, "--port got 70000, allowed is 0"),
    ],
)
def test_bad_input_is_one_line(runs: Path, options, message: str) -> None:
    with pytest.raises(UserError, match=message):
        dashboard(DashboardConfig(**({"runs": (runs,)} | options)))


def test_a_folder_without_runs_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run in .*: give a folder that has folders with a metrics.jsonl"):
        dashboard(DashboardConfig(runs=(tmp_path,), export=tmp_path / "page.html"))
    assert list(tmp_path.iterdir()) == []


def command(*options: str) -> list[str]:
    return [sys.executable, "-c", "from mmrlhf.cli import main; main()", "dashboard", *options]


def test_export_writes_a_page_without_gradio(runs: Path, tmp_path: Path) -> None:
    program = "import sys; sys.modules['gradio'] = None; from mmrlhf.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "dashboard", "--runs", str(runs), "--export", str(tmp_path / "page.html")],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout == f"2 runs: {tmp_path / 'page.html'}\n", done.stderr
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.fixture(scope="module")
def url(runs: Path) -> Iterator[str]:
    options = ("--runs", str(runs), "--port", "0", "--refresh", "1")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command(*options), stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r"http://\S+", line)
    assert found, line
    yield found.group()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_only_pictures_of_runs_are_served(runs: Path, url: str) -> None:
    with httpx.Client(base_url=url) as client:
        (key, _) = sorted(read_board([runs]).pictures)
        answer = client.get(f"/pictures/{key}")
        assert answer.status_code == 200 and answer.headers["content-type"] == "image/png"
        assert answer.headers["x-content-type-options"] == "nosniff"
        for path in ("/pictures/" + "0" * 32, "/pictures/..%2f..%2fetc%2fpasswd", f"/gradio_api/file={runs}/ddpo/config.json",
                     "/gradio_api/file=/etc/passwd", "/docs"):  # fmt: skip
            assert client.get(path).status_code == 404, path
        assert client.post("/gradio_api/upload", files={"files": b"x"}).status_code == 404


def test_a_picture_that_became_a_link_is_no_longer_served(runs: Path, url: str) -> None:
    path = runs / "ddpo" / "samples" / "epoch-0002.png"
    save_image(torch.ones(3, 8, 8), path)
    (key,) = [key for key, each in read_board([runs]).pictures.items() if each == path.resolve()]
    try:
        for _ in range(30):
            status = httpx.get(f"{url}/pictures/{key}").status_code
            if status == 200:
                break
            time.sleep(0.2)
        assert status == 200
        path.unlink()
        path.symlink_to(runs.parent / "outside.png")
        assert httpx.get(f"{url}/pictures/{key}").status_code == 404
    finally:
        path.unlink()


def visit(browser, url: str, **options):
    page = browser.new_context(**options).new_page()
    page.set_default_timeout(20_000)
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("request", lambda request: page.problems.append(request.url) if not request.url.startswith(url) else None)
    page.goto(url)
    page.wait_for_selector(".mm-dash .chart")
    return page


def test_the_page_shows_the_runs_and_their_names_as_texts(browser, url: str) -> None:
    page = visit(browser, url)
    assert page.locator("td.name").all_inner_texts() == [EVIL, "ddpo"]
    assert [text for text in page.locator("figure h3").all_inner_texts()][:2] == ["loss", "KL to the start, nats"]
    assert page.locator("img[src=x]").count() == 0 and page.title() == "mmrlhf · dashboard"
    page.wait_for_function("() => [...document.querySelectorAll('.grids img')].some((image) => image.naturalWidth > 0)")
    assert page.problems == []


def test_new_lines_and_new_runs_appear_by_themselves(browser, runs: Path, url: str) -> None:
    page = visit(browser, url)
    row = page.locator("tr", has=page.locator("td.name", has_text=re.compile("^ddpo$")))
    assert "3 of 5" in row.inner_text()
    try:
        write_run(runs / "ddpo", 4)
        page.wait_for_selector("text=4 of 5")
        write_run(runs / "later", 5)
        page.wait_for_selector("td.name >> text=later")
    finally:
        for path in (runs / "later").glob("*"):
            path.unlink()
        (runs / "later").rmdir()
        write_run(runs / "ddpo", 3)
    assert page.problems == []


def test_the_slider_goes_back_through_the_pictures(browser, url: str) -> None:
    page = visit(browser, url)
    page.wait_for_selector("figure h3 >> text=ddpo: epoch 4")
    slider = page.get_by_label("number input for Pictures up to step")
    slider.fill("2")
    slider.press("Enter")
    page.wait_for_selector("figure h3 >> text=ddpo: epoch 0")
    page.wait_for_timeout(2500)  # the timer leaves it there
    assert page.locator("figure h3 >> text=ddpo: epoch 0").count() == 1


def test_figures_can_be_added_and_runs_chosen(browser, url: str) -> None:
    page = visit(browser, url)
    assert page.locator("figure h3", has_text=re.compile("^entropy$")).count() == 0
    page.get_by_role("combobox", name="More figures").click()
    page.get_by_role("option", name="entropy").click()
    page.wait_for_selector("figure h3 >> text=/^entropy$/")
    page.get_by_role("combobox", name="Runs").click()
    page.get_by_role("option", name="ddpo").click()
    page.wait_for_function("() => document.querySelectorAll('.mm-dash .legend .chip').length === 1")
    assert page.locator("td.name").all_inner_texts() == ["ddpo", EVIL]
    assert page.problems == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("exported", [False, True])
def test_a_phone_fits_and_follows_its_colours(browser, runs: Path, url: str, tmp_path: Path, scheme, exported) -> None:
    where = url
    if exported:
        dashboard(DashboardConfig(runs=(runs,), export=tmp_path / "page.html"))
        where = (tmp_path / "page.html").as_uri()
    page = visit(browser, where, viewport={"width": 390, "height": 780}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    light = sum(map(int, re.findall(r"\d+", ground)[:3])) / 3
    ink = page.evaluate("getComputedStyle(document.querySelector('.mm-dash h3')).color")
    dark_ink = sum(map(int, re.findall(r"\d+", ink)[:3])) / 3
    assert (light > 200 and dark_ink < 80) if scheme == "light" else (light < 60 and dark_ink > 200)


def test_the_exported_slider_changes_the_picture(browser, runs: Path, tmp_path: Path) -> None:
    dashboard(DashboardConfig(runs=(runs,), export=tmp_path / "page.html"))
    page = visit(browser, (tmp_path / "page.html").as_uri())
    shown = "() => [...document.querySelectorAll('img[data-step]')].filter((i) => !i.hidden).map((i) => i.dataset.step)"
    assert page.evaluate(shown) == ["4"]
    page.focus("#mm-slider")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate(shown) == ["0"] and page.inner_text("#mm-step") == "0"
    requests = [problem for problem in page.problems if not problem.startswith("data:")]
    assert requests == [] and json.dumps(page.title()).startswith('"Runs in ')
