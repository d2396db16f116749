"""The page in a real browser: what is wrong and where, models, experiments, and signals over time."""

from contextlib import suppress
from typing import Any

import openai
import pytest
from backends import free_port
from browsing import Page, PlannerAgent

import taskpilot_instrument as tp
from taskpilot_instrument.testing import Captured, capture
from taskpilot_instrument.web import Server, serve


@tp.observed_agent
class ExecutorAgent:
    """Fails."""

    def run(self) -> None:
        """Run."""
        raise ConnectionError("the pager gateway does not answer")


def fail(request_id: str) -> None:
    """Make a run that fails in an agent."""
    with pytest.raises(ConnectionError), tp.workflow("triage", request_id=request_id):
        ExecutorAgent().run()


def experiment_runs(count: int, only: str = "") -> None:
    """Make runs of an experiment; only those of one variant, where the others are lost."""
    for number in range(count):
        with tp.experiment("planner-prompt", ["control", "terse"], unit=f"user-{number}") as variant:
            if only in {"", variant}:
                with tp.workflow("triage") as run:
                    if variant == "terse":
                        run.fail("no")


def test_it_says_what_is_wrong_and_where(browser: Any, shown: tuple[Captured, Server], client: openai.OpenAI) -> None:
    """While all is well nothing is said; then the signal, the agent and the error that most failures come from are."""
    PlannerAgent().run(client)
    page = Page(browser, shown[1].url)
    assert not page.page.locator("#wrong").is_visible()
    for number in range(3):
        fail(f"req-{number}")
    page.page.locator("#wrong", has_text="ExecutorAgent: 3 failed of 3 runs").wait_for()
    said = page.page.locator("#wrong").inner_text()
    assert "Success rate 25.0 %" in said
    assert "ConnectionError: the pager gateway does not answer × 3" in said
    assert page.page.title().startswith("critical")
    assert "critical" in page.page.locator("#said").inner_text()
    assert ["ExecutorAgent", "PlannerAgent"] == page.page.locator("#agents tbody th").all_inner_texts()
    assert [] == page.close()


def test_runs_that_fail_outside_of_agents_are_told(
    browser: Any, shown: tuple[Captured, Server], client: openai.OpenAI
) -> None:
    """What is wrong names the workflow whose runs fail, beside agents that do well and where the total is healthy."""

    def nightly() -> None:
        with pytest.raises(KeyError), tp.workflow("nightly"):
            PlannerAgent().run(client)
            raise KeyError("no such table")

    for _ in range(3):
        nightly()
    page = Page(browser, shown[1].url)
    page.page.locator("#wrong", has_text="nightly: 3 failed of 3 runs").wait_for()
    said = page.page.locator("#wrong").inner_text()
    assert "PlannerAgent" not in said
    assert "nightly failed – KeyError: 'no such table' × 3" in said
    for _ in range(97):
        with tp.workflow("hourly"):
            pass
    page.page.locator("#signal-success_rate.healthy").wait_for()
    assert "Workflow nightly 0.0 % successful – 3 failed of 3 runs" in page.page.locator("#wrong").inner_text()
    assert [] == page.close()


def test_what_failed_runs_cost(browser: Any, shown: tuple[Captured, Server], client: openai.OpenAI) -> None:
    """Failed and blocked runs stand apart, in all and by workflow and agent, each with what was spent in them."""

    @tp.observed_agent(name="ReviewerAgent")
    def review(error: Exception | None) -> None:
        PlannerAgent().run(client)
        if error is not None:
            raise error

    for error in (None, None, ConnectionError("no"), ConnectionError("no"), tp.BlockedError("not allowed")):
        with suppress(ConnectionError, tp.BlockedError), tp.workflow("triage"):
            review(error)
    page = Page(browser, shown[1].url)
    page.page.locator("#basis", has_text="5 runs: 2 successful, 2 failed, 1 blocked").wait_for()
    cost = "$0.00000390"
    assert f"of it {cost} in failed runs, $0.00000195 in blocked runs, $0 on model calls" in (
        page.page.locator("#basis").inner_text()
    )
    for part, name in (("#workflows", "triage"), ("#agents", "ReviewerAgent")):
        cells = page.page.locator(f"{part} tr", has_text=name).locator("td").all_inner_texts()
        assert ["5", f"2\n40.0 % · {cost}", "1\n20.0 % · $0.00000195"] == cells[:3]
    cells = page.page.locator("#agents tr", has_text="PlannerAgent").locator("td").all_inner_texts()
    assert ["5", "0", "0"] == cells[:3]
    assert [] == page.close()


