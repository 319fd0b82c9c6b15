"""`cli explore` in a real browser: it renders, follows a click, remembers itself in its address, and stays at home."""

from __future__ import annotations

import csv
import functools
import re
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from urllib.parse import parse_qs, urlsplit

import pytest
from browser_fixtures import PATIENCE, PHONE, WIDE, colours, contrast, overflow, screen, watched, watched_page
from explore_fixtures import AT, served, start, subject, with_known
from playwright.sync_api import expect

TABLE = "#table-{} tbody tr"
PICTURES = ("history", "windows-1", "gate-1")
# Whether everything is where it was when this was last asked.
STILL = """() => {
  const places = [...document.querySelectorAll("main *")].map((e) => e.getBoundingClientRect().top).join();
  const still = places === window.places;
  window.places = places;
  return still;
}"""
# Whether the origin is at a share of the history, and everything says so.
AT_PLACE = """([place, precision]) => {
  const drawn = document.querySelector("#history .js-plotly-plot")._fullLayout;
  const axis = drawn.xaxis.range.map((t) => +new Date(t + "Z"));
  const origins = ["history", "windows-1"].map((name) =>
    document.querySelector(`#${name} .js-plotly-plot`).layout.shapes.find((s) => s.type === "line").x0);
  const time = new Date(origins[0]).toISOString().slice(0, 16).replace("T", " ");
  return origins[0] === origins[1] && Math.abs((origins[0] - axis[0]) / (axis[1] - axis[0]) - place) < precision
    && document.querySelector("#typed").value === time
    && document.querySelector("#said-1").textContent.includes(`up to ${time}`);
}"""


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    of = subject(tmp_path_factory.getbasetemp())
    with served(of, start(of)) as url:
        yield url


@pytest.fixture(scope="module")
def screens(browser):
    """One of each kind, so that most pages find what they load where another has left it."""
    with ExitStack() as until_done:
        yield functools.cache(lambda size, dark: until_done.enter_context(screen(browser, size=size, dark=dark)))


@pytest.fixture
def opened(screens, address):
    """Opens a page on a state, and waits until it is still; all pages are watched until the test ends."""
    with ExitStack() as pages:

        def open_page(query="", *, size=WIDE, dark=False):
            page, _ = pages.enter_context(watched_page(screens(size, dark), origin=address))
            page.goto(address + query)
            expect(page.locator(TABLE.format(1)).first).to_be_visible()
            expect(page.locator("#windows-1 .xtick text").first).to_be_visible()
            page.wait_for_load_state("networkidle")
            page.wait_for_function(STILL, polling=200)
            return page

        yield open_page


def state_of(page):
    return {name: values[0] for name, values in parse_qs(urlsplit(page.url).query).items()}


def cells(page, column, side=1):
    return page.locator(f"{TABLE.format(side)} td:nth-child({column})").all_inner_texts()


def click_history(page, place):
    box = page.locator("#history .nsewdrag").first.bounding_box()
    page.mouse.click(box["x"] + place * box["width"], box["y"] + box["height"] / 2)


def test_the_page_shows_everything(opened):
    page = opened()
    for name in PICTURES:
        expect(page.locator(f"#{name} svg.main-svg").first).to_be_visible()
        assert page.evaluate("(n) => document.querySelector(`#${n} .js-plotly-plot`).data.length", name) > 0
    expect(page.locator("#said-1")).to_contain_text("north up to 2024-01-19 12:00")
    expect(page.locator("#said-1")).to_contain_text("the run small expects")
    assert state_of(page)["at"] == AT.replace(" ", "T") + ":00"
    assert page.input_value("#typed") == AT
    assert len(cells(page, 1)) > 5


def test_a_click_into_the_history_moves_the_origin(opened):
    page = opened()
    before, neighbours = page.url, page.locator("#table-1").inner_text()
    click_history(page, 0.8)
    expect(page).not_to_have_url(before)
    expect(page.locator("#typed")).not_to_have_value(AT)
    expect(page.locator("#said-1")).not_to_contain_text(AT)
    expect(page.locator("#table-1")).not_to_have_text(neighbours, use_inner_text=True)
    page.wait_for_function(AT_PLACE, arg=[0.8, 0.01])
    assert state_of(page)["at"].replace("T", " ").removesuffix(":00") == page.input_value("#typed")
    page.locator("#typed").fill(AT)
    page.keyboard.press("Enter")
    expect(page.locator("#said-1")).to_contain_text(f"north up to {AT}")
    click_history(page, 0.8)  # the same place once more
    page.wait_for_function(AT_PLACE, arg=[0.8, 0.01])


