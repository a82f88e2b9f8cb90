"""The pictures of the rating app in the docs: the app itself, in headless Chromium, over scenes of tiny-llava's emoji.

python -m benchmarks.rate_screenshots [--out docs/images] [--only pair points …] [--chromium /usr/bin/chromium]
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from apps.rate import serve
from apps.rate_examples import read_examples
from apps.rate_items import Mode, read_questions
from mmrlhf.images import save_image
from mmrlhf.store import Store
from mmrlhf.tiny.scenes import Scene, Thing, render

PROMPT = "three cows and a tractor"
# (background, the kind and the cell of each thing): with a stranger, as the prompt has it, and two of something else
DRAWN = [
    ("pink", [("cow", 0), ("tractor", 2), ("cow", 4), ("carrot", 7), ("cow", 8)]),
    ("yellow", [("cow", 1), ("tractor", 2), ("cow", 5), ("cow", 7)]),
    ("pink", [("horse", 3), ("pig", 4), ("camera", 5), ("cow", 8)]),
    ("yellow", [("horse", 2), ("umbrella", 3), ("chicken", 5)]),
]
INSTRUCTIONS = "Which picture shows what the text asks for: every object, and as many of each?"
EXAMPLES = [
    {"image": "1.png", "caption": "three cows, one tractor", "better": True},
    {"image": "0.png", "caption": "a carrot, too", "better": False},
    {"image": "2.png", "caption": "one cow, other animals", "better": False},
]


def draw(folder: Path) -> None:
    """The scenes as pictures, with a list of items and one of examples."""
    generator = np.random.default_rng(3)
    for number, (background, things) in enumerate(DRAWN):
        scene = Scene("farm", background, tuple(Thing(kind, "", cell) for kind, cell in things))
        save_image(render([scene], generator)[0], folder / f"{number}.png")
    rows = [{"prompt": PROMPT, "image": f"{number}.png"} for number in range(len(DRAWN))]
    for name, lines in (("items", rows), ("examples", EXAMPLES)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def keys(*pressed: str) -> Callable[[Any], None]:
    """What a rater has done: pressed some keys."""
    return lambda page: [page.keyboard.press(key) for key in pressed]


def point(page: Any) -> None:
    """A cow that the edge cuts off, and the carrot; then the cross of the keyboard elsewhere."""
    box = page.locator(".mm-layer").bounding_box()
    for key, x, y in (("1", 0.97, 0.86), ("2", 0.5, 0.86)):
        page.keyboard.press(key)
        page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])
    keys("Shift+ArrowLeft", "Shift+ArrowLeft", "Shift+ArrowUp")(page)


# name of the picture -> mode, further options, what the rater did
SHOTS: dict[str, tuple[Mode, dict[str, Any], Callable[[Any], None]]] = {
    "pair": ("pair", {}, keys()),
    "examples": ("pair", {"examples": True, "instructions": INSTRUCTIONS}, keys()),
    "rank": ("rank", {}, keys("3", "2", "1", "=")),
    "criteria": ("criteria", {"criteria": ("quality", "prompt fit", "safety")}, keys("5", "4")),
    "points": ("points", {"tags": ("artifact", "misaligned")}, point),
}


def shoot(browser: Any, name: str, folder: Path, file: Path, **context: Any) -> None:
    """One picture of the page of a rater who has done something."""
    mode, options, act = SHOTS[name]
    store = Store(str(folder / f"{name}.db"))
    items, tasks = read_questions(folder, mode, criteria=options.get("criteria", ()))
    store.add_items(items)
    store.add_tasks(tasks)
    shown: dict[str, Any] = {"tags": options.get("tags", ()), "instructions": options.get("instructions", "")}
    if options.get("examples"):
        shown["examples"] = read_examples(folder / "examples.jsonl")
    handle = serve(store, port=0, block=False, mode=mode, **shown)
    opened = browser.new_context(**{"viewport": {"width": 1200, "height": 760}, **context})
    try:
        page = opened.new_page()
        page.goto(handle.url)
        page.fill("#mm-name", "ada")
        page.keyboard.press("Enter")
        page.wait_for_selector(".mm-pictures[aria-busy=false]")
        act(page)
        page.mouse.move(0, 0)
        page.wait_for_timeout(400)  # colours fade in
        page.screenshot(path=str(file))
    finally:
        opened.close()
        handle.close()
        store.close()


def main() -> None:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("--only", nargs="+", choices=list(SHOTS), default=list(SHOTS))
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place, sync_playwright() as driver:
        folder = Path(place)
        draw(folder)
        browser = driver.chromium.launch(executable_path=arguments.chromium, args=["--no-sandbox"])
        for name in arguments.only:
            file = arguments.out / f"rate-{name}.png"
            shoot(browser, name, folder, file)
            print(file)
        browser.close()


if __name__ == "__main__":
    main()
