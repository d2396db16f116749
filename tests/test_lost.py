"""What runs that did not succeed came to: counted by how they ended, and no dollar twice."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

import taskpilot_instrument as tp
from taskpilot_instrument._instrument import instrumentation
from taskpilot_instrument._waste import NOTHING_LOST, Lost
from taskpilot_instrument.testing import Captured, capture

MODEL: Final = "gpt-4o-mini"
#: What 150 input and 50 output tokens of the model cost.
COST: Final = Decimal("0.0000525")


def spend(model: str = MODEL) -> None:
    """Make a call that costs so much; one of unknown cost where the model has no price."""
    answer = {"model": model, "usage": {"prompt_tokens": 150, "completion_tokens": 50}}
    tp.track_llm_metrics(answer, "anybody", instrumentation().metrics)


def end(outcome: str) -> None:
    """End a run as it is told."""
    if outcome == "error":
        raise ConnectionError("the pager gateway does not answer")
    if outcome == "blocked":
        raise tp.BlockedError("not allowed")
    if outcome == "cancelled":
        raise asyncio.CancelledError


def run(outcome: str = "error", calls: int = 1, workflow: str = "triage", agent: str | None = None) -> None:
    """Make a run of a workflow, or of an agent in it, with calls that all succeed."""

    def body() -> None:
        for _ in range(calls):
            spend()
        end(outcome)

    with suppress(ConnectionError, tp.BlockedError, asyncio.CancelledError), tp.workflow(workflow):
        tp.observed_agent(name=agent)(body)() if agent else body()


def both(captured: Captured, **filters: str) -> tuple[Lost | None, Lost | None]:
    """Return what failed and what was blocked."""
    signals = captured.golden_signals(**filters)
    return signals.failed, signals.blocked


def test_all_that_was_spent_in_them_counts(captured: Captured) -> None:
    """Calls that succeeded in a run that failed are money in failed runs, and no waste; refusals stand apart."""
    run("success", 4)
    run("error", 3)
    run("cancelled", 1)
    run("blocked", 1)
    assert (Lost(2, COST * 4), Lost(1, COST)) == both(captured)
    signals = captured.golden_signals()
    assert (float(COST * 9), 0.0) == (signals.total_cost_usd, signals.wasted_cost_usd)
    assert "1 of 4 runs, 2 failed, 1 blocked" in str(signals)
    assert "$0.000210 in failed runs, $0.0000525 in blocked runs" in str(signals)


def test_reports_have_it() -> None:
    """A report from the ledger tells what was spent in runs without success, exactly, and where that is the least."""
    with capture(ledger="memory"):
        for outcome, calls in (("success", 4), ("error", 3), ("cancelled", 1), ("blocked", 1)):
            run(outcome, calls)
        later = datetime.now(UTC) + timedelta(hours=1)  # the running hour is left out
        told = tp.report("week", end=datetime.now(UTC).date(), now=later).figures["lost_cost_usd"]
        assert (COST * 5, False) == (told.value, told.is_lower_bound)
        with suppress(ConnectionError), tp.workflow("triage"):
            spend("no-such-model")
            end("error")
        told = tp.report("month", end=datetime.now(UTC).date(), now=later).figures["lost_cost_usd"]
        assert (COST * 5, True) == (told.value, told.is_lower_bound)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["success", "error", "cancelled", "blocked"]),
            st.integers(0, 3),
            st.sampled_from(["triage", "nightly"]),
            st.sampled_from([None, "PlannerAgent", "ReviewerAgent"]),
        ),
        max_size=12,
    )
)
def test_they_are_the_exact_sums(runs: Sequence[tuple[str, int, str, str | None]]) -> None:
    """By workflow, by agent and over all of them: the numbers and the money of the runs that ended so."""
    with capture() as captured:
        for each in runs:
            run(*each)
        for filters in ({}, {"workflow": "nightly"}, {"agent": "PlannerAgent"}):
            chosen = [
                (outcome, calls)
                for outcome, calls, workflow, agent in runs
                if filters.get("workflow") in {None, workflow} and filters.get("agent") in {None, agent}
            ]
            failed = [calls for outcome, calls in chosen if outcome in {"error", "cancelled"}]
            blocked = [calls for outcome, calls in chosen if outcome == "blocked"]
            assert (Lost(len(failed), COST * sum(failed)), Lost(len(blocked), COST * sum(blocked))) == both(
                captured, **filters
            )


def test_runs_within_runs_count_their_money_once(captured: Captured) -> None:
    """Of workflows in each other the outermost has the money, if it failed; each agent has that of its own runs."""

    @tp.observed_agent
    def helper() -> None:
        spend()
        raise ConnectionError

    @tp.observed_agent
    def planner() -> None:
        spend()
        helper()

    with suppress(ConnectionError), tp.workflow("outer"), tp.workflow("inner"):
        planner()
    with tp.workflow("outer"), suppress(ConnectionError), tp.workflow("inner"):
        planner()
    assert Lost(3, COST * 2) == captured.golden_signals().failed
    assert Lost(1, COST * 2) == captured.golden_signals(workflow="outer").failed
    assert Lost(2, COST * 4) == captured.golden_signals(agent="planner").failed
    assert Lost(2, COST * 2) == captured.golden_signals(agent="helper").failed


def test_an_agent_within_itself_counts_its_money_once(captured: Captured) -> None:
    """Each run is counted, the money of all of them is that of the outermost."""

    @tp.observed_agent
    def digger(depth: int) -> None:
        spend()
        if not depth:
            raise ConnectionError
        digger(depth - 1)

    with pytest.raises(ConnectionError):
        digger(2)
    assert Lost(3, COST * 3) == captured.golden_signals(agent="digger").failed


def test_an_unknown_cost_is_a_lower_bound(captured: Captured) -> None:
    """A failed run with a call of unknown cost is one whose cost is not wholly known, and shown so."""
    for model in (MODEL, "nobody-knows-me"):
        with suppress(ConnectionError), tp.workflow("triage"):
            spend(model)
            end("error")
    assert Lost(2, COST, unpriced=1) == captured.golden_signals().failed
    assert "≥ $0.0000525 in failed runs" in str(captured.golden_signals())


def test_what_cannot_be_told_is_unknown(captured: Captured) -> None:
    """Which calls of a model were in runs that failed is not known; nothing is told of where nothing failed."""
    run()
    assert (None, None) == both(captured, model=MODEL)
    assert (NOTHING_LOST, NOTHING_LOST) == both(captured, workflow="nightly")


def test_they_slide_out_of_a_window() -> None:
    """A window forgets what lies before it; the sum since the start does not, also once it was put away."""
    with capture(fake_clock=True) as captured:
        assert captured.clock is not None
        for _ in range(2):
            run()
            captured.clock.advance(300)
        assert Lost(1, COST) == captured.golden_signals(window="6m").failed
        captured.clock.advance(7200)
        assert Lost(2, COST * 2) == captured.golden_signals(window="24h").failed
        assert Lost(2, COST * 2) == captured.golden_signals().failed
