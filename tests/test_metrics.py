"""The metrics sink: what it counts, what it exposes, and the API by dotted names."""

import asyncio
import decimal
import threading
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from math import inf, nan

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from metrics_records import TRACE_ID, agent_run, llm_call, tool_call, workflow_run
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.openmetrics.exposition import generate_latest

from taskpilot_instrument import _guard, semconv
from taskpilot_instrument.errors import ConfigurationError
from taskpilot_instrument.semconv import Outcome
from taskpilot_instrument.sinks.metrics import MetricsBackend
from taskpilot_instrument.usage import TokenUsage


def sample(backend: MetricsBackend, name: str, **labels: str) -> float | None:
    """Return what the registry exposes under a name and labels."""
    return backend.registry.get_sample_value(name, labels)


def total(backend: MetricsBackend, name: str) -> float:
    """Return the sum of a family over all its labels."""
    return sum(s.value for metric in backend.registry.collect() for s in metric.samples if s.name == name)


@pytest.fixture
def backend() -> Iterator[MetricsBackend]:
    """A backend with a registry of its own."""
    with closing(MetricsBackend()) as made:
        yield made


# --- what operations record -------------------------------------------------------------------------


def test_workflow_runs_are_counted_by_outcome(backend: MetricsBackend) -> None:
    """A workflow run counts under its name and outcome, and its duration in seconds is observed."""
    backend.finished(workflow_run(ms=1500))
    backend.finished(workflow_run(outcome=Outcome.BLOCKED))
    assert 1.0 == sample(backend, semconv.M_WORKFLOW_RUNS, workflow="triage", outcome="success")
    assert 1.0 == sample(backend, semconv.M_WORKFLOW_RUNS, workflow="triage", outcome="blocked")
    assert 1.6 == pytest.approx(sample(backend, f"{semconv.M_WORKFLOW_DURATION}_sum", workflow="triage"))


def test_agent_runs_and_tool_calls_are_counted(backend: MetricsBackend) -> None:
    """An agent run counts under its agent, a tool call under its tool and the agent that called it."""
    backend.finished(agent_run())
    backend.finished(tool_call(outcome=Outcome.ERROR))
    backend.finished(tool_call(agent=None))
    assert 1.0 == sample(backend, semconv.M_AGENT_RUNS, agent="PlannerAgent", outcome="success")
    assert 1.0 == sample(backend, semconv.M_TOOL_CALLS, tool="create_task", agent="PlannerAgent", outcome="error")
    assert 1.0 == sample(backend, semconv.M_TOOL_CALLS, tool="create_task", agent="none", outcome="success")
    assert 1.0 == sample(backend, f"{semconv.M_TOOL_DURATION}_count", tool="create_task", agent="none")


@pytest.mark.parametrize("outcome", list(Outcome))
def test_llm_calls_are_counted_with_every_outcome(backend: MetricsBackend, outcome: Outcome) -> None:
    """Every way a call can end, an abandoned stream included, is a value of the outcome label; sent ones are timed."""
    backend.finished(llm_call(outcome=outcome, error_type="TimeoutError", first_chunk_ms=200))
    labels = {"agent": "PlannerAgent", "model": "gpt-4o-mini", "provider": "openai", "error_type": "TimeoutError"}
    assert 1.0 == sample(backend, semconv.M_LLM_CALLS, outcome=outcome.value, **labels)
    timed = sample(backend, f"{semconv.M_LLM_DURATION}_count", model="gpt-4o-mini", provider="openai")
    assert (0.0 if outcome is Outcome.BLOCKED else 1.0) == timed
    first = sample(backend, f"{semconv.M_LLM_TIME_TO_FIRST_CHUNK}_sum", model="gpt-4o-mini", provider="openai")
    assert 0.2 == first


def test_tokens_are_counted_by_kind(backend: MetricsBackend) -> None:
    """Input includes cached tokens and output reasoning ones; the details have kinds of their own."""
    backend.finished(llm_call(usage=TokenUsage(150, 50, cached_tokens=100, cache_write_tokens=7, reasoning_tokens=20)))
    counted = {
        kind.value: sample(backend, semconv.M_LLM_TOKENS, agent="PlannerAgent", model="gpt-4o-mini", kind=kind.value)
        for kind in semconv.TokenKind
    }
    assert {"input": 150, "output": 50, "cached_input": 100, "cache_write": 7, "reasoning": 20} == counted
    assert 200 == backend.get_counter("llm.tokens.total.all")


