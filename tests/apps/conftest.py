"""A real browser, for all tests of a module."""

from pathlib import Path

import pytest

CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    if not CHROMIUM.exists():
        pytest.skip(f"no {CHROMIUM}: install the package chromium to drive the app in a browser")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(autouse=True)
def closed_pages(request: pytest.FixtureRequest):
    """A page that stays open goes on asking and drawing beside the tests that follow."""
    yield
    browser = getattr(request.node, "funcargs", {}).get("browser")
    for context in browser.contexts if browser is not None else ():
        context.close()
