"""The HTML report in a real browser: sorting, filters, sliders, zoom, phones, themes; no console error or request."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, Page
from test_reports import METHODS, build, cell_name, make_store

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium on the PATH")

ROWS = "[...document.querySelectorAll('#table-psnr table')[0].tBodies[0].rows].map(row => row.cells[0].textContent)"
VISIBLE = "(selector => [...document.querySelectorAll(selector)].filter(e => e.offsetParent).length)"
ARROW_LEFT, ARROW_UP, ARROW_RIGHT, TAB, ENTER = 37, 38, 39, 9, 13


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    failed = (cell_name("edict", "noise", 5), cell_name("edict", "noise", 4))
    store = make_store(tmp_path_factory.mktemp("page"), missing=(cell_name("ddim", "blur", 2),), failed=failed)
    assert build(store, "quiet=true") == 0
    return store.root / "reports" / "corruptions" / "index.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with Page(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture
def page(browser: Page, report: Path) -> Iterator[Page]:
    """Open the report on a wide screen; after the test, check that it had no problems and made no requests."""
    browser.problems.clear()
    browser.requests.clear()
    browser.resize(1280, 900)
    browser.prefer("light")
    browser.open(report)
    yield browser
    assert browser.problems == []
    assert {address.split(":")[0] for address in browser.requests} <= {"file", "data"}
    assert {address for address in browser.requests if address.startswith("file:")} == {report.resolve().as_uri()}


def test_size(report: Path) -> None:
    assert report.stat().st_size < 10_000_000


def test_sorting_by_click_and_by_key(page: Page) -> None:
    order = [page.ask(ROWS)]
    assert order[0] == ["input y (no restoration)", *METHODS.values()]
    head = "#table-psnr table th:nth-child(6)"
    for state in ("descending", "ascending", None):
        page.click(f"{head} button")
        assert page.ask(f"document.querySelector('{head}').getAttribute('aria-sort')") == state
        order.append(page.ask(ROWS))
    assert order[1] == ["input y (no restoration)", "Injective ODE", "EDICT", "DDIM inversion"]
    assert order[2] == ["input y (no restoration)", "DDIM inversion", "EDICT", "Injective ODE"]
    assert order[3] == order[0]
    page.ask(f"document.querySelector('{head} button').focus()")
    page.press("Enter", ENTER)
    assert page.ask(ROWS) == order[1]


def test_a_missing_entry_sorts_last_and_failures_are_shown(page: Page) -> None:
    rows = ROWS.replace("[0].tBodies", "[2].tBodies")
    for _ in range(2):
        page.ask("document.querySelectorAll('#table-psnr table')[2].rows[0].cells[2].firstElementChild.click()")
        assert page.ask(rows)[-1] == "DDIM inversion"
    text = page.ask("document.body.innerText")
    for words in ("2 failed", "1 missing", "failed (oom)", "weights not on disk", "1 metric unavailable"):
        assert words in text
    page.click("#failures summary")
    assert "MemoryError: <no room>" in page.ask("document.querySelector('#failures pre').innerText")


def test_filters(page: Page) -> None:
    def seen() -> dict[str, Any]:
        return {
            "rows": page.ask(f"{VISIBLE}('#table-psnr tbody tr')"),
            "groups": page.ask(f"{VISIBLE}('#table-psnr table')"),
            "cells": page.ask(f"{VISIBLE}('#table-psnr tbody td')"),
            "strips": page.ask(f"{VISIBLE}('.gallery section')"),
            "costs": page.ask(f"{VISIBLE}('#table-costs tbody tr')"),
        }

    assert seen() == {"rows": 16, "groups": 4, "cells": 80, "strips": 5, "costs": 3}
    page.click("#filter summary")
    page.click("#filter input[value='EDICT']")
    assert seen() == {"rows": 12, "groups": 4, "cells": 60, "strips": 4, "costs": 2}
    page.click("#filter input[value='noise']")
    assert seen() == {"rows": 9, "groups": 3, "cells": 45, "strips": 4, "costs": 2}
    page.click("#filter input[value='3']")
    assert seen() == {"rows": 9, "groups": 3, "cells": 36, "strips": 4, "costs": 2}
    assert page.ask("document.querySelector('#pick-column :checked').value") == "1"
    page.click("#filter [data-kind='method'] [data-all='']")
    assert seen()["rows"] == 0
    for kind in ("method", "block", "column"):
        page.click(f"#filter [data-kind='{kind}'] [data-all='1']")
    assert seen() == {"rows": 16, "groups": 4, "cells": 80, "strips": 5, "costs": 3}


def test_before_and_after_by_key(page: Page) -> None:
    cut = "document.querySelector('.stage').style.getPropertyValue('--cut')"
    page.ask("document.querySelector('#cut').focus()")
    for _ in range(3):
        page.press("ArrowRight", ARROW_RIGHT)
    assert page.ask(cut) == "53%"
    page.press("ArrowLeft", ARROW_LEFT)
    assert page.ask(cut) == "52%"
    assert page.ask("document.querySelector('#cut').getAttribute('aria-valuetext')") == "52 % truth, 48 % Injective ODE"
    clip = "getComputedStyle(document.querySelector('.stage .before')).clipPath"
    assert "48%" in page.ask(clip)


def test_a_click_chooses_what_is_compared(page: Page) -> None:
    page.click(".gallery section:nth-child(4) .tile:nth-of-type(3)")
    assert page.ask("document.querySelector('#pick-right').value") == "EDICT"
    assert page.ask("document.querySelector('#pick-image').value") == "1"
    assert page.ask("document.querySelectorAll('.tile.chosen').length") == 1
    shown = page.ask(
        "document.querySelector('.stage .after img').src === document.querySelector('.tile.chosen img').src"
    )
    assert shown is True


def test_zoom_is_linked_and_has_keys(page: Page) -> None:
    page.ask("document.querySelector('.gallery').focus()")
    page.press("ArrowRight", ARROW_RIGHT)  # not zoomed yet, so nothing can move
    for _ in range(3):
        page.press("+", 187)
    page.press("ArrowRight", ARROW_RIGHT)
    page.press("ArrowUp", ARROW_UP)
    styles = page.ask(
        "[...new Set([...document.querySelectorAll('.tile img, .stage img')].map(e => (s => "
        "`${s.transform} ${parseFloat(s.transformOrigin) / e.offsetWidth} "
        "${parseFloat(s.transformOrigin.split(' ')[1]) / e.offsetHeight}`)(getComputedStyle(e))))]"
    )
    assert styles == ["matrix(4, 0, 0, 4, 0, 0) 0.55 0.45"]
    page.click("#whole")
    assert page.ask("getComputedStyle(document.querySelector('.tile img')).transform") == "matrix(1, 0, 0, 1, 0, 0)"


def test_severity_and_corruption_by_key(page: Page) -> None:
    first = "document.querySelector('.gallery section:nth-child(2) img').src"
    before = page.ask(first)
    page.ask("document.querySelector('#pick-column :checked').focus()")
    page.press("ArrowRight", ARROW_RIGHT)
    assert page.ask("document.querySelector('#pick-column :checked').value") == "4"
    assert page.ask("document.activeElement.value") == "4"
    assert page.ask(first) != before
    page.ask("document.querySelector('#pick-block :checked').focus()")
    page.press("ArrowRight", ARROW_RIGHT)
    assert page.ask("document.querySelector('#pick-block label:has(:checked)').innerText") == "block mask"


def test_focus_follows_the_page(page: Page) -> None:
    """Tab goes from the contents to the theme, the filter and the tables, and every focused element is visible."""
    stops = []
    for _ in range(16):
        page.press("Tab", TAB)
        stops.append(page.ask("document.activeElement.textContent.trim().slice(0, 24)"))
        assert page.ask("document.activeElement.matches(':focus-visible')")
        assert page.ask("getComputedStyle(document.activeElement).outlineStyle") != "none"
    names = ["PSNR", "Figures", "Images", "Costs", "Provenance", "Theme: auto", "Filter tables and images", "severity"]
    places = [stops.index(name) for name in names]
    assert places == sorted(places)


def test_the_theme(page: Page) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.ask(background)
    page.prefer("dark")
    dark = page.ask(background)
    assert light != dark
    page.click("#theme")
    assert page.ask(background) == light  # the chosen theme, whatever the system prefers
    page.click("#theme")
    page.prefer("light")
    assert page.ask(background) == dark
    page.click("#theme")
    assert page.ask("document.querySelector('#theme').textContent") == "Theme: auto"
    assert page.ask(background) == light


@pytest.mark.parametrize("width", [360, 768])
def test_nothing_scrolls_sideways(page: Page, report: Path, width: int) -> None:
    page.resize(width, 740, mobile=True)
    page.open(report)
    page.ask("document.querySelectorAll('details').forEach(e => { e.open = true; })")
    assert page.ask("document.documentElement.scrollWidth") == width
    beyond = (
        f"[...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > {width + 1}"
        " && !e.closest('.scroll, nav ul, pre, .tile, .stage')).map(e => e.outerHTML.slice(0, 80))"
    )
    assert page.ask(beyond) == []


def test_print_unfolds_everything(page: Page) -> None:
    page.ask("window.dispatchEvent(new Event('beforeprint'))")
    assert page.ask("document.querySelectorAll('details:not([open])').length") == 0
    page.call("Emulation.setEmulatedMedia", media="print")
    assert page.ask("getComputedStyle(document.querySelector('nav')).display") == "none"
    page.call("Emulation.setEmulatedMedia", media="")


def test_mixed_measurements_have_a_page(browser: Page, tmp_path: Path) -> None:
    name = cell_name("edict", "blur", 3)
    store = make_store(tmp_path, small=True, change=lambda cell: {"sha": "old" if cell == name else ""})
    assert build(store, "quiet=true") == 1
    browser.problems.clear()
    browser.resize(360, 740, mobile=True)
    browser.open(tmp_path / "reports" / "corruptions" / "index.html")
    assert name in browser.ask("document.querySelector('#error').innerText")
    assert browser.ask("document.documentElement.scrollWidth") == 360
    assert browser.problems == []
