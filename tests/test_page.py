"""The page in a real browser: it loads, moves while runs end, takes votes, and shows what it is given as text."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from browsing import Page

import taskpilot_instrument as tp
from taskpilot_instrument.budgets import Budget
from taskpilot_instrument.testing import Captured, capture
from taskpilot_instrument.web import Server, serve

NASTY = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"


@tp.observed_agent(name=NASTY)
class Agent:
    """An agent whose name, input and errors are markup."""

    def run(self, text: str, client: openai.OpenAI) -> str:
        """Run."""
        client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": text}])
        raise ValueError(text)


@pytest.fixture
def shown() -> Iterator[tuple[Captured, Server]]:
    """Instrumentation that captures content, and a server that shows it."""
    settings: dict[str, Any] = {"budgets": [Budget("daily", "0.0001")], "ledger": "memory", "capture_content": True}
    with capture(**settings) as captured, serve(0, handle=captured.handle) as server:
        yield captured, server


def run_once(client: openai.OpenAI, request_id: str, *, fails: bool = False) -> None:
    """Make one run."""
    try:
        with tp.workflow("triage", request_id=request_id):
            if fails:
                Agent().run(NASTY, client)
            client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "hello"}])
    except ValueError:
        pass


def test_it_loads_and_moves(browser: Any, shown: tuple[Captured, Server], client: openai.OpenAI) -> None:
    """The page shows a run that ends while it is open, with its spans, cost and budget; nothing is complained about."""
    page = Page(browser, shown[1].url)
    run_once(client, "req-live")
    summary = page.page.locator("summary", has_text="req-live")
    summary.wait_for()
    summary.click()
    assert page.page.locator(".waterfall", has_text="chat gpt-4o-mini").is_visible()
    assert "100.0 %" in page.page.locator("#signal-success_rate").inner_text()
    assert "daily" in page.page.locator("#budgets").inner_text()
    assert "gpt-4o-mini" in page.page.locator("#models").inner_text()
    assert [] == page.close()


def test_a_budget_that_refuses_is_wrong(browser: Any, client: openai.OpenAI) -> None:
    """Below its limit, too, a budget that refuses calls is told on top, with how many; and since when is counted."""
    budgets = [Budget("tight", "0.0001", on_exceed="block")]
    with capture(budgets=budgets, ledger="memory") as captured, serve(0, handle=captured.handle) as server:
        for _ in range(2):
            with pytest.raises(tp.BudgetExceededError):
                run_once(client, "req-refused")
        page = Page(browser, server.url)
        told = "Budget tight refuses calls – 2 calls refused; $0 of $0.000100 spent"
        page.page.locator("#wrong", has_text=told).wait_for()
        page.page.locator("#budgets", has_text="blocks, 2 calls refused").wait_for()
        page.page.locator("#basis", has_text="counted since").wait_for()
        assert [] == page.close()


def test_a_vote_changes_the_signal(browser: Any, shown: tuple[Captured, Server], client: openai.OpenAI) -> None:
    """Thumbs up on a run is recorded as feedback, shown as pressed, and moves user correctness."""
    run_once(client, "req-vote")
    page = Page(browser, shown[1].url)
    page.page.locator("summary").first.click()
    page.page.get_by_role("button", name="Mark run req-vote as correct").click()
    page.page.locator("#signal-user_confirmed_correctness_percent", has_text="100.0").wait_for()
    assert "true" == page.page.get_by_role("button", name="Mark run req-vote as correct").get_attribute("aria-pressed")
    assert 1.0 == shown[0].metrics.get_counter("llm.quality.user_confirmed_correct")
    assert [] == page.close()


def test_markup_is_shown_and_not_run(browser: Any, shown: tuple[Captured, Server], client: openai.OpenAI) -> None:
    """Names, prompts and errors that are markup are text on the page."""
    run_once(client, NASTY, fails=True)
    page = Page(browser, shown[1].url)
    page.page.locator("summary").first.click()
    page.page.locator(".waterfall").first.wait_for()
    assert NASTY in page.page.locator("#runs").inner_text()
    assert "taken" != page.page.title()
    assert 0 == page.page.locator("main img, main script").count()
    assert [] == page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(browser: Any, shown: tuple[Captured, Server], client: openai.OpenAI, scheme: str) -> None:
    """On a narrow screen nothing sticks out to the side, in light and dark."""
    for number in range(3):
        run_once(client, f"req-{number}", fails=number == 1)
    page = Page(browser, shown[1].url, viewport={"width": 360, "height": 740}, color_scheme=scheme)
    page.page.locator("summary").first.click()
    sticking_out = page.page.evaluate(
        "[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll > *') && "
        "e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
    )
    assert [] == sticking_out
    assert page.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    back = page.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (scheme == "dark") == (back == "rgb(15, 17, 21)")
    assert [] == page.close()


def test_it_works_with_a_keyboard(browser: Any, shown: tuple[Captured, Server], client: openai.OpenAI) -> None:
    """A run can be opened and voted on without a mouse, and every control has a name."""
    run_once(client, "req-keys")
    page = Page(browser, shown[1].url)
    page.page.locator("summary").first.focus()
    page.page.keyboard.press("Enter")
    page.page.keyboard.press("Tab")
    for _ in range(12):
        if page.page.evaluate("document.activeElement.tagName") == "BUTTON":
            break
        page.page.keyboard.press("Tab")
    page.page.keyboard.press("Enter")
    page.page.wait_for_selector('button[aria-pressed="true"]')
    unnamed = page.page.evaluate(
        "[...document.querySelectorAll('button, select, input, summary')]"
        ".filter(e => !(e.ariaLabel || e.innerText || e.labels?.[0]?.innerText)).length"
    )
    assert 0 == unnamed
    assert [] == page.close()


def test_it_asks_for_the_token(browser: Any, captured: Captured) -> None:
    """A server with a token shows an empty page that asks for it, and opens with it."""
    token = "a-secret-of-enough-characters"
    with serve(0, token=token, handle=captured.handle) as server:
        context = browser.new_context()
        page = context.new_page()
        page.goto(server.url)
        page.wait_for_selector("#login:not([hidden])")
        assert 0 == page.locator("#signals li").count()
        page.get_by_label("Access token").fill(token)
        page.get_by_role("button", name="Open").click()
        page.wait_for_selector("#signals li")
        context.close()
