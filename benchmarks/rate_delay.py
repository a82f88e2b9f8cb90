"""How long a rater waits: from the key to the next pair on the screen, decoded, in headless Chromium over loopback.

Every answer is on disk before the next pair shows. The page is that of `mmrlhf rate` in a process of its own; the time begins
with the key's own time stamp and ends in the frame after both pictures are decoded.

python benchmarks/rate_delay.py [--questions 60] [--size 512] [--think 0.5] [--store URL] [--chromium /usr/bin/chromium]
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

TARGET = 150.0  # milliseconds
WATCH = """() => {
    const pictures = document.querySelector(".mm-pictures");
    const sources = () => [...pictures.querySelectorAll("img")].map((image) => image.src).join();
    window.delays = [];
    let pressed = null;
    document.addEventListener("keydown", (event) => { pressed = { at: event.timeStamp, sources: sources() }; }, true);
    new MutationObserver(() => {
        if (pressed === null || pictures.ariaBusy !== "false" || sources() === pressed.sources) return;
        const { at } = pressed;
        pressed = null;
        requestAnimationFrame(() => setTimeout(() => window.delays.push(performance.now() - at))); // after that frame is painted
    }).observe(pictures, { attributes: true });
}"""


def make_pictures(folder: Path, count: int, size: int) -> None:
    """Smooth random pictures with some grain, as PNG: about as many bytes as a photo has."""
    random = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), dtype=np.int16)
        grain = random.integers(-6, 7, smooth.shape, dtype=np.int16)
        Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")


def start(folder: Path, store: str) -> tuple[subprocess.Popen[str], str]:
    """The app as a process, and its address."""
    options = ["--items", str(folder), "--store", store, "--port", "0", "--pairs-per-item", "4"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "mmrlhf", "rate", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"rate at (http://\S+)", line):
            return process, found.group(1)
    raise SystemExit("the app did not start")


def measure(url: str, questions: int, think: float, chromium: str) -> list[float]:
    """Milliseconds of each question after the first."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(url)
        page.fill("#mm-name", "ada")
        page.keyboard.press("Enter")
        page.wait_for_selector(".mm[data-screen=rate] .mm-pictures[aria-busy=false]")
        page.evaluate(WATCH)
        for number in range(questions):
            page.wait_for_timeout(1000 * think)
            page.keyboard.press("ArrowLeft" if number % 2 else "ArrowRight")
            page.wait_for_function("count => window.delays.length === count", arg=number + 1, timeout=60_000)
        delays: Any = page.evaluate("window.delays")
        browser.close()
    return [float(delay) for delay in delays]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--think", type=float, default=0.5, help="seconds that the rater looks at a pair")
    parser.add_argument("--store", help="a PostgreSQL URL; without, SQLite in a temporary folder")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "pictures"
        folder.mkdir()
        make_pictures(folder, options.questions // 2 + 4, options.size)  # each meets four others
        size = np.mean([path.stat().st_size for path in folder.iterdir()])
        process, url = start(folder, options.store or f"sqlite:///{place}/ratings.db")
        try:
            delays = measure(url, options.questions, options.think, options.chromium)
        finally:
            process.terminate()
            process.communicate()
    p50, p95 = np.percentile(delays, [50, 95])
    load = os.getloadavg()[0]
    print(
        f"{len(delays)} questions, {options.size}x{options.size} PNG of {size / 1024:.0f} KiB, load {load:.1f} on "
        f"{os.cpu_count()} cores: p50 {p50:.0f} ms, p95 {p95:.0f} ms, max {max(delays):.0f} ms "
        f"({sum(delay < TARGET for delay in delays)} of {len(delays)} below {TARGET:.0f} ms)"
    )


if __name__ == "__main__":
    main()
