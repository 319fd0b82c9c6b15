"""A real browser for the tests of pages: finding one, and watching what a page says and asks for."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
FLAGS += ("--disable-sync", "--no-first-run")
PATIENCE = 60_000  # milliseconds until what a page was told to do counts as not done: other tests need the cores too
WIDE, PHONE = (1280, 900), (390, 844)


def find_browser() -> str | None:
    """The first of the known names that is on the PATH."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def launched(path: str) -> Iterator[Browser]:
    """A headless browser without anything of its own to say to the network."""
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def screen(browser: Browser, *, size: tuple[int, int] = WIDE, dark: bool = False) -> Iterator[BrowserContext]:
    """A screen of a size, whose pages share what they have loaded."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme="dark" if dark else "light", accept_downloads=True
    )
    context.set_default_timeout(PATIENCE)
    try:
        yield context
    finally:
        context.close()


@contextmanager
def watched_page(context: BrowserContext, *, origin: str) -> Iterator[tuple[Page, list[str]]]:
    """An empty page and the list of what it will have asked for, without `data:` and `blob:`.

    On the way out: it said nothing on its console, and asked for nothing but what begins with `origin`.
    """
    page = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"error: {error}"))
    page.on(
        "request", lambda request: asked.append(request.url) if not request.url.startswith(("data:", "blob:")) else None
    )
    try:
        yield page, asked
    finally:
        page.close()
    complaints = [line for line in said if line.startswith(("error", "warning"))]
    complaints += [f"asked for {url}" for url in asked if not url.startswith(origin)]
    assert not complaints, complaints


@contextmanager
def watched(
    browser: Browser, *, origin: str, size: tuple[int, int] = WIDE, dark: bool = False
) -> Iterator[tuple[Page, list[str]]]:
    """`watched_page` on a screen of its own."""
    with screen(browser, size=size, dark=dark) as context, watched_page(context, origin=origin) as found:
        yield found


def overflow(page: Page) -> int:
    """By how many pixels a page is wider than the screen."""
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def colours(page: Page, selector: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Text colour of an element, and the background that is seen behind it."""
    found = page.evaluate(
        """(selector) => {
          const element = document.querySelector(selector);
          let behind = element;
          while (behind && getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)")
            behind = behind.parentElement;
          const rgb = (text) => text.match(/[0-9.]+/g).slice(0, 3).map(Number);
          return [rgb(getComputedStyle(element).color), rgb(getComputedStyle(behind || document.body).backgroundColor)];
        }""",
        selector,
    )
    return tuple(found[0]), tuple(found[1])


def contrast(one: tuple[float, float, float], other: tuple[float, float, float]) -> float:
    """The contrast ratio of two colours (WCAG 2.2)."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: tuple[float, float, float]) -> float:
    """The relative luminance of a colour (WCAG 2.2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
