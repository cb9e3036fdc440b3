"""All kinds of pages in a real browser: accessible, usable by keyboard and on a phone, and quiet."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser

from lnlbench.site.model import Site

PHONE, DESK = 390, 1280

_COLOURS = ["color-contrast", "link-in-text-block"]
_LAYOUT = ["scrollable-region-focusable", "target-size"]
LOOKS = (
    ("light", DESK, []),
    ("dark", DESK, _COLOURS),
    ("light", PHONE, _LAYOUT),
    ("dark", PHONE, _COLOURS + _LAYOUT),
)
"""Colour schemes and widths, and the rules whose findings can differ from those before; none: all rules."""


@pytest.fixture(scope="module")
def kinds(built: Path, site: Site) -> dict[str, str]:
    """One page of each kind, as addresses."""
    rows = {(row.method, row.suite, row.task): site.row_url(row) for row in site.rows()}
    paths = {
        "overview": "index.html",
        "suite": site.suite_url("digits-sym"),
        "reported suite": site.suite_url("cifar10-sym"),
        "method": site.method_url("css"),
        "run": rows["css", "digits-sym", "0.60"],
        "dataset": site.dataset_url("cifar10"),
    }
    return {kind: (built / path).as_uri() for kind, path in paths.items()}


KINDS = ["overview", "suite", "reported suite", "method", "run", "dataset"]


@pytest.mark.parametrize("kind", KINDS)
def test_has_no_serious_accessibility_finding(window: Any, kinds: dict[str, str], kind: str) -> None:
    page = window.page
    page.goto(kinds[kind])
    # What is folded away is looked at as well.
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    for scheme, width, rules in LOOKS:
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 900})
        # Fetching style sheets is forbidden to the page, and so to what looks at it.
        options = {"resultTypes": ["violations"], "preload": False, **({"runOnly": rules} if rules else {})}
        found = Axe().run(page, options=options).response["violations"]
        serious = [
            (each["id"], [node["target"] for node in each["nodes"]][:3])
            for each in found
            if each["impact"] in ("serious", "critical")
        ]
        assert serious == [], (scheme, width)


@pytest.mark.parametrize("kind", KINDS)
def test_only_tables_scroll_sideways_on_a_phone(window: Any, kinds: dict[str, str], kind: str) -> None:
    page = window.page
    page.set_viewport_size({"width": PHONE, "height": 800})
    page.goto(kinds[kind])
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE
    outside = page.locator("table").evaluate_all(
        "tables => tables.filter((each) => !each.closest('.scroll')).map((each) => each.outerHTML.slice(0, 80))"
    )
    assert outside == []


def test_every_page_opens_quietly_and_fetches_files_only(window: Any, built: Path) -> None:
    pages = sorted(built.rglob("*.html"))
    for path in pages:
        window.page.goto(path.as_uri(), wait_until="domcontentloaded")
        assert window.page.title().strip()
        assert window.complaints == [], path
    assert len(pages) > 50
    assert all(url.startswith(("file://", "data:")) for url in window.requests)


@pytest.mark.parametrize("kind", KINDS)
def test_headings_go_down_step_by_step(window: Any, kinds: dict[str, str], kind: str) -> None:
    window.page.goto(kinds[kind])
    levels = window.page.locator("h1, h2, h3, h4, h5, h6").evaluate_all("all => all.map((each) => +each.tagName[1])")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_the_first_tab_skips_to_the_content(window: Any, kinds: dict[str, str]) -> None:
    page = window.page
    page.goto(kinds["run"])
    page.keyboard.press("Tab")
    link = page.get_by_role("link", name="Skip to content")
    assert link.evaluate("link => link === document.activeElement && link.getBoundingClientRect().left >= 0")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"


def test_everything_that_takes_the_focus_shows_it(window: Any, kinds: dict[str, str]) -> None:
    page = window.page
    page.goto(kinds["run"])
    seen = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        tag, outline = page.evaluate(
            "(() => { const e = document.activeElement; return [e.tagName, getComputedStyle(e).outlineStyle]; })()"
        )
        if tag == "BODY":
            break
        assert outline != "none", tag
        seen.add(tag)
    assert {"A", "BUTTON", "DIV", "SUMMARY"} <= seen


def test_details_open_by_keyboard(window: Any, kinds: dict[str, str]) -> None:
    page = window.page
    page.goto(kinds["run"])
    summary = page.get_by_text("Numbers by epoch, seed 1", exact=True)
    summary.focus()
    page.keyboard.press("Enter")
    assert page.get_by_role("region", name="Numbers by epoch: seed 1").is_visible()


def test_plots_follow_the_colours_of_the_page(window: Any, kinds: dict[str, str]) -> None:
    page = window.page
    page.goto(kinds["run"])
    line, text = page.locator(".plot .line").first, page.locator(".plot .key").first
    seen = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        seen.append(
            [part.evaluate(f"e => getComputedStyle(e).{what}") for part, what in ((line, "stroke"), (text, "fill"))]
        )
    light, dark = seen
    assert all(one != other for one, other in zip(light, dark, strict=True))


def test_every_plot_has_a_text_alternative(window: Any, kinds: dict[str, str]) -> None:
    for kind in ("suite", "run"):
        window.page.goto(kinds[kind])
        plots = window.page.locator("svg[role=img]")
        assert plots.count() > 1
        for plot in plots.all():
            named = plot.get_attribute("aria-labelledby") or ""
            texts = [window.page.locator(f"[id='{each}']").text_content() for each in named.split()]
            assert texts
            assert all(texts)


def test_pages_read_without_scripts(browser: Browser, kinds: dict[str, str]) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    for kind in ("run", "method"):
        page.goto(kinds[kind])
        assert page.locator("table tbody tr").count() > 5
        assert page.locator("h2").count() > 3
    context.close()


def test_prints_without_navigation_and_with_whole_tables(window: Any, kinds: dict[str, str]) -> None:
    page = window.page
    page.goto(kinds["method"])
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    assert page.locator(".scroll").first.evaluate("each => getComputedStyle(each).overflowX") == "visible"
