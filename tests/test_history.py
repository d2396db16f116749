"""What the hourly figures in the ledger say is what the metrics say."""

import time
from collections.abc import Sequence
from typing import Any

import pytest
from metrics_records import finished

import taskpilot_instrument as tp
from taskpilot_instrument.errors import LedgerError
from taskpilot_instrument.semconv import Kind
from taskpilot_instrument.sinks.ledger import Rollup, open_ledger
from taskpilot_instrument.testing import capture


@tp.observed_tool
def create_task(title: str) -> str:
    """Make a task."""
    return title


def flags(_: tp.Subject) -> tp.Flag:
    """Flag everything."""
    return tp.Flag("noted")


def denies(_: tp.Subject) -> tp.Deny:
    """Deny everything."""
    return tp.Deny("no")


def breaks(_: tp.Subject) -> None:
    """Fail."""
    raise RuntimeError("broken")


@pytest.mark.parametrize(
    ("policy", "violations"),
    [(flags, 1), (denies, 1), (breaks, 0), (tp.Policy(breaks, fail_closed=True), 0)],
    ids=["flag", "deny", "failed", "failed-closed"],
)
def test_violations_are_those_of_the_metrics(policy: Any, violations: int) -> None:
    """A violation counts in both; what was refused because nobody could judge it is none in either."""
    ledger = open_ledger("memory")
    with capture(policies=[policy], ledger=ledger, reraise=False) as captured:
        try:
            with tp.workflow("w"):
                create_task("x")
        except tp.PolicyViolationError:
            pass
        assert violations == captured.metrics.get_counter("policy.violations.total")
    told = sum(rollup.figures.get("violations", 0) for rollup in ledger.rollups(0, 1e12))
    assert violations == told


@tp.observed_agent(name="Guarded")
def guarded(text: str) -> str:
    """Answer."""
    return text


def test_checks_blocks_and_policies_are_kept() -> None:
    """Runs that were checked, blocks of guardrails, and violations by policy are in the figures of their workflow."""
    ledger = open_ledger("memory")
    rules: dict[str, Any] = {
        "policies": [tp.Policy(flags, name="a|b", tools=["create_task"])],
        "guardrails": [tp.Guardrail("no-secrets", check_input=lambda text: "secret" not in text)],
    }
    with capture(ledger=ledger, **rules):
        with tp.workflow("w"):
            create_task("x")
        with pytest.raises(tp.GuardrailBlockedError), tp.workflow("w"):
            guarded("a secret")
    (found,) = [rollup.figures for rollup in ledger.rollups(0, 1e12) if rollup.key == "workflow=w"]
    names = ("runs", "checked", "violations", "policy:a%7Cb", "guardrail_blocks", "outcome:blocked")
    assert (2, 2, 1, 1, 1, 1) == tuple(found[name] for name in names)


def test_tracked_calls_are_in_the_figures() -> None:
    """A call that no patch has seen is in the ledger as it is in the metrics; only how long it took nobody knows."""
    answer = {"model": "gpt-4o-mini", "usage": {"prompt_tokens": 150, "completion_tokens": 50}}
    ledger = open_ledger("memory")
    with capture(ledger=ledger) as captured:
        assert 0.0000525 == tp.track_llm_metrics(answer, "Planner", captured.metrics)
        assert 0.0000525 == captured.metrics.get_counter("llm.cost.agent.Planner")
    (found,) = ledger.rollups(0, 1e12)
    assert "agent=Planner|model=gpt-4o-mini" == found.key
    expected = {
        "calls": 1,
        "outcome:success": 1,
        "input_tokens": 150,
        "output_tokens": 50,
        "cost": 52_500_000,
        "priced": 1,
    }
    assert expected == found.figures


class LosesAnswers:
    """A ledger whose answers to the first additions are lost after they were made."""

    def __init__(self, lost: int) -> None:
        self.behind = open_ledger("memory")
        self.lost = lost

    def add_rollups(self, batch: str, rollups: Sequence[Rollup]) -> None:
        """Add, and now and then do not say so."""
        self.behind.add_rollups(batch, rollups)
        self.lost -= 1
        if self.lost >= 0:
            raise LedgerError("no answer")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.behind, name)


def test_figures_whose_arrival_is_unknown_count_once() -> None:
    """Where the ledger's answer is lost after figures were added, they are written again and count once."""
    ledger = LosesAnswers(2)
    with capture(ledger=ledger) as captured:
        for number in range(5):
            with tp.workflow(f"w{number % 2}"):
                pass
            assert number > 0 or not captured.handle.force_flush()
        until_s = time.monotonic() + 10
        while not captured.handle.force_flush() and time.monotonic() < until_s:
            time.sleep(0.05)  # it is asked again after a pause
    assert ledger.lost < 0
    runs = {rollup.key: rollup.figures["runs"] for rollup in ledger.behind.rollups(0, 1e12)}
    assert {"workflow=w0": 3, "workflow=w1": 2} == runs


class Refuses:
    """A ledger that cannot take its first addition, whenever that is made."""

    def __init__(self) -> None:
        self.behind = open_ledger("memory")
        self.refused: str | None = None

    def add_rollups(self, batch: str, rollups: Sequence[Rollup]) -> None:
        """Add, unless it is the first."""
        self.refused = self.refused or batch
        if batch == self.refused:
            raise OverflowError("a number that is none for a ledger")
        self.behind.add_rollups(batch, rollups)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.behind, name)


def test_what_a_ledger_cannot_take_keeps_nothing_else_out() -> None:
    """Figures that no ledger could ever write are given up, and those after them are written."""
    ledger = Refuses()
    with capture(ledger=ledger, reraise=False) as captured:
        with tp.workflow("wild"):
            pass
        assert not captured.handle.force_flush()
        assert 1 == captured.handle.health().errors_swallowed["history"]
        with tp.workflow("tame"):
            pass
        assert captured.handle.force_flush()
    assert ["workflow=tame"] == [rollup.key for rollup in ledger.behind.rollups(0, 1e12)]


def test_what_cannot_be_counted_harms_no_vote() -> None:
    """A run that breaks its own counting is swallowed as our error, and votes on others count."""
    with capture(reraise=False) as captured:
        with tp.workflow("w") as run:
            pass
        captured.handle.parts.history.finished(finished(Kind.WORKFLOW, "of no time"))
        assert captured.handle.record_feedback(True, request_id=run.request_id).linked
        assert {"history": 1} == captured.handle.health().errors_swallowed


def test_a_child_knows_the_runs_of_its_parent() -> None:
    """What is not counted yet as a process is forked is the parent's to count; in both, votes find their run."""
    with capture() as captured:
        with tp.workflow("w") as run:
            pass
        captured.handle.parts.history.after_fork()
        assert captured.handle.record_feedback(True, request_id=run.request_id).linked


def test_what_is_too_much_counts_as_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a number of keys, runs count under one key and calls under another: their outcomes never mix."""
    monkeypatch.setattr("taskpilot_instrument._history._MOST_KEYS", 3)
    ledger = open_ledger("memory")
    with capture(ledger=ledger) as captured:
        for number in range(6):
            with tp.workflow(f"w{number}"):
                pass
        captured.handle.parts.history.flush()
    found = {rollup.key: rollup.figures["runs"] for rollup in ledger.rollups(0, 1e12)}
    assert {"workflow=w0": 1, "workflow=w1": 1, "workflow=w2": 1, "workflow=other": 3} == found
