"""Waste as Prometheus has it: whatever calls come to, the families and ``waste()`` tell the same."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metrics_records import llm_call
from mock_openai import MODEL, async_client, sync_client
from test_waste import PRICED, WAYS, answers

import taskpilot_instrument as tp
from taskpilot_instrument import semconv
from taskpilot_instrument._waste import waste_of
from taskpilot_instrument.semconv import Outcome
from taskpilot_instrument.sinks.metrics import MetricsBackend
from taskpilot_instrument.testing import Captured
from taskpilot_instrument.usage import TokenUsage

FAMILIES: Final = (semconv.M_LLM_RETRIES, semconv.M_LLM_WASTED_TOKENS, semconv.M_LLM_WASTED_COST)


def wasted(backend: MetricsBackend) -> dict[str, dict[tuple[str, ...], float]]:
    """Return what each of the families exposes, by its labels in their order."""
    found: dict[str, dict[tuple[str, ...], float]] = {name: {} for name in FAMILIES}
    for metric in backend.registry.collect():
        for sample in metric.samples:
            if sample.name in found:
                labels = semconv.METRIC_LABELS[sample.name]
                found[sample.name][tuple(sample.labels[label] for label in labels)] = sample.value
    return found


# --- how a call goes wrong ----------------------------------------------------------------------

_ENDS: Final = {"closed": "cancelled", "abandoned": "abandoned"}


@pytest.mark.openai
@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("way", WAYS)
async def test_what_each_way_to_end_exposes(captured: Captured, way: str, mode: str) -> None:
    """Tokens and dollars stand under the call's outcome, retries beside them; where nothing was, there is no series."""
    sync_call, async_call, script, expected = WAYS[way]
    answer = answers(*script())

    @tp.observed_agent(name="PlannerAgent")
    async def plan() -> None:
        if mode == "sync":
            sync_call(sync_client(answer))
        else:
            await async_call(async_client(answer))

    await plan()
    found, payer = wasted(captured.metrics), ("PlannerAgent", MODEL)
    outcome = _ENDS.get(way.partition(",")[0], "error")
    retries = captured.handle.waste()["PlannerAgent"].retries if captured.handle.waste() else 0
    assert retries == (expected.retries if expected is not None else 2 * way.startswith("read"))
    spent = {(*payer, outcome): 200.0}, {(*payer, outcome): 0.0000525}
    assert [{payer: retries} if retries else {}, *(spent if expected == PRICED else ({}, {}))] == list(found.values())


def test_a_blocked_call_that_cost_something(captured: Captured) -> None:
    """What a refusal of ours had cost by then stands under its outcome."""
    captured.metrics.finished(llm_call(outcome=Outcome.BLOCKED))
    assert {("PlannerAgent", MODEL, "blocked"): 0.0000525} == wasted(captured.metrics)[semconv.M_LLM_WASTED_COST]


# --- any calls ----------------------------------------------------------------------------------

_CALL = st.fixed_dictionaries({
    "agent": st.sampled_from(["A", "B", "none", None]),
    "model": st.sampled_from(["m", "n"]),
    "outcome": st.sampled_from(Outcome),
    "cost": st.decimals(0, 10, places=12).map(str) | st.none(),
    "usage": st.builds(TokenUsage, st.integers(0, 10**6) | st.none(), st.integers(0, 10**6) | st.none()) | st.none(),
})  # fmt: skip
_CALLS = st.lists(st.tuples(_CALL, st.integers(0, 3), st.booleans(), st.booleans()), max_size=25)


def record_all(backend: MetricsBackend, calls: list[Any]) -> Iterator[Any]:
    """Record calls; yield each."""
    for fields, retries, billable, in_part in calls:
        record = replace(llm_call(**fields), cost_source="partial" if in_part else None)
        assert record.llm is not None
        record.llm.retries, record.llm.billable = retries, billable
        backend.finished(record)
        yield record


@given(_CALLS, st.sampled_from([1, 2, 200]))
def test_the_families_are_what_waste_tells(calls: list[Any], cap: int) -> None:
    """By agent the sums are those of ``waste()``, and each series of money is the float nearest to its exact sum."""
    with closing(MetricsBackend(label_cap=cap)) as backend:
        exact: dict[tuple[str, ...], Decimal] = {}
        for record in record_all(backend, calls):
            lost = waste_of(record)
            if lost is not None and lost.usd and cap > 2:  # below, several are counted as other
                key = (record.agent or "none", record.model, str(record.outcome))
                exact[key] = exact.get(key, Decimal(0)) + lost.usd
                assert float(exact[key]) == wasted(backend)[semconv.M_LLM_WASTED_COST][key]
        retries, tokens, usd = wasted(backend).values()
        told, whole = backend.waste(), backend.golden_sample().wasted
    for agent in {"A", "B", "none", "other", *told}:
        each = told.get(agent)
        assert (each.retries if each else 0) == sum(count for key, count in retries.items() if key[0] == agent)
        assert (each.tokens if each else 0) == sum(count for key, count in tokens.items() if key[0] == agent)
        assert float(each.usd if each else 0) == pytest.approx(
            sum(amount for key, amount in usd.items() if key[0] == agent), rel=1e-12
        )
    assert whole is not None
    assert (whole.retries, whole.tokens) == (sum(retries.values()), sum(tokens.values()))
    assert all([*retries.values(), *tokens.values(), *usd.values()])
    if cap > 2:
        assert usd.keys() == exact.keys()


