"""Debian's Chromium through Playwright, without any network of its own."""

import os
from pathlib import Path

import pytest

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


def _absent() -> str | None:
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "playwright is not installed; install the test extra"
    return None if CHROMIUM.exists() else f"{CHROMIUM} is missing; apt-get install chromium"


@pytest.fixture(scope="session")
def chromium():
    """The running browser; without one, tests skip with a reason, but fail where CI is set."""
    reason = _absent()
    if reason is not None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """Open a page and watch it: any console error, exception or outside request fails the test."""
    contexts, troubles = [], []

    def open_page(path: Path, *, fragment: str = "", width=1280, height=800, **options):
        context = chromium.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on(
            "console",
            lambda m: (
                troubles.append(f"console: {m.text}") if m.type in {"error", "warning"} else None
            ),
        )
        page.on("pageerror", lambda error: troubles.append(f"exception: {error}"))
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith(("file:", "data:", "blob:"))
                else troubles.append(f"request: {request.url}")
            ),
        )
        page.goto(f"{path.as_uri()}{fragment}")
        page.wait_for_selector("body[data-ready]", timeout=30_000)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert troubles == []
