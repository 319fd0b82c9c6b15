"""The pages of `cli index neighbours --html` in a real browser: alone, on a phone, in the dark, for those who hear."""

from __future__ import annotations

import pytest
from browser_fixtures import PHONE, WIDE, colours, contrast, overflow, watched
from cli_fixtures import make
from explore_fixtures import AT

from cli.main import run


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """A page about one window, as the command writes it."""
    made = make(tmp_path_factory.getbasetemp())
    file = tmp_path_factory.mktemp("pages") / "neighbours.html"
    command = ["index", "neighbours", "m@1", str(made.file), "--series", "north", "--at", AT, "--html", str(file)]
    assert run([*command, "--indexes-dir", str(made.indexes)]) == 0
    return file


@pytest.mark.parametrize("size", [WIDE, PHONE])
@pytest.mark.parametrize("dark", [False, True])
def test_a_page_asks_for_nothing_but_itself(browser, page_file, size, dark):
    with watched(browser, origin=page_file.as_uri(), size=size, dark=dark) as (page, asked):
        page.goto(page_file.as_uri())
        assert "north" in page.locator("h1").inner_text()
        assert asked == [page_file.as_uri()]


@pytest.mark.parametrize(("size", "shown", "hidden"), [(WIDE, ".wide", ".narrow"), (PHONE, ".narrow", ".wide")])
def test_each_screen_has_its_picture(browser, page_file, size, shown, hidden):
    with watched(browser, origin=page_file.as_uri(), size=size) as (page, _):
        page.goto(page_file.as_uri())
        assert overflow(page) <= 0
        assert page.locator(f"{shown} > svg").first.is_visible()
        assert not page.locator(f"{hidden} > svg").first.is_visible()
        box = page.locator(f"{shown} > svg").first.bounding_box()
        assert 300 < box["width"] <= size[0]


@pytest.mark.parametrize("dark", [False, True])
def test_text_is_read_in_the_light_and_in_the_dark(browser, page_file, dark):
    with watched(browser, origin=page_file.as_uri(), dark=dark) as (page, _):
        page.goto(page_file.as_uri())
        for selector in ("h1", "main p", "figcaption", ".caption", "th", "td", "footer"):
            ink, paper = colours(page, selector)
            assert contrast(ink, paper) >= 4.5, selector
            assert (sum(paper) < 200) is dark, selector


def test_colours_of_a_picture_follow_the_page(browser, page_file):
    found = []
    for dark in (False, True):
        with watched(browser, origin=page_file.as_uri(), dark=dark) as (page, _):
            page.goto(page_file.as_uri())
            used = (
                """() => new Set([...document.querySelectorAll('.wide path')].map((e) => getComputedStyle(e).stroke))"""
            )
            found.append(page.evaluate(f"() => [...({used})()]"))
    light, dark = (set(each) - {"none"} for each in found)
    assert "rgb(17, 17, 17)" in light - dark
    assert "rgb(238, 238, 238)" in dark - light


def test_every_picture_can_be_heard(browser, page_file):
    with watched(browser, origin=page_file.as_uri()) as (page, _):
        page.goto(page_file.as_uri())
        pictures = page.locator("svg").all()
        assert len(pictures) == 2
        for picture in pictures:
            assert picture.get_attribute("role") == "img"
            assert len(picture.get_attribute("aria-label")) > 40
        assert page.locator("html").get_attribute("lang") == "en"