def test_the_address_restores_the_state(opened):
    page = opened("?series=south&at=2024-01-18T06:00:00&k=2&gap=5&scope=own,pooled&index2=v@1&view2=24")
    assert page.input_value("#typed") == "2024-01-18 06:00"
    assert page.input_value("#k") == "2"
    assert page.input_value("#gap") == "5"
    expect(page.locator("#said-1")).to_contain_text("south up to 2024-01-18 06:00")
    expect(page.locator("#said-1")).to_contain_text("of m@1")
    expect(page.locator("#said-2")).to_contain_text("of v@1")
    expect(page.locator(TABLE.format(2)).first).to_be_visible()
    assert {name.split("-")[0] for name in cells(page, 2)} == {"own", "pooled"}
    assert {name.split("-")[1] for name in cells(page, 2, side=2)} == {"24"}
    again = opened("?" + urlsplit(page.url).query)
    assert cells(again, 4) == cells(page, 4)
    assert again.url == page.url


def test_buttons_and_keys_move_the_origin_and_the_way_back(opened):
    page = opened()
    first = page.url
    page.get_by_role("button", name="origin 1 step later").click()
    expect(page.locator("#typed")).to_have_value("2024-01-19 13:00")
    page.go_back()
    expect(page.locator("#typed")).to_have_value(AT)
    expect(page).to_have_url(first)
    page.get_by_role("button", name="origin 1 day earlier").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#typed")).to_have_value("2024-01-18 12:00")
    page.locator("#slider").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#typed")).to_have_value("2024-01-18 13:00")
    page.locator("#typed").fill("2024-01-17 05:00")
    page.keyboard.press("Enter")
    expect(page.locator("#said-1")).to_contain_text("north up to 2024-01-17 05:00")


def test_dragging_the_slider_moves_the_origin(opened):
    page = opened()
    box = page.locator("#slider").bounding_box()
    page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + box["height"] / 2, steps=5)
    page.mouse.up()
    page.wait_for_function(AT_PLACE, arg=[0.7, 0.02])
    assert abs(int(page.input_value("#slider")) / 509 - 0.7) < 0.02


def test_every_control_is_reached_by_tab(opened):
    page = opened()
    wanted = {"series", "typed", "back_far", "back", "on", "on_far", "k", "gap", "slider", "ref-1", "png-1", "table-1"}
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.closest('[id]')?.id"))
    assert wanted <= reached


def test_the_series_is_chosen(opened):
    page = opened()
    page.locator("#series").click()
    page.get_by_role("option", name="south").click()
    expect(page.locator("#said-1")).to_contain_text("south up to 2024-01-19 12:00")
    assert state_of(page)["series"] == "south"


def test_two_sides_are_compared(opened):
    page = opened()
    expect(page.locator("#side-2")).to_be_hidden()
    page.get_by_text("Compare", exact=True).click()
    expect(page.locator("#side-2")).to_be_visible()
    expect(page.locator("#said-2")).to_contain_text("of m@2")
    expect(page.locator("#windows-2 svg.main-svg").first).to_be_visible()
    left, right = (page.locator(f"#side-{n}").bounding_box() for n in (1, 2))
    assert abs(left["y"] - right["y"]) < 1
    assert right["x"] >= left["x"] + left["width"]
    limits = "[1, 2].map((n) => document.querySelector(`#windows-${n} .js-plotly-plot`).layout.yaxis.range.join())"
    page.wait_for_function(f"() => {{ const [one, other] = {limits}; return one === other; }}")
    page.locator("#scopes-2").get_by_text("pooled").click()
    expect(page).to_have_url(re.compile("scope2=own,joint"))
    expect(page.locator("#table-2")).not_to_contain_text("pooled")
    assert {name.split("-")[0] for name in cells(page, 2, side=2)} == {"own", "joint"}
    page.get_by_text("Compare", exact=True).click()
    expect(page.locator("#side-2")).to_be_hidden()
    expect(page).not_to_have_url(re.compile("index2"))