def test_unknown_token_counts_are_not_counted(backend: MetricsBackend) -> None:
    """A side of the usage that the provider left out adds nothing."""
    backend.finished(llm_call(usage=TokenUsage(None, 5)))
    assert 0 == backend.get_counter("llm.tokens.input.total")
    assert 5 == backend.get_counter("llm.tokens.output.total")


@given(st.lists(st.decimals("0", "1000", places=9, allow_nan=False), min_size=1, max_size=40))
@example([Decimal("3.76E-7"), Decimal("9.90E-7")])  # the float step between the two sums rounds past the second
@example([Decimal("0.1")] * 10)
def test_exposed_cost_is_the_exact_sum(costs: list[Decimal]) -> None:
    """The cost counter shows the float nearest to the exact sum after every single call."""
    backend = MetricsBackend()
    exact = Decimal(0)
    for cost in costs:
        backend.finished(llm_call(cost=str(cost)))
        exact += cost
        assert float(exact) == sample(backend, semconv.M_LLM_COST, agent="PlannerAgent", model="gpt-4o-mini")
        assert float(exact) == backend.get_counter("llm.cost.total")
    backend.close()


def test_cost_is_exact_whatever_the_application_does_to_decimals(backend: MetricsBackend) -> None:
    """An application's own decimal context does not round our money."""
    with decimal.localcontext(decimal.Context(prec=2)):
        for _ in range(7):
            backend.finished(llm_call(cost="0.0000525"))
    assert 0.0003675 == backend.get_counter("llm.cost.agent.PlannerAgent")


def test_a_model_without_a_price_has_no_cost(backend: MetricsBackend) -> None:
    """An unknown price leaves no cost series behind, not even of 0, and counts as unpriced."""
    backend.finished(llm_call("mystery", cost=None))
    assert None is sample(backend, semconv.M_LLM_COST, agent="PlannerAgent", model="mystery")
    assert 1.0 == sample(backend, semconv.M_LLM_UNPRICED, model="mystery")


@pytest.mark.parametrize(
    ("outcome", "usage", "unpriced"),
    [
        (Outcome.SUCCESS, None, 1.0),
        (Outcome.CANCELLED, TokenUsage(3, 1), 1.0),
        (Outcome.ERROR, None, 0.0),
    ],
)
def test_only_billable_calls_count_as_unpriced(
    backend: MetricsBackend, outcome: Outcome, usage: TokenUsage | None, unpriced: float
) -> None:
    """A call that was refused is not billed, so its missing cost is no gap."""
    record = llm_call(cost=None, outcome=outcome, usage=usage)
    assert record.llm is not None
    record.llm.billable = outcome is not Outcome.ERROR
    backend.finished(record)
    assert unpriced == total(backend, semconv.M_LLM_UNPRICED)


def test_exemplars_only_where_the_trace_exists() -> None:
    """A workflow duration points to its trace, unless sampling dropped that."""
    for sampled in (True, False):
        backend = MetricsBackend()
        backend.finished(workflow_run(sampled=sampled))
        assert sampled == (f'trace_id="{TRACE_ID:032x}"' in generate_latest(backend.registry).decode())


def test_verdicts_are_counted_once(backend: MetricsBackend) -> None:
    """A violation, a block and a verdict each stand in one labelled family, and under their dotted names."""
    backend.record_policy_violation("PlannerAgent", "no_pii")
    backend.record_policy_violation(None, "no_pii")
    backend.record_guardrail_block("PlannerAgent", "jailbreak", "input")
    backend.record_guardrail_block("PlannerAgent", "toxicity", "output")
    backend.record_feedback(correct=True, agent="PlannerAgent")
    backend.record_feedback(correct=False)
    backend.record_token_limit_hit("gpt-4o-mini", "configured")
    assert 2.0 == total(backend, semconv.M_POLICY_VIOLATIONS) == backend.get_counter("policy.violations.total")
    assert 1.0 == backend.get_counter("agent.PlannerAgent.policy.violations")
    assert 1.0 == backend.get_counter("agent.PlannerAgent.guardrails.blocked")
    assert 1.0 == backend.get_counter("agent.PlannerAgent.guardrails.output_blocked")
    assert 1.0 == backend.get_counter("llm.quality.user_confirmed_correct")
    assert 1.0 == sample(backend, semconv.M_FEEDBACK, verdict="incorrect", agent="none")
    assert 1.0 == sample(backend, semconv.M_TOKEN_LIMIT_HITS, model="gpt-4o-mini", limit="configured")