def test_calls_that_succeed_leave_no_series() -> None:
    """A program that wastes nothing has none of these series, also where its runs fail."""
    with closing(MetricsBackend()) as backend:
        for _ in range(3):
            backend.finished(llm_call())
        assert {name: {} for name in FAMILIES} == wasted(backend)


def test_combinations_beyond_the_most_are_kept_under_other() -> None:
    """Where agents and models combine to too many series, what each wasted is in the sum all the same."""
    with closing(MetricsBackend(label_cap=30)) as backend:
        for number in range(30 * 30):
            record = llm_call(f"m{number // 30}", agent=f"a{number % 30}", outcome=Outcome.ERROR, cost="0.1")
            assert record.llm is not None
            record.llm.retries = 1
            backend.finished(record)
        retries, tokens, usd = wasted(backend).values()
    assert [601, 601, 601] == [len(retries), len(tokens), len(usd)]
    assert (300, 300 * 200, 30.0) == (
        retries["other", "other"], tokens["other", "other", "error"], usd["other", "other", "error"]
    )  # fmt: skip
    assert (900, 180_000) == (sum(retries.values()), sum(tokens.values()))


def test_the_application_may_round_its_own_decimals() -> None:
    """An application's decimal context does not round what was wasted."""
    import decimal

    with closing(MetricsBackend()) as backend, decimal.localcontext(decimal.Context(prec=2)):
        for _ in range(7):
            backend.finished(llm_call(outcome=Outcome.CANCELLED))
        assert [0.0003675] == list(wasted(backend)[semconv.M_LLM_WASTED_COST].values())


# --- processes ----------------------------------------------------------------------------------

FORKED = """
import json, os, sys
import taskpilot_instrument as tp
from metrics_records import llm_call
from taskpilot_instrument.semconv import Outcome

metrics = tp.instrument(logs="off").metrics

def waste(times):
    for _ in range(times):
        record = llm_call(outcome=Outcome.ERROR, cost="0.1")
        record.llm.retries = 2
        metrics.finished(record)

def told():
    names = ("taskpilot_llm_retries_total", "taskpilot_llm_wasted_tokens_total", "taskpilot_llm_wasted_cost_usd_total")
    found = {s.name: s.value for m in metrics.scraped.collect() for s in m.samples if s.name in names}
    here = metrics.waste().get("PlannerAgent")
    return [found.get(name) for name in names] + ([here.retries, here.tokens, str(here.usd)] if here else [])

waste(3)
before = told()
reading, writing = os.pipe()
if not os.fork():
    after = told()
    waste(4)
    os.write(writing, json.dumps([after, told()]).encode())
    os._exit(0)
os.wait()
print(json.dumps([before, *json.loads(os.read(reading, 4096)), told()]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()")
@pytest.mark.parametrize("shared", [False, True], ids=["alone", "shared"])
def test_forked_processes(shared: bool, tmp_path: Path) -> None:
    """A child begins without these series; with a shared directory both tell what both have wasted."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PROMETHEUS_")}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    if shared:
        environment["PROMETHEUS_MULTIPROC_DIR"] = str(tmp_path)
    ended = subprocess.run(
        [sys.executable, "-c", FORKED], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert 0 == ended.returncode, ended.stderr
    before, began, child, parent = json.loads(ended.stdout)
    three = [6.0, 600.0, pytest.approx(0.3, rel=1e-12), 6, 600, "0.300000000000"]
    four = [8.0, 800.0, pytest.approx(0.4, rel=1e-12), 8, 800, "0.400000000000"]
    seven = [14.0, 1400.0, pytest.approx(0.7, rel=1e-12), 14, 1400, "0.700000000000"]

    def plain(figures: list[Any]) -> list[Any]:
        return [*figures[:5], f"{Decimal(figures[5]):.12f}"] if figures[5:] else figures

    assert three == plain(before)
    assert (three if shared else [None] * 3) == plain(began)
    assert (seven if shared else four) == plain(child)
    assert (seven if shared else three) == plain(parent)