def test_what_is_known_is_changed(browser, tmp_path_factory):
    """By a slider and by a choice; neighbours and forecast follow, and the address restores both controls."""
    of = with_known(tmp_path_factory.getbasetemp())
    with served(of, start(of)) as url, watched(browser, origin=url, size=PHONE) as (page, _):
        page.goto(url)
        expect(page.locator(TABLE.format(1)).first).to_be_visible()
        neighbours = page.locator("#table-1").inner_text()
        page.locator("#known_0 [role=slider]").focus()
        page.keyboard.press("ArrowLeft")
        expect(page.locator("#known_0-name")).to_contain_text("temperature, changed by -")
        page.locator("#known_1").click()
        page.get_by_role("option", name="true").click()
        expect(page.locator("#said-1")).to_contain_text("holiday=true")
        expect(page.locator("#table-1")).not_to_have_text(neighbours, use_inner_text=True)
        assert overflow(page) <= 0
        page.reload()
        expect(page.locator("#known_1")).to_contain_text("true")
        expect(page.locator("#known_0-name")).to_contain_text("temperature, changed by -")


def test_what_cannot_be_is_told_in_a_line(opened):
    page = opened()
    before, neighbours = page.url, cells(page, 4)
    for control, typed, said, left in (
        ("typed", "next tuesday", "is not a time", "next tuesday"),
        ("typed", "2031-05-05 00:00", "it goes from", "2031-05-05 00:00"),
        ("typed", "<b>2024</b>", "is not a time", "<b>2024</b>"),
        ("k", "99", "neighbours is 99, but must be from 1 to 50", "3"),
        ("k", "0", "neighbours is 0, but must be from 1 to 50", "3"),
        ("k", "1.5", "neighbours must be a whole number", "3"),
        ("gap", "-1", "steps apart is -1, but must be from 0 to 1,000,000", "12"),
        ("gap", "999999999", "steps apart is 999,999,999, but must be from 0 to 1,000,000", "12"),
    ):
        page.locator(f"#{control}").fill(typed)
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text(said)
        expect(page.locator(f"#{control}")).to_have_value(left)
        assert (page.url, cells(page, 4)) == (before, neighbours)
    page.get_by_role("button", name="origin 1 step later").click()
    expect(page.locator("#typed")).to_have_value("2024-01-19 13:00")
    expect(page.locator("#message")).to_be_hidden()


def test_a_series_without_enough_history_is_told_in_a_line(browser, tmp_path_factory):
    of = subject(tmp_path_factory.getbasetemp(), False, ("m@1",))
    north = of.table["north"]
    short = replace(north, series_id="short", times=north.times[:20], values=north.values[:20])
    of = replace(of, table=replace(of.table, series=(*of.table.series, short)))
    with served(of, start(of)) as url, watched(browser, origin=url) as (page, _):
        page.goto(url)
        expect(page.locator("#said-1")).to_contain_text("north up to")
        page.locator("#series").click()
        page.get_by_role("option", name="short").click()
        expect(page.get_by_role("alert")).to_contain_text("series 'short' has 20 steps")
        expect(page.locator("#series")).to_contain_text("north")


def test_an_address_that_cannot_be_is_told_in_a_line(opened):
    page = opened("?series=nroth")
    expect(page.get_by_role("alert")).to_contain_text("no series 'nroth'")
    expect(page.get_by_role("alert")).to_contain_text("'north'")
    expect(page.locator("#said-1")).to_contain_text("north up to")


def test_a_time_before_any_neighbour_is_known(opened):
    page = opened()
    page.locator("#typed").fill("2024-01-02 23:00")
    page.keyboard.press("Enter")
    expect(page.locator("#warned-1")).to_contain_text("no admissible neighbour")
    expect(page.locator(TABLE.format(1))).to_have_count(0)
    expect(page.locator("#gate-1")).to_be_hidden()


def test_warnings_are_seen(opened):
    page = opened("?at=2024-01-10T12:00:00")
    expect(page.locator("#warned-1 .warning")).to_contain_text(["in sample"])


def test_the_picture_and_the_table_are_exported(opened, tmp_path):
    page = opened("?series=south")
    for kind, begins in (("PNG", b"\x89PNG"), ("SVG", b"<?xml"), ("CSV", b"scope,view,rank")):
        with page.expect_download() as download:
            page.get_by_role("link", name=f"Export as {kind}, side A").click()
        path = tmp_path / download.value.suggested_filename
        download.value.save_as(path)
        assert path.name == f"south-2024-01-19-12-00.{kind.lower()}"
        assert path.read_bytes().startswith(begins)
    read = list(csv.DictReader(path.read_text().splitlines()))
    assert [f"{float(row['distance']):.3f}" for row in read] == cells(page, 6)