def test_words_with_few_values_are_checked(backend: MetricsBackend) -> None:
    """A direction or limit that does not exist is refused with the valid ones."""
    with pytest.raises(ConfigurationError, match="input, output"):
        backend.record_guardrail_block("a", "g", "sideways")
    with pytest.raises(ConfigurationError, match="context_window"):
        backend.record_token_limit_hit("m", "patience")


def test_threads_lose_no_count(backend: MetricsBackend) -> None:
    """Thirty-two threads, with scrapes and reads in between, add up exactly."""
    each, threads = 100, 32

    def work(number: int) -> None:
        for turn in range(each):
            backend.finished(llm_call(f"model-{turn % 3}", agent=f"agent-{number % 5}"))
            backend.finished(workflow_run())
            backend.increment_counter("policy.violations.total")
            if turn == 50:
                backend.get_golden_signals()
                generate_latest(backend.registry)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    calls = each * threads
    assert calls == total(backend, semconv.M_LLM_CALLS) == total(backend, semconv.M_WORKFLOW_RUNS)
    assert calls == backend.get_counter("workflow.success") == backend.get_counter("policy.violations.total")
    assert calls * 200 == backend.get_counter("llm.tokens.total.all")
    assert float(calls * Decimal("0.0000525")) == backend.get_counter("llm.cost.total")
    assert calls == backend.get_histogram_stats("workflow.latency_ms")["count"]


async def test_ten_thousand_tasks_lose_no_count(backend: MetricsBackend) -> None:
    """Concurrent calls of one event loop, with a scrape among them, add up exactly."""

    async def work(number: int) -> None:
        await asyncio.sleep(0)
        backend.finished(llm_call(agent=f"agent-{number % 7}"))
        if number == 5000:
            generate_latest(backend.registry)

    await asyncio.gather(*(work(number) for number in range(10_000)))
    assert 10_000 == total(backend, semconv.M_LLM_CALLS)
    assert 0.525 == backend.get_counter("llm.cost.total")


# --- labels are bounded -----------------------------------------------------------------------------


def test_values_beyond_the_cap_count_as_other() -> None:
    """A label takes its first values; every further one counts as other, each time it comes."""
    backend = MetricsBackend(label_cap=2)
    for name in ("a", "b", "c", "d", "c"):
        backend.finished(workflow_run(name))
    assert 1.0 == sample(backend, semconv.M_WORKFLOW_RUNS, workflow="b", outcome="success")
    assert 3.0 == sample(backend, semconv.M_WORKFLOW_RUNS, workflow="other", outcome="success")
    assert 3.0 == sample(backend, semconv.M_LABEL_OVERFLOW, label="workflow")
    assert 5.0 == backend.get_counter("workflow.runs")


def test_the_cap_holds_across_families() -> None:
    """One value of a label is one value, in whichever family it came first."""
    backend = MetricsBackend(label_cap=1)
    backend.finished(agent_run("a"))
    backend.record_policy_violation("b", "p")
    assert 1.0 == sample(backend, semconv.M_POLICY_VIOLATIONS, agent="other", policy="p")
    assert 1.0 == sample(backend, semconv.M_LABEL_OVERFLOW, label="agent")


def test_combinations_of_labels_are_bounded() -> None:
    """However the values combine, a family has a most of series, and none of the counts is lost."""
    backend = MetricsBackend(label_cap=50)
    for number in range(2500):
        backend.record_policy_violation(f"agent-{number % 50}", f"policy-{number // 50}")
    series = [s for m in backend.registry.collect() for s in m.samples if s.name == semconv.M_POLICY_VIOLATIONS]
    assert 1001 == len(series)
    assert 2500 == sum(s.value for s in series)
    assert 1500 == sample(backend, semconv.M_LABEL_OVERFLOW, label="combination")


@pytest.mark.parametrize("name", ["x" * 5000, "lone \ud800 surrogate", 'quote " and \\ and \n', "", "名前"])
def test_any_label_value_can_be_exposed(backend: MetricsBackend, name: str) -> None:
    """Values that no format carries as they are do not break a scrape."""
    backend.finished(agent_run(name))
    assert generate_latest(backend.registry).endswith(b"# EOF\n")
    assert 1.0 == total(backend, semconv.M_AGENT_RUNS)


