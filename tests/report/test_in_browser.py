"""The page in a browser: no complaint, no request, and controls that work."""

import dataclasses

import pytest

from resobj_d2.report.judge import judge
from resobj_d2.report.page import render
from resobj_d2.report.subject import find_subjects


def text_of(browser, key):
    return browser.evaluate(f"document.getElementById('{key}').textContent")


def set_threshold(browser, value):
    browser.evaluate(
        "(() => { const slider = document.getElementById('threshold');"
        f"slider.value = {value}; slider.dispatchEvent(new Event('input')); }})()"
    )


SHOWN = "document.querySelectorAll('#pictures svg g:not(.off)').length"
TALLIES = "[...document.querySelectorAll('#pictures .tally')].map(x => x.textContent)"


@pytest.fixture(autouse=True)
def nothing_noted(browser):
    browser.open(
        "about:blank"
    )  # a live page that was open goes on asking its server, which is gone
    browser.errors.clear()
    browser.requests.clear()


def test_the_slider_changes_the_counts_and_boxes(browser, page):
    browser.open(page)
    assert text_of(browser, "threshold-value") == "0.60"
    counts = text_of(browser, "counts")
    assert "2 right, 1 wrong, 1 missed: precision 66.7 %, recall 66.7 %" in counts
    before = browser.evaluate(SHOWN)
    set_threshold(browser, 0.85)
    counts = text_of(browser, "counts")
    assert counts.startswith("1 detection shown.")
    assert "1 right, 0 wrong, 2 missed: precision 100.0 %, recall 33.3 %" in counts
    assert browser.evaluate(SHOWN) != before
    assert sorted(browser.evaluate(TALLIES)) == [
        "0 right, 0 wrong, 0 missed", "0 right, 0 wrong, 1 missed", "1 right, 0 wrong, 1 missed",
    ]  # fmt: skip
    set_threshold(browser, 0)
    assert "2 right, 2 wrong, 1 missed" in text_of(browser, "counts")
    for name in ("right", "wrong", "missed", "objects"):
        browser.evaluate(f"(x => x.checked && x.click())(document.getElementById('show-{name}'))")
    assert browser.evaluate(SHOWN) == 0
    assert browser.errors == [] and browser.requests == [page.absolute().as_uri()]


def test_the_viewer_works_with_keys(browser, page):
    browser.open(page)
    browser.evaluate("document.querySelector('#pictures .card button').focus()")
    browser.evaluate("document.activeElement.click()")
    assert browser.evaluate("document.getElementById('viewer').open")
    first = text_of(browser, "viewer-name")
    width = "document.getElementById('large').getBoundingClientRect().width"
    whole = browser.evaluate(width)
    browser.press("+")
    assert browser.evaluate(width) == pytest.approx(1.4 * whole, rel=0.01)
    browser.press("ArrowRight")
    assert text_of(browser, "viewer-name") != first
    assert browser.evaluate(width) < 1.4 * whole
    browser.evaluate("document.querySelector('#viewer [data-do=close]').click()")
    assert not browser.evaluate("document.getElementById('viewer').open")
    assert browser.errors == []


def test_it_fits_phones_paper_and_dark_rooms(browser, page):
    browser.open(page, width=390, height=800)
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390
    ground = "getComputedStyle(document.body).backgroundColor"
    light = browser.evaluate(ground)
    browser.media(scheme="dark")
    dark = browser.evaluate(ground)
    assert dark != light
    for expected in (light, dark, dark):  # light, dark, and again as the system has it
        browser.evaluate("document.getElementById('theme').click()")
        assert browser.evaluate(ground) == expected
    browser.evaluate("document.documentElement.dataset.theme = 'dark'")
    browser.media(scheme="dark", kind="print")
    assert browser.evaluate(ground) == "rgb(255, 255, 255)"  # paper is white
    hidden = "getComputedStyle(document.querySelector('nav')).display"
    assert browser.evaluate(hidden) == "none"
    browser.media()
    assert browser.errors == []


def test_on_a_phone_only_tables_scroll_sideways(browser, make_dump, tmp_path):
    """Links wrap, and pictures of the steps stand below each other or become smaller."""
    found = find_subjects([make_dump()])[0]
    judgement = judge(dataclasses.replace(found, steps=[found.data] * 4))
    (tmp_path / "page.html").write_text(render([judgement]), encoding="utf-8")
    for width in (320, 390, 900, 1400):
        browser.open(tmp_path / "page.html", width=width, height=800)
        assert browser.evaluate("document.querySelectorAll('.strip .card').length") == 12
        assert browser.evaluate(
            "[...document.querySelectorAll('nav ul, .strip, .strip .card, .card figcaption')]"
            ".every((x) => x.scrollWidth <= x.clientWidth)"
        ), width
    assert browser.errors == []
