"""What the hourly figures in the ledger say is what the metrics say."""

from typing import Any

import pytest

import taskpilot_instrument as tp
from taskpilot_instrument.sinks.ledger import open_ledger
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