# --- living in a registry ---------------------------------------------------------------------------


def test_close_leaves_the_registry_and_keeps_the_values() -> None:
    """After close the registry is as it was, another backend fits in, and the old values can still be read."""
    registry = CollectorRegistry()
    backend = MetricsBackend(registry)
    backend.finished(workflow_run())
    backend.increment_counter("my.counter")
    backend.close()
    backend.close()
    assert [] == list(registry.collect())
    assert 1.0 == backend.get_counter("workflow.runs")
    MetricsBackend(registry).close()


def test_two_backends_do_not_share_a_registry() -> None:
    """The second one is told what to do instead."""
    registry = CollectorRegistry()
    MetricsBackend(registry)
    with pytest.raises(ConfigurationError, match=r"close\(\)"):
        MetricsBackend(registry)


def test_swallowed_errors_are_counted_until_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """Internal errors show up by place, and a closed backend no longer listens."""
    monkeypatch.setattr(_guard.policy, "reraise", False)
    backend = MetricsBackend()
    _guard.swallow("usage", ValueError())
    backend.close()
    _guard.swallow("usage", ValueError())
    assert 1.0 == backend.families.counter(semconv.M_INSTRUMENT_ERRORS, "usage")._value.get()
    assert backend._count_error not in _guard.policy.listeners


def test_a_label_cap_below_one_is_refused() -> None:
    """A cap of nothing would say nothing."""
    with pytest.raises(ConfigurationError, match="label_cap"):
        MetricsBackend(label_cap=0)


# --- known names ------------------------------------------------------------------------------------

COUNTERS = [
    "workflow.runs",
    "workflow.success",
    "llm.cost.total",
    "llm.cost.agent.PlannerAgent",
    "llm.cost.agent.Planner.v2",
    "llm.cost.model.gpt-4.1-mini",
    "llm.tokens.input.gpt-4o-mini",
    "llm.tokens.output.gpt-4.1-mini",
    "llm.tokens.total.gpt-4o-mini",
    "llm.tokens.input.total",
    "llm.tokens.output.total",
    "llm.tokens.total.all",
    "llm.quality.user_confirmed_correct",
    "llm.quality.user_confirmed_incorrect",
    "policy.violations.total",
    "agent.PlannerAgent.policy.violations",
    "agent.Planner.v2.guardrails.blocked",
    "agent.PlannerAgent.guardrails.output_blocked",
]


@pytest.mark.parametrize("name", COUNTERS)
def test_what_is_written_under_a_known_name_is_read_under_it(backend: MetricsBackend, name: str) -> None:
    """Each known counter echoes, adds up, and shows among all metrics."""
    backend.increment_counter(name)
    backend.increment_counter(name, 2.5)
    assert 3.5 == backend.get_counter(name)
    assert 3.5 == backend.get_all_metrics()["counters"][name]


@pytest.mark.parametrize("name", ["workflow.latency_ms", "agent.Planner.v2.latency_ms"])
def test_known_histograms_take_milliseconds(backend: MetricsBackend, name: str) -> None:
    """Statistics come back in milliseconds, the canonical family has seconds."""
    for value in (100, 200, 600):
        backend.record_histogram(name, value)
    stats = backend.get_histogram_stats(name)
    assert {"count": 3, "min": 100, "max": 600, "avg": 300} == {
        key: stats[key] for key in ("count", "min", "max", "avg")
    }
    assert 200 == pytest.approx(stats["p50"], rel=0.01)
    assert 600 == stats["p95"] == stats["p99"]
    family = semconv.M_WORKFLOW_DURATION if name.startswith("workflow") else semconv.M_AGENT_DURATION
    assert 0.9 == pytest.approx(total(backend, f"{family}_sum"))


def test_operations_are_read_by_dotted_name(backend: MetricsBackend) -> None:
    """Cost and tokens are counted once, at the innermost agent, and read by agent, model or in total."""
    backend.finished(llm_call())
    backend.finished(llm_call("gpt-4.1-mini", agent="ReviewerAgent", cost="0.001"))
    backend.finished(agent_run(ms=250, usage=TokenUsage(150, 50), cost=Decimal("0.0000525")))
    assert 0.0010525 == backend.get_counter("llm.cost.total")
    assert 0.001 == backend.get_counter("llm.cost.model.gpt-4.1-mini")
    assert 0.0000525 == backend.get_counter("llm.cost.agent.PlannerAgent")
    assert 400 == backend.get_counter("llm.tokens.total.all")
    assert 200 == backend.get_counter("llm.tokens.total.gpt-4o-mini")
    assert 250 == backend.get_histogram_stats("agent.PlannerAgent.latency_ms")["max"]


