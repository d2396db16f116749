"""The report as a page, in a real browser: light, dark, on a phone, on paper; names are text."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from reported import program

import taskpilot_instrument as tp

START = datetime(2026, 11, 16, 9, tzinfo=UTC)
NASTY = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">" + "x" * 80


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The page of each period, of two weeks of runs whose names are markup."""
    folder = tmp_path_factory.mktemp("report")
    ledger = str(folder / "ledger.db")
    with program(START, ledger=ledger) as runs:
        for day in range(14):
            runs.wait_until(START + timedelta(days=day))
            runs.run(agent=NASTY, workflow=NASTY, seconds=0.5 + day % 3, correct=day % 4 > 0, fails=day % 5 == 4)
    found = {}
    for period in ("day", "week", "month"):
        file = folder / f"{period}.html"
        end = (START + timedelta(days=8)).date()
        file.write_text(tp.report(period, end=end, ledger=ledger, now=START + timedelta(days=13)).html())
        found[period] = file.as_uri()
    return found


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("period", ["day", "week", "month"])
def test_it_fits(browser: Any, pages: dict[str, str], period: str, width: int, scheme: str) -> None:
    """Nothing sticks out to the side or is complained about; markup in names is shown, not run; colours follow."""
    context = browser.new_context(viewport={"width": width, "height": 740}, color_scheme=scheme)
    page, complaints = context.new_page(), []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url) if request.url != pages[period] else None)
    page.goto(pages[period])
    if shots := os.environ.get("TASKPILOT_SCREENSHOTS"):
        page.screenshot(path=Path(shots) / f"report-{period}-{width}-{scheme}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    sticking_out = page.evaluate(
        "[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll > *') && "
        "e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
    )
    assert [] == sticking_out
    assert "taken" != page.title()
    assert 0 == page.locator("script, img").count()
    assert NASTY in page.locator("main").inner_text()
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (scheme == "dark") == (back == "rgb(15, 17, 21)")
    context.close()
    assert [] == complaints


def test_each_plot_is_told_in_words(browser: Any, pages: dict[str, str]) -> None:
    """A plot has a name and a description, and a table beside it that a keyboard can scroll."""
    page = browser.new_page()
    page.goto(pages["week"])
    plots = page.locator("section:has(svg)")
    assert 4 == plots.count()
    for number in range(4):
        svg = plots.nth(number).locator("svg[role=img]")
        names = svg.get_attribute("aria-labelledby").split()
        title, told = (page.locator(f"#{name}").evaluate("e => e.textContent") for name in names)
        assert title
        assert "the table beside it has every value" in told
        assert "0" == plots.nth(number).locator("[role=region]").get_attribute("tabindex")
        assert 6 == plots.nth(number).locator("tbody tr").count()
    assert 1 == page.get_by_role("img", name="p95 latency").count()
    duplicates = page.evaluate(
        "(ids => ids.length - new Set(ids).size)([...document.querySelectorAll('[id]')].map(e => e.id))"
    )
    assert 0 == duplicates
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(browser: Any, pages: dict[str, str], scheme: str) -> None:
    """Every text has a contrast of 4.5 to 1 or more against the card that it stands on."""
    page = browser.new_page(color_scheme=scheme)
    page.goto(pages["month"])
    worst = page.evaluate(
        """() => {
          const light = c => { const [r, g, b] = c.match(/[0-9.]+/g).map(Number).map(v => v / 255)
            .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return .2126*r + .7152*g + .0722*b; };
          const back = light(getComputedStyle(document.querySelector('section')).backgroundColor);
          return Math.min(...[...document.querySelectorAll('section *')].filter(e => e.childNodes.length
              && [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())
              && !['TITLE', 'DESC'].includes(e.tagName.toUpperCase()))
            .map(e => light(e.closest('svg') ? getComputedStyle(e).fill : getComputedStyle(e).color))
            .map(l => (Math.max(l, back) + 0.05) / (Math.min(l, back) + 0.05)));
        }"""
    )
    page.close()
    assert worst >= 4.5


def test_on_paper_nothing_is_cut_off(browser: Any, pages: dict[str, str]) -> None:
    """Printed, in dark mode too, it is black on white and tables are whole."""
    page = browser.new_page(color_scheme="dark")
    page.goto(pages["month"])
    page.emulate_media(media="print")
    assert "rgb(255, 255, 255)" == page.evaluate("getComputedStyle(document.body).backgroundColor")
    cut = page.evaluate(
        "[...document.querySelectorAll('.scroll')].filter(e => e.scrollHeight > e.clientHeight + 1).length"
    )
    assert 0 == cut
    assert page.pdf().startswith(b"%PDF")
    page.close()