def test_the_dark_is_dark(opened):
    light, dark = opened(), opened(dark=True)
    for page, is_dark in ((light, False), (dark, True)):
        ink, paper = colours(page, "#said-1")
        assert contrast(ink, paper) >= 4.5
        assert (sum(paper) < 200) is is_dark
        soft, behind = colours(page, ".legend li")
        assert contrast(soft, behind) >= 4.5
        for selector in ("#typed", "#on", "#table-1 th", "#series", "#compare label", "#png-1"):
            assert contrast(*colours(page, selector)) >= 4.5, selector
    fonts = [
        page.evaluate("document.querySelector('#windows-1 .js-plotly-plot').layout.font.color")
        for page in (light, dark)
    ]
    assert fonts[0] != fonts[1]


def test_the_page_follows_when_the_theme_changes(opened):
    page = opened()
    font = "document.querySelector('#windows-1 .js-plotly-plot').layout.font.color"
    before = page.evaluate(font)
    page.emulate_media(color_scheme="dark")
    expect(page.locator("#windows-1 .xtick text").first).to_have_css("fill", "rgb(238, 238, 238)")
    assert page.evaluate(font) != before


@pytest.mark.parametrize("query", ["", "?index2=m@2"])
def test_a_phone_shows_it_without_scrolling_sideways(opened, query):
    page = opened(query, size=PHONE)
    assert overflow(page) <= 0
    for name in PICTURES:
        box = page.locator(f"#{name}").bounding_box()
        assert box["width"] > 300
        assert box["x"] + box["width"] <= PHONE[0]
        drawn = page.locator(f"#{name} svg.main-svg").first.bounding_box()
        assert drawn["width"] <= box["width"] + 1


def test_a_long_address_of_a_memory_fits_on_a_phone(browser, tmp_path_factory):
    ref = "grpc+tls://memory-of-the-grid.forecasting.internal.example.org:8815/grid-load-2024@12"
    of = subject(tmp_path_factory.getbasetemp())
    of = replace(of, versions={ref: replace(of.versions["m@1"], ref=ref)})
    with served(of, start(of)) as url, watched(browser, origin=url, size=PHONE) as (page, _):
        page.goto(url)
        expect(page.locator(TABLE.format(1)).first).to_be_visible()
        assert ref in page.locator("main").inner_text()
        assert overflow(page) <= 0


def test_nothing_overlaps(opened):
    for size in (WIDE, PHONE):
        page = opened("?index2=m@2", size=size)
        blocks = page.evaluate(
            """[...document.querySelectorAll('#side-1 > *, main > *:not(.unseen)')].filter((e) => e.offsetHeight)
               .map((e) => { const b = e.getBoundingClientRect(); return [e.parentElement.id, b.top, b.bottom]; })"""
        )
        for (parent, _, bottom), (next_parent, top, _) in pairwise(blocks):
            assert parent != next_parent or top >= bottom - 1


def test_pictures_have_a_text_that_says_the_same(opened):
    page = opened("?index2=m@2")
    named = page.locator("[role=img]").all()
    assert len(named) == 5
    for each in named:
        said = page.locator(f"#{each.get_attribute('aria-labelledby')}").inner_text()
        assert len(said) > 40
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.locator("#said-1").get_attribute("aria-live") == "polite"
    assert page.locator("h1").count() == 1


def test_without_a_run_there_is_no_gate(browser, tmp_path_factory):
    of = subject(tmp_path_factory.getbasetemp(), False, ("m@1",))
    with served(of, start(of)) as url, watched(browser, origin=url) as (page, asked):
        page.goto(url)
        expect(page.locator(TABLE.format(1)).first).to_be_visible()
        expect(page.locator("#gate-1")).to_be_hidden()
        expect(page.locator("#said-1")).not_to_contain_text("run")
        assert len(asked) > 5


def test_a_server_that_has_ended_is_told_in_a_line(browser, address):
    page = browser.new_page()  # not watched: the browser itself complains of a server that is gone
    try:
        page.goto(address)
        expect(page.locator(TABLE.format(1)).first).to_be_visible(timeout=PATIENCE)
        expect(page.locator("#message")).to_be_hidden()
        page.wait_for_load_state("networkidle")
        page.route(re.compile("_dash-update-component"), lambda route: route.abort())
        page.get_by_role("button", name="origin 1 step later").click()
        expect(page.locator("#message")).to_have_text("cli explore is no longer running: start it again")
    finally:
        page.close()