def test_names_that_nothing_was_written_under(backend: MetricsBackend) -> None:
    """A counter is 0 before it counts; a distribution of nothing has a count and no values."""
    assert 0.0 == backend.get_counter("workflow.runs") == backend.get_counter("my.own")
    nothing = {"count": 0, "min": None, "max": None, "avg": None, "p50": None, "p95": None, "p99": None}
    assert nothing == backend.get_histogram_stats("workflow.latency_ms") == backend.get_histogram_stats("my.own")


# --- direct writes that overlap ---------------------------------------------------------------------

AGENT, MODEL, TOTAL = "llm.cost.agent.A", "llm.cost.model.M", "llm.cost.total"


@pytest.mark.parametrize("order", [(AGENT, MODEL, TOTAL), (TOTAL, MODEL, AGENT), (MODEL, TOTAL, AGENT)])
def test_one_call_written_under_three_names_costs_once(backend: MetricsBackend, order: tuple[str, ...]) -> None:
    """In whichever order a call's cost is written by agent, by model and in total, it is spent once."""
    for _ in range(3):
        for name in order:
            backend.increment_counter(name, 0.1)
    assert 0.3 == backend.get_counter(TOTAL) == total(backend, semconv.M_LLM_COST)
    assert 0.3 == backend.get_counter(AGENT) == backend.get_counter(MODEL)
    assert 0.3 == sample(backend, semconv.M_LLM_COST, agent="A", model="none")


def test_parts_alone_make_the_total(backend: MetricsBackend) -> None:
    """Whoever writes only successes, or only an agent's violations, still gets the totals."""
    backend.increment_counter("workflow.success", 2)
    backend.increment_counter("agent.A.policy.violations")
    backend.increment_counter("agent.B.policy.violations")
    backend.increment_counter("llm.tokens.input.M", 150)
    backend.increment_counter("llm.tokens.output.M", 50)
    assert 2 == backend.get_counter("workflow.runs")
    assert 2 == backend.get_counter("policy.violations.total")
    assert 200 == backend.get_counter("llm.tokens.total.M") == backend.get_counter("llm.tokens.total.all")
    assert 150 == backend.get_counter("llm.tokens.input.total")


def test_what_no_part_explains_stands_under_none(backend: MetricsBackend) -> None:
    """Runs that nobody called successful have the outcome none on the canonical family."""
    backend.increment_counter("workflow.runs", 5)
    backend.increment_counter("workflow.success", 3)
    assert 3.0 == sample(backend, semconv.M_WORKFLOW_RUNS, workflow="none", outcome="success")
    assert 2.0 == sample(backend, semconv.M_WORKFLOW_RUNS, workflow="none", outcome="none")


def test_direct_writes_add_to_what_operations_record(backend: MetricsBackend) -> None:
    """The two sources are apart, so their figures add up, also where they share a series."""
    backend.finished(llm_call(agent="A", model=None, cost="0.5"))
    backend.increment_counter("llm.cost.agent.A", 0.25)
    assert 0.75 == backend.get_counter("llm.cost.total") == backend.get_counter("llm.cost.agent.A")
    assert 0.75 == sample(backend, semconv.M_LLM_COST, agent="A", model="none")