def test_whose_word_a_violation_is(browser: Any, shown: tuple[Captured, Server]) -> None:
    """A violation that the program counted itself does not stand beside a bare word that nothing was checked."""
    with tp.workflow("triage"):
        pass
    page = Page(browser, shown[1].url)
    page.page.locator("#basis", has_text="no run was checked by policies").wait_for()
    shown[0].metrics.record_policy_violation("ReviewerAgent", "private data")
    page.page.locator("#basis", has_text="reported by the program or from open runs").wait_for()
    assert [] == page.close()


def test_one_failure_is_one_line(browser: Any, shown: tuple[Captured, Server]) -> None:
    """An error that call, agent and run all saw is one line, and the same again is counted."""
    fail("req-1")
    fail("req-2")
    page = Page(browser, shown[1].url)
    (line,) = page.page.locator("#events li").all_inner_texts()
    assert "ExecutorAgent failed × 2" in line
    assert "req-2" in line
    assert [] == page.close()


def test_only_failed_runs(browser: Any, shown: tuple[Captured, Server], client: openai.OpenAI) -> None:
    """The latest runs can be narrowed to those that failed, also those that were long ago, with the keyboard."""
    fail("req-failed")
    for _ in range(30):
        PlannerAgent().run(client)
    page = Page(browser, shown[1].url)
    assert 0 == page.page.locator("summary", has_text="req-failed").count()
    page.page.get_by_label("failed or blocked").focus()
    page.page.keyboard.press("Space")
    (line,) = page.page.locator("#runs summary").all_inner_texts()
    assert "req-failed" in line
    assert "ConnectionError: the pager gateway does not answer" in line
    assert [] == page.close()


def test_models(browser: Any, shown: tuple[Captured, Server], client: openai.OpenAI) -> None:
    """Each model is a column with its figures and intervals; where there are too few calls it says so."""
    for model in ("gpt-4o-mini", "gpt-4.1"):
        PlannerAgent().run(client, model)
    page = Page(browser, shown[1].url)
    table = page.page.get_by_role("region", name="Model comparison")
    assert ["", "gpt-4.1", "gpt-4o-mini", "Best"] == table.locator("thead th").all_inner_texts()
    rows = {row.locator("th").inner_text(): row for row in table.locator("tbody tr").all()}
    assert ["1", "1", ""] == rows["Calls"].locator("td").all_inner_texts()
    assert "too few calls" in rows["Success"].inner_text()
    assert "100.0 %" in rows["Success"].inner_text()
    assert "…" in rows["Success"].inner_text()
    assert {"Latency p99", "First chunk p95", "Cost per successful run", "Token limits hit"} <= rows.keys()
    assert [] == page.close()


def test_the_best_model_is_marked(browser: Any, shown: tuple[Captured, Server], client: openai.OpenAI) -> None:
    """A model that is clearly cheapest is named, and its figure marked by more than its colour."""
    for _ in range(35):
        for model in ("gpt-4o-mini", "gpt-4.1"):
            PlannerAgent().run(client, model)
    page = Page(browser, shown[1].url)
    row = page.page.locator("#models tbody tr", has_text="Cost per call").inner_text()
    assert "✓ $" in row
    assert row.endswith("gpt-4o-mini")
    assert [] == page.close()


def test_experiments(browser: Any, shown: tuple[Captured, Server]) -> None:
    """Variants have their figures, and each figure its verdict and how sure it is."""
    experiment_runs(400)
    page = Page(browser, shown[1].url)
    assert "terse: worse" in page.page.locator("#experiments h3").inner_text()
    assert ["control", "terse"] == page.page.get_by_role("region", name="Variants of planner-prompt").locator(
        "tbody th"
    ).all_inner_texts()
    effects = page.page.get_by_role("region", name="Effects in planner-prompt")
    row = effects.locator("tr", has_text="terse: success rate").inner_text()
    assert "−100.0 points" in row
    assert "worse" in row
    assert "% sure" in row
    assert [] == page.close()


def test_a_broken_assignment_is_a_warning(browser: Any, shown: tuple[Captured, Server]) -> None:
    """Where units are not shared out as designed, that stands on top and no effect is shown."""
    experiment_runs(100, only="control")
    experiment_runs(4)
    page = Page(browser, shown[1].url)
    assert "its units are not shared out as designed" in page.page.locator("#wrong").inner_text()
    assert "do not read on" in page.page.locator("#experiments .alarm").inner_text()
    assert 0 == page.page.get_by_role("region", name="Effects in planner-prompt").count()
    assert [] == page.close()


