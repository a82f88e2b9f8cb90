"""Examples beside the instructions: read from a folder or a list, served by their hash alone, and shown as pictures and text."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from apps.rate import RateConfig, rate
from apps.rate_examples import MOST, Example, read_examples
from apps.rate_items import read_questions
from mmrlhf.errors import UserError
from mmrlhf.images import content_hash, save_image
from mmrlhf.store import Store
from tests.apps.raters import enter, ready, served

EVIL = "<script>window.evil = 1</script><img src=x onerror='window.evil = 1'>"
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 780}, "has_touch": True, "is_mobile": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """items/ with three pictures, examples/ with two others and a list that says more of them."""
    place = tmp_path_factory.mktemp("study")
    for i in range(3):
        save_image(torch.full((3, 16, 16), i / 3), place / "items" / f"{i}.png")
    save_image(torch.full((3, 24, 48), 0.9), place / "examples" / "sharp_eyes-both.png")
    save_image(torch.full((3, 24, 48), 0.1), place / "examples" / "more" / "six fingers.png")
    return place


def listed(folder: Path, *rows: Any) -> Path:
    file = folder / "rows.jsonl"
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return file


@pytest.fixture
def study(folder: Path, tmp_path: Path) -> Iterator[Store]:
    store = Store(str(tmp_path / "r.db"))
    items, tasks = read_questions(folder / "items")
    store.add_items(items)
    store.add_tasks(tasks)
    yield store
    store.close()


def test_a_folder_names_its_examples_by_its_files(folder: Path, tmp_path: Path) -> None:
    found = read_examples(folder / "examples")
    assert [(each.caption, each.better) for each in found] == [("six fingers", None), ("sharp eyes both", None)]
    assert [each.key for each in found] == [content_hash(Path(each.path).read_bytes()) for each in found]
    save_image(torch.zeros(3, 8, 8), tmp_path / "a.png")
    save_image(torch.ones(3, 8, 8), tmp_path / "b.png")
    (tmp_path / "examples.jsonl").write_text(
        '{"image": "b.png", "caption": " good ", "better": true}\n{"image": "a.png"}'
    )
    by_list = [(Path(each.path).name, each.caption, each.better) for each in read_examples(tmp_path)]
    assert (
        by_list
        == [("b.png", "good", True), ("a.png", "", None)]
        == [(Path(each.path).name, *each[2:]) for each in read_examples(tmp_path / "examples.jsonl")]
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "items/0.png", "capton": "x"}, "rows.jsonl:1 has 'capton', allowed are image, caption, better"),
        ({"image": "items/0.png", "caption": 5}, "caption got 5, allowed is a text of up to 300 letters"),
        ({"image": "items/0.png", "caption": "x" * 301}, "allowed is a text of up to 300 letters"),
        ({"image": "items/0.png", "better": "yes"}, "better got 'yes', allowed is true or false"),
        ({"image": "gone.png"}, "rows.jsonl:1: no picture .*gone.png"),
        ({"image": "rows.jsonl"}, "rows.jsonl is not a readable picture"),
        ({"caption": "x"}, "rows.jsonl:1 names no picture"),
        ("[", "rows.jsonl:1 is not JSON"),
        ("", "rows.jsonl has 0 examples, allowed are 1 to 24"),
    ],
)
def test_a_bad_row_is_one_line(folder: Path, row: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_examples(listed(folder, row))


def test_a_bad_source_is_one_line_and_makes_no_store(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "x.png").write_bytes(b"\x89PNG and no more")
    for name, message in (
        ("empty", "no image in .*empty: put files ending in"),
        ("broken", "x.png is not a readable picture"),
        ("gone", "no examples at .*gone: give a folder of pictures, or a JSONL file"),
        ("broken/x.png", "no examples at .*x.png"),
    ):
        with pytest.raises(UserError, match=message):
            rate(RateConfig(folder / "items", str(tmp_path / "r.db"), examples=tmp_path / name, port=0))
    with pytest.raises(UserError, match=f"has {MOST + 1} examples, allowed are 1 to {MOST}"):
        read_examples(listed(folder, *[{"image": "items/0.png"}] * (MOST + 1)))
    assert not (tmp_path / "r.db").exists()


def test_they_are_served_by_their_hash_to_raters_and_nothing_else_is(folder: Path, study: Store) -> None:
    found = read_examples(folder / "examples")
    with served(study, examples=found) as client:
        address = f"images/{found[0].key}"
        assert client.get(address).status_code == 401  # a name first, as for all pictures
        assert "examples" not in client.get("api/state").json()
        state = client.post("api/login", json={"name": "ada"}).json()
        assert state["examples"][0] == {"image": address, "caption": "six fingers", "better": None}
        answer = client.get(address)
        assert answer.content == Path(found[0].path).read_bytes() and answer.headers["content-type"] == "image/png"
        outside = content_hash((folder / "items" / "0.png").read_bytes())[::-1]
        for key in (
            outside,
            "six fingers.png",
            "..%2f..%2fetc%2fpasswd",
            found[0].path,
            f"%2e%2e/examples/{found[0].key}",
        ):
            assert client.get(f"images/{key}").status_code == 404
        assert study.item(found[0].key) is None  # they are no items of the study
    with served(study) as client:
        assert "examples" not in client.post("api/login", json={"name": "ada"}).json()
        assert client.get(address).status_code == 404


def test_an_example_whose_file_has_changed_is_not_served(study: Store, tmp_path: Path) -> None:
    save_image(torch.zeros(3, 8, 8), tmp_path / "x" / "a.png")
    found = read_examples(tmp_path / "x")
    save_image(torch.ones(3, 8, 8), tmp_path / "x" / "a.png")
    with served(study, examples=found) as client:
        client.post("api/login", json={"name": "ada"})
        assert client.get(f"images/{found[0].key}").status_code == 404


def with_captions(folder: Path) -> tuple[Example, ...]:
    rows = [("sharp_eyes-both.png", EVIL, True), ("more/six fingers.png", "six <b>fingers</b>", False)]
    return read_examples(
        listed(folder, *({"image": f"examples/{name}", "caption": says, "better": b} for name, says, b in rows))
    )


def test_the_page_shows_them_as_pictures_and_plain_text(browser, folder: Path, study: Store) -> None:
    with served(study, examples=with_captions(folder), instructions="Look at the hands.") as client:
        page = enter(browser, str(client.base_url).rstrip("/"), "ada")
        shown = page.locator(".mm-ask .mm-examples[open] figure")
        page.wait_for_function(
            "() => [...document.querySelectorAll('.mm-shown img')].every((i) => i.naturalWidth === 48)"
        )
        assert shown.count() == 2 and page.locator(".mm-guide").inner_text() == "Look at the hands."
        assert [text.split("\n", 1) for text in shown.all_inner_texts()] == [
            ["✓ better", EVIL],
            ["✗ worse", "six <b>fingers</b>"],
        ]
        assert page.locator("figcaption :is(script, img, i)").count() == 0 and page.evaluate("window.evil") is None
        page.locator(".mm-example").first.click()  # larger; it is no answer
        assert page.locator(".mm-example").first.bounding_box()["height"] > 250
        page.locator(".mm-example").first.click()
        page.keyboard.press("e")
        assert page.locator(".mm-examples[open]").count() == 0 and not shown.first.is_visible()
        page.keyboard.press("ArrowLeft")
        ready(page, 1)
        assert page.locator(".mm-examples[open]").count() == 0  # as the rater left it
        page.reload()
        ready(page, 1)
        assert page.locator(".mm-examples[open]").count() == 0
        page.locator(".mm-examples summary").click()
        assert shown.first.is_visible()
        page.keyboard.press(" ")  # would close them, had they kept the focus
        page.keyboard.press("ArrowRight")
        ready(page, 2)
        assert shown.first.is_visible() and page.problems == []
    assert study.count() == 2


def test_without_examples_there_is_no_panel(browser, study: Store) -> None:
    with served(study) as client:
        page = enter(browser, str(client.base_url).rstrip("/"), "ada")
        page.keyboard.press("e")
        assert not page.locator(".mm-examples").is_visible() and page.problems == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_the_page_is_not_wider_and_words_can_be_read(browser, folder: Path, study: Store, scheme) -> None:
    many = with_captions(folder) * 6
    with served(study, examples=many) as client:
        page = enter(browser, str(client.base_url).rstrip("/"), "ada", color_scheme=scheme, **PHONE)
        assert page.locator(".mm-shown figure").count() == 12
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        strip = page.evaluate(
            "(() => { const s = document.querySelector('.mm-shown'); return s.scrollWidth > s.clientWidth; })()"
        )
        assert strip  # it scrolls by itself
        for words in (".mm-better", ".mm-worse", "figcaption span"):
            assert contrast(page, words) >= 4.5
        page.touchscreen.tap(*middle(page, ".mm-examples summary"))
        page.wait_for_selector(".mm-examples:not([open])")
        assert page.problems == []


def middle(page: Any, selector: str) -> tuple[float, float]:
    box = page.locator(selector).bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def contrast(page: Any, selector: str) -> float:
    """The WCAG contrast of a text with the page behind it."""
    numbers = page.evaluate(
        """(selector) => {
            const read = (element, name) => getComputedStyle(element)[name].match(/[\\d.]+/g).slice(0, 3).map(Number);
            return [read(document.querySelector(selector), "color"), read(document.body, "backgroundColor")];
        }""",
        selector,
    )
    light = []
    for colour in numbers:
        parts = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        light.append(0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2])
    return (max(light) + 0.05) / (min(light) + 0.05)