@given(st.lists(st.tuples(st.sampled_from(COUNTERS), st.integers(0, 5)), max_size=60))
def test_a_total_lies_between_its_parts_and_what_was_written(writes: list[tuple[str, int]]) -> None:
    """Whatever is written in whatever order, totals hold the rule, and the exposition adds up to them."""
    backend = MetricsBackend()
    written = dict.fromkeys(COUNTERS, 0)
    for name, amount in writes:
        backend.increment_counter(name, amount)
        written[name] += amount

    def said(prefix: str) -> int:
        return sum(amount for name, amount in written.items() if name.startswith(prefix))

    cost = max(written["llm.cost.total"], said("llm.cost.agent."), said("llm.cost.model."))
    assert cost == backend.get_counter("llm.cost.total") == total(backend, semconv.M_LLM_COST)
    runs = max(written["workflow.runs"], written["workflow.success"])
    assert runs == backend.get_counter("workflow.runs") == total(backend, semconv.M_WORKFLOW_RUNS)
    violations = max(written["policy.violations.total"], written["agent.PlannerAgent.policy.violations"])
    assert violations == backend.get_counter("policy.violations.total") == total(backend, semconv.M_POLICY_VIOLATIONS)
    mini = max(written["llm.tokens.total.gpt-4o-mini"], written["llm.tokens.input.gpt-4o-mini"])
    assert mini == backend.get_counter("llm.tokens.total.gpt-4o-mini")
    inputs = max(written["llm.tokens.input.total"], written["llm.tokens.input.gpt-4o-mini"])
    outputs = max(written["llm.tokens.output.total"], written["llm.tokens.output.gpt-4.1-mini"])
    models = mini + written["llm.tokens.output.gpt-4.1-mini"]
    tokens = max(written["llm.tokens.total.all"], inputs + outputs, models)
    assert tokens == backend.get_counter("llm.tokens.total.all") == total(backend, semconv.M_LLM_TOKENS)
    backend.close()


# --- names of one's own -----------------------------------------------------------------------------