def test_signals_have_lines_of_a_real_period(
    browser: Any, shown: tuple[Captured, Server], client: openai.OpenAI
) -> None:
    """Each signal with something to show has a line that is told in words too, over the window that is asked for."""
    PlannerAgent().run(client)
    shown[0].handle.record_feedback(correct=True, request_id="req-x")
    page = Page(browser, shown[1].url)

    def told() -> list[str]:
        lines = page.page.locator("#signals svg")
        return [line.get_attribute("aria-label") or "" for line in lines.all()]

    page.page.locator("#signals svg").nth(4).wait_for()
    assert 5 == len(told())
    assert "Success rate over the last 5 minutes: 100.0 % – 100.0 %" == told()[0]
    page.page.get_by_label("Window").select_option("24h")
    page.page.locator('#signals svg[aria-label*="last 24 hours"]').first.wait_for()
    assert [] == page.close()


def test_the_window_stays_chosen(browser: Any, shown: tuple[Captured, Server]) -> None:
    """Who loads the page anew sees the window that was chosen before."""
    page = Page(browser, shown[1].url)
    page.page.get_by_label("Window").select_option("15m")
    page.page.reload()
    with page.page.expect_response("**/live?window=15m"):
        page.page.reload()
    assert "15m" == page.page.get_by_label("Window").input_value()
    assert [] == page.close()


def test_lost_figures_look_lost(browser: Any, captured: Captured) -> None:
    """When the server is gone the page says that what it shows is old."""
    with serve(0, handle=captured.handle) as server:
        page = Page(browser, server.url)
    page.page.locator("#status", has_text="what is shown is old").wait_for()
    assert page.page.evaluate("document.body.classList.contains('lost')")
    page.close()  # the browser complains about the server that is gone


@pytest.mark.parametrize("width", [320, 768, 1400])
def test_tables_scroll_by_themselves(
    browser: Any, shown: tuple[Captured, Server], client: openai.OpenAI, width: int
) -> None:
    """However long the names of models are, the page is no wider than the screen, and tables can be focused."""
    for number in range(6):
        PlannerAgent().run(client, f"a-model-with-a-name-that-is-rather-long-{number}")
    experiment_runs(10)
    page = Page(browser, shown[1].url, viewport={"width": width, "height": 740})
    assert page.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    tables = page.page.locator(".scroll:visible")
    assert tables.count() >= 3
    assert ["0"] * tables.count() == [each.get_attribute("tabindex") for each in tables.all()]
    assert [] == page.close()


def test_what_is_read_stays_where_it_is(browser: Any, shown: tuple[Captured, Server], client: openai.OpenAI) -> None:
    """While runs end, a run that is open stays open and keeps the focus, and a table stays scrolled to the side."""
    for model in ("gpt-4o-mini", "gpt-4.1", "gpt-4.1-mini", "gpt-4.1-nano"):
        PlannerAgent().run(client, model)
    fail("req-open")
    page = Page(browser, shown[1].url, viewport={"width": 390, "height": 740})
    summary = page.page.locator("summary", has_text="req-open")
    summary.click()
    opened = summary.element_handle()
    scrolled = "document.querySelector('#models .scroll').scrollLeft"
    page.page.evaluate(f"{scrolled} = 50")
    PlannerAgent().run(client)
    page.page.locator("#models tbody tr:first-child td:nth-child(2)", has_text="2").wait_for()
    assert opened.evaluate("e => e.isConnected && e.parentElement.open && e === document.activeElement")
    assert 50 == page.page.evaluate(scrolled)
    assert [] == page.close()


def test_page_tells_whose_figures_it_shows(browser: Any) -> None:
    """Where signals come from a Prometheus, what is of this process alone is said to be."""
    source = f"http://user:hidden@127.0.0.1:{free_port()}"
    with capture(source=source) as captured, serve(0, handle=captured.handle) as server:
        with tp.workflow("triage"):
            pass
        watched = Page(browser, server.url)
        scope, cards = watched.page.inner_text("#scope"), watched.page.inner_text("#signals")
        assert [] == watched.close()
    assert source.replace("user:hidden@", "") in scope
    assert "of this process alone" in scope
    assert "this process: " in cards