def test_an_unknown_name_becomes_a_family_of_its_own(backend: MetricsBackend) -> None:
    """It is exposed under its sanitised name, exactly, and read under the name it was written with."""
    for _ in range(10):
        backend.increment_counter("Tasks-Created.v2", 0.1)
    backend.record_histogram("queue.depth", 3)
    assert 1.0 == backend.get_counter("Tasks-Created.v2") == sample(backend, "tasks_created_v2")
    assert 3.0 == sample(backend, "queue_depth_sum") == backend.get_histogram_stats("queue.depth")["p50"]
    everything = backend.get_all_metrics()
    assert 1.0 == everything["counters"]["Tasks-Created.v2"]
    assert 1 == everything["histograms"]["queue.depth"]["count"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("workflow.sucess", "workflow.success"),
        ("workflow.run", "workflow.runs"),
        ("agent.Planner.v2.policy.violation", "agent.Planner.v2.policy.violations"),
        ("llm.cost.agents.PlannerAgent", "llm.cost.agent.PlannerAgent"),
        ("llm.quality.user_confirmed_corect", "llm.quality.user_confirmed_correct"),
        ("llm.tokens.total", "llm.tokens.total.all"),
    ],
)
@pytest.mark.parametrize("use", ["increment_counter", "get_counter"])
def test_a_slip_of_a_known_name_is_told(
    backend: MetricsBackend, use: str, name: str, meant: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What looks like a known name and is none counts all the same, and one warning asks what was meant."""
    for _ in range(2):
        getattr(backend, use)(name)
    assert 2.0 * (use == "increment_counter") == backend.get_counter(name)
    assert [True] == [
        f"{name!r} is no known metric" in line and f"did you mean {meant!r}?" in line for line in caplog.messages
    ]


def test_a_slip_that_cannot_count_apart_is_told(backend: MetricsBackend) -> None:
    """Where the name is taken by a known metric's, the refusal says which one was meant."""
    with pytest.raises(ConfigurationError, match=r"did you mean 'policy\.violations\.total'"):
        backend.increment_counter("policy.violations")


@pytest.mark.parametrize(
    "name", ["tasks.created", "agent.Planner.retries", "llm.retries", "workflow.steps", "x" * 10_000]
)
def test_names_of_ones_own_are_no_slips(backend: MetricsBackend, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """A name that comes close to no known one is nobody's mistake."""
    assert 0.0 == backend.get_counter(name)
    if len(name) < 200:
        backend.record_histogram(name, 1)
    assert [] == caplog.messages


def test_a_name_is_a_counter_or_a_histogram(backend: MetricsBackend) -> None:
    """Using one as the other is refused, for known names and for one's own, in writing and in reading."""
    backend.increment_counter("my.counter")
    backend.record_histogram("my.histogram", 1)
    for name in ("my.counter", "workflow.runs"):
        with pytest.raises(ConfigurationError, match="counter"):
            backend.record_histogram(name, 1)
        with pytest.raises(ConfigurationError, match="get_counter"):
            backend.get_histogram_stats(name)
    for name in ("my.histogram", "agent.A.latency_ms"):
        with pytest.raises(ConfigurationError, match="histogram"):
            backend.increment_counter(name)
        with pytest.raises(ConfigurationError, match="get_histogram_stats"):
            backend.get_counter(name)


@pytest.mark.parametrize(
    "value", [-1, -0.001, nan, inf, -inf, "3", None, object(), Decimal("NaN"), Decimal(-1), 1 + 2j]
)
def test_values_that_no_metric_can_take_are_refused(backend: MetricsBackend, value: object) -> None:
    """Counters and histograms take finite numbers of zero or more."""
    for write in (backend.increment_counter, backend.record_histogram):
        with pytest.raises(ConfigurationError, match="finite number"):
            write("anything", value)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", "  ", None, 3])
def test_a_metric_needs_a_name(backend: MetricsBackend, name: object) -> None:
    """Nothing is no name."""
    for use in (backend.increment_counter, backend.get_counter, backend.get_histogram_stats):
        with pytest.raises(ConfigurationError, match="name"):
            use(name)  # type: ignore[operator]


@pytest.mark.parametrize("name", ["llm.cost-total", "llm.cost.agent-A", "taskpilot.llm.calls", "taken", "x" * 201])
def test_a_name_of_ones_own_must_be_free(name: str) -> None:
    """A name whose family exists, as canonical, alias or the application's own, is refused."""
    registry = CollectorRegistry()
    Counter("taken", "The application's own.", registry=registry)
    backend = MetricsBackend(registry)
    with pytest.raises(ConfigurationError, match="name"):
        backend.increment_counter(name)


def test_names_of_ones_own_are_bounded(backend: MetricsBackend) -> None:
    """Names made from data do not grow without end: what is beyond the bound is dropped and counted."""
    for number in range(600):
        backend.increment_counter(f"user.{number}")
    backend.record_histogram("one.more", 1)
    assert 0 == backend.get_histogram_stats("one.more")["count"]
    assert 1.0 == backend.get_counter("user.499")
    assert 0.0 == backend.get_counter("user.500")
    assert 101.0 == sample(backend, semconv.M_LABEL_OVERFLOW, label="name")


# --- golden signals as a dictionary -----------------------------------------------------------------


def test_golden_signals_of_nothing(backend: MetricsBackend) -> None:
    """Five keys, zero where nothing ran, None where nobody gave feedback."""
    expected = {
        "success_rate": 0.0,
        "p95_latency_ms": 0.0,
        "cost_per_successful_task_usd": 0.0,
        "user_confirmed_correctness_percent": None,
        "policy_violation_rate_percent": 0.0,
    }
    assert expected == backend.get_golden_signals()


def test_golden_signals_are_rounded(backend: MetricsBackend) -> None:
    """Percentages and milliseconds have two decimals, money four."""
    for outcome in (Outcome.SUCCESS, Outcome.SUCCESS, Outcome.ERROR):
        backend.finished(workflow_run(outcome=outcome, ms=123.456))
    backend.finished(llm_call(cost="0.2469135"))
    backend.record_policy_violation("A", "p")
    backend.record_feedback(correct=True)
    expected = {
        "success_rate": 66.67,
        "p95_latency_ms": 123.46,
        "cost_per_successful_task_usd": 0.1235,
        "user_confirmed_correctness_percent": 100.0,
        "policy_violation_rate_percent": 33.33,
    }
    assert expected == backend.get_golden_signals()


def test_golden_signals_from_names_alone(backend: MetricsBackend) -> None:
    """Whoever writes everything by name gets the same signals."""
    backend.increment_counter("workflow.runs", 4)
    backend.increment_counter("workflow.success", 3)
    backend.increment_counter("llm.cost.total", 0.3)
    backend.increment_counter("llm.cost.agent.A", 0.3)
    backend.increment_counter("policy.violations.total")
    backend.increment_counter("agent.A.policy.violations")
    backend.record_histogram("workflow.latency_ms", 800)
    backend.increment_counter("llm.quality.user_confirmed_correct", 3)
    backend.increment_counter("llm.quality.user_confirmed_incorrect")
    expected = {
        "success_rate": 75.0,
        "p95_latency_ms": 800.0,
        "cost_per_successful_task_usd": 0.1,
        "user_confirmed_correctness_percent": 75.0,
        "policy_violation_rate_percent": 25.0,
    }
    assert expected == backend.get_golden_signals()
