"""Models beside each other: figures, intervals, and nothing said of samples that are too small."""

import json
import math
import random
import tracemalloc
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import numpy as np
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from metrics_records import ManualClock, agent_run, llm_call, workflow_run
from scipy import stats

import taskpilot_instrument as tp
from taskpilot_instrument import _estimates
from taskpilot_instrument._records import Event, Finished
from taskpilot_instrument.comparison import ModelComparison, ModelFigures, Standing, compare
from taskpilot_instrument.semconv import COST_PARTIAL, E_TOKEN_LIMIT_EXCEEDED, Kind, Outcome
from taskpilot_instrument.sinks._sketch import Sketch
from taskpilot_instrument.sinks._windows import Bucket, CellKey
from taskpilot_instrument.sinks.metrics import MetricsBackend
from taskpilot_instrument.testing import Captured, capture
from taskpilot_instrument.usage import TokenUsage

BIG, SMALL = "gpt-4o", "gpt-4o-mini"


@pytest.fixture
def clock() -> ManualClock:
    """Return a clock that is moved by hand."""
    return ManualClock()


@pytest.fixture
def backend(clock: ManualClock) -> MetricsBackend:
    """Return a metrics backend of its own registry."""
    return MetricsBackend(clock=clock.clock)


def figures(backend: MetricsBackend, model: str = SMALL, **asked: str) -> ModelFigures:
    """Return what is told of one model."""
    (found,) = [each for each in compare(backend, **asked).models if each.model == model]
    return found


def finding(comparison: ModelComparison, figure: str) -> tuple[Standing, str | None]:
    """Return what is said by one figure."""
    (found,) = [each for each in comparison.findings if each.figure == figure]
    return found.standing, found.best


def record(backend: MetricsBackend, *records: Finished) -> None:
    """Let the backend hear of records."""
    for each in records:
        backend.finished(each)


# --- figures ------------------------------------------------------------------------------------


def test_calls_succeed_and_fail_by_type(backend: MetricsBackend) -> None:
    """Problems are told by type of error, else by outcome, each in percent of all calls."""
    record(backend, *[llm_call()] * 6)
    record(backend, *[llm_call(outcome=Outcome.ERROR, error_type="RateLimitError", usage=None, cost=None)] * 3)
    record(backend, llm_call(outcome=Outcome.ABANDONED))
    told = figures(backend)
    assert (10, 60.0) == (told.calls, told.success_rate.value)
    assert {"RateLimitError": 30.0, "abandoned": 10.0} == {name: each.value for name, each in told.problems.items()}
    assert 10 == told.problems["abandoned"].sample


def test_latency_and_first_chunk_are_quantiles(backend: MetricsBackend) -> None:
    """Half, 95 and 99 % of calls are at most so long, within 1 %; only streams have a first chunk."""
    for ms in range(1, 1001):
        record(backend, llm_call(ms=float(ms), first_chunk_ms=ms / 10 if ms % 2 == 0 else None))
    told = figures(backend)
    assert [500, 950, 990] == [
        pytest.approx(each.value, rel=0.01) for each in (told.p50_latency_ms, told.p95_latency_ms, told.p99_latency_ms)
    ]
    assert (1000, 500) == (told.p95_latency_ms.sample, told.first_chunk_p95_ms.sample)
    assert told.first_chunk_p50_ms.value == pytest.approx(50, rel=0.01)


def test_tokens_a_second_begin_with_the_first_chunk(backend: MetricsBackend) -> None:
    """A stream's output is made after its first chunk; that of other calls in the whole time."""
    record(backend, llm_call(usage=TokenUsage(10, 100), ms=3000, first_chunk_ms=1000))
    assert 50.0 == figures(backend).tokens_per_second.value
    record(backend, llm_call(usage=TokenUsage(10, 200), ms=1000))
    record(backend, llm_call(usage=None, ms=60_000), llm_call(usage=TokenUsage(10, 0), ms=60_000))
    told = figures(backend).tokens_per_second
    assert (100.0, 2) == (told.value, told.sample)


def test_tokens_a_second_are_of_calls_whose_speed_is_known(backend: MetricsBackend) -> None:
    """What failed or was left, took no time, or was made earlier and only fetched, tells nothing of the speed."""
    record(backend, llm_call(usage=TokenUsage(10, 100), ms=1000))
    for outcome in set(Outcome) - {Outcome.SUCCESS}:
        record(backend, llm_call(usage=TokenUsage(10, 1), ms=60_000, outcome=outcome))
    record(backend, llm_call(usage=TokenUsage(10, 10**9), ms=1000, first_chunk_ms=1000))
    fetched = llm_call(usage=TokenUsage(10, 10**9), ms=1)
    assert fetched.llm is not None
    fetched.llm.is_fetched = True
    record(backend, fetched)
    told = figures(backend).tokens_per_second
    assert (100.0, 1) == (told.value, told.sample)


def test_cached_share_is_of_input_tokens(backend: MetricsBackend) -> None:
    """Cached tokens ÷ input tokens, None where there was no input."""
    record(backend, llm_call(usage=TokenUsage(300, 10, 100)), llm_call(usage=TokenUsage(100, 10)))
    record(backend, llm_call(BIG, usage=None, cost=None))
    assert 25.0 == figures(backend).cached_share_percent
    assert figures(backend, BIG).cached_share_percent is None


def test_cost_is_of_calls_that_are_priced(backend: MetricsBackend) -> None:
    """A call of unknown cost, or one that is known in part, does not make calls cheaper."""
    record(backend, llm_call(cost="0.1"), llm_call(cost="0.3"), llm_call(cost=None))
    told = figures(backend)
    assert 0.2 == pytest.approx(told.cost_per_call_usd.value)
    assert (2, 1, 0.4) == (told.cost_per_call_usd.sample, told.unpriced_calls, told.total_cost_usd)


def test_a_model_without_prices_has_no_cost(backend: MetricsBackend) -> None:
    """Unknown is not zero."""
    record(backend, llm_call("mystery", cost=None))
    assert (None, 0) == figures(backend, "mystery").cost_per_call_usd[::3]


def test_failed_runs_are_paid_by_those_that_succeed(backend: MetricsBackend) -> None:
    """Cost per successful run is all that the model's runs cost ÷ the successful ones, of workflows or of one agent."""
    run = {"model": SMALL, "cost": Decimal("0.02")}
    record(backend, llm_call(cost="0.02"), agent_run(**run), workflow_run(**run))
    record(backend, llm_call(cost="0.02"), agent_run(**run), workflow_run(**run, outcome=Outcome.ERROR))
    half = replace(workflow_run(**run), cost_source=COST_PARTIAL)
    record(backend, half, workflow_run(model=SMALL, cost=None))
    assert (0.04, 2) == figures(backend).cost_per_successful_run_usd[::3]
    assert (0.02, 2) == figures(backend, agent="PlannerAgent").cost_per_successful_run_usd[::3]


def test_limit_hits_are_counted_by_limit(backend: MetricsBackend) -> None:
    """Answers that were cut off and windows that were full stand apart."""
    record(backend, llm_call())
    for limit in ("finish_length", "finish_length", "context_window"):
        backend.noted(
            Event(E_TOKEN_LIMIT_EXCEEDED, "error", "WARNING", "hit", details={"model": SMALL, "limit": limit})
        )
    assert {"context_window": 1, "finish_length": 2} == figures(backend).limit_hits


def test_models_of_one_agent(backend: MetricsBackend) -> None:
    """With an agent only its calls are compared."""
    record(backend, llm_call(agent="A"), llm_call(agent="A"), llm_call(agent="B"), llm_call(BIG, agent="B"))
    assert [(SMALL, 2)] == [(each.model, each.calls) for each in compare(backend, agent="A").models]
    assert [(SMALL, 3), (BIG, 1)] == [(each.model, each.calls) for each in compare(backend).models]


def test_a_window_looks_back_so_far(backend: MetricsBackend, clock: ManualClock) -> None:
    """Calls before it are left out; what is kept of them is merged as time goes on."""
    record(backend, llm_call(outcome=Outcome.ERROR, error_type="E", first_chunk_ms=5), workflow_run(model=SMALL))
    clock.advance(3600)
    record(backend, llm_call(first_chunk_ms=10))
    clock.advance(600)
    record(backend, llm_call())
    assert (1, 2, 3) == tuple(figures(backend, **asked).calls for asked in ({"window": "5m"}, {"window": "30m"}, {}))
    assert ({}, {"E"}) == (figures(backend, window="30m").problems, set(figures(backend, window="2h").problems))
    assert (1, 2) == (
        figures(backend, window="30m").first_chunk_p50_ms.sample,
        figures(backend, window="3h").first_chunk_p50_ms.sample,
    )


def test_feedback_counts_for_the_model_of_the_run(tmp_path: Path, client: openai.OpenAI) -> None:
    """A verdict finds the model that its run called last; one that changes is counted once."""
    with capture(ledger=str(tmp_path / "ledger.db")) as captured:
        for n, model in enumerate([BIG, SMALL, SMALL]):
            with tp.workflow("triage", request_id=f"req-{n}"):
                client.chat.completions.create(model=model, messages=[{"role": "user", "content": "hello"}])
            tp.record_feedback(True, request_id=f"req-{n}", user="ada")
        tp.record_feedback(False, request_id="req-2", user="ada")
        told = {each.model: each.correctness_percent[::3] for each in tp.compare_models().models}
        assert {BIG: (100.0, 1), SMALL: (50.0, 2)} == told
        assert captured.golden_signals().user_confirmed_correctness_percent == pytest.approx(100 * 2 / 3)


def test_a_vote_taken_back_leaves_nothing_below_zero(client: openai.OpenAI) -> None:
    """In a window that holds only the change of a vote, the new vote counts and the old one is no less than nothing."""
    with capture(fake_clock=True) as captured:
        assert captured.clock is not None
        with tp.workflow("triage", request_id="req-1"):
            tp.experiment("prompt", ["control", "terse"], unit="ada")
            client.chat.completions.create(model=SMALL, messages=[{"role": "user", "content": "hello"}])
        tp.record_feedback(True, request_id="req-1", user="ada")
        captured.clock.advance(3600)
        tp.record_feedback(False, request_id="req-1", user="ada")
        for window in ("5m", None):
            (told,) = tp.compare_models(window=window).models
            assert (0.0, 1) == told.correctness_percent[::3]
            variants = tp.experiment_report("prompt", window=window).variants
            assert [(0.0, 1)] == [(each.correctness_percent, each.feedback) for each in variants if each.feedback]


def test_real_calls_are_compared(captured: Captured, client: openai.OpenAI) -> None:
    """Streams and plain calls of the real client have all figures."""
    for model in (BIG, SMALL):
        with tp.workflow("triage"):
            for stream in (False, True):
                options = {"stream_options": {"include_usage": True}} if stream else {}
                answer = client.chat.completions.create(
                    model=model, messages=[{"role": "user", "content": "hello"}], stream=stream, **options
                )
                if stream:
                    assert list(answer)
    told = captured.handle.compare_models()
    for each in told.models:
        assert (2, 100.0, 1) == (each.calls, each.success_rate.value, each.first_chunk_p50_ms.sample)
        assert 0 < (each.tokens_per_second.value or 0) < math.inf
        spent = each.cost_per_successful_run_usd.value
        assert spent == pytest.approx(2 * (each.cost_per_call_usd.value or 0)) == pytest.approx(each.total_cost_usd)


def test_what_calls_take_is_within_the_budgets() -> None:
    """The bytes that are counted for cells of calls are no fewer than they take, within a tenth."""
    bucket = Bucket()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(1_000):
        cell = bucket.cell(CellKey(Kind.LLM, f"w{number}", "a", "m"), 1_000)
        calls = cell.of_calls()
        for step in range(20):
            cell.latency.add(1.5**step)
            calls.time(0.01 * 2**step, 5_000_000 * 2**step if number % 2 else None, 100 + step)
            calls.spend(Decimal(step) / 1000, whole=True)
            calls.run(Decimal(step) / 1000, won=True)
        if number % 3 == 0:
            calls.fail("TimeoutError")
    size = bucket.pack()
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert used <= 1.1 * size


# --- verdicts -----------------------------------------------------------------------------------


def two_models(backend: MetricsBackend, calls: int) -> None:
    """Record as many calls of a dear and slow model as of a cheap and fast one; the dear one fails more seldom."""
    chance = random.Random(1)
    for model, rate, ms, usd in ((BIG, 0.99, 2_000, 0.01), (SMALL, 0.8, 500, 0.001)):
        for _ in range(calls):
            failed = {} if chance.random() < rate else {"outcome": Outcome.ERROR, "error_type": "TimeoutError"}
            cost = f"{usd * chance.uniform(0.5, 1.5):.6f}"
            record(backend, llm_call(model, ms=ms * chance.lognormvariate(0, 0.3), cost=cost, **failed))


def test_the_best_is_told_where_it_is_clear(backend: MetricsBackend) -> None:
    """Each figure has its own best model."""
    two_models(backend, 200)
    told = compare(backend)
    assert (Standing.BEST, BIG) == finding(told, "success_rate")
    assert (Standing.BEST, SMALL) == finding(told, "p95_latency_ms")
    assert (Standing.BEST, SMALL) == finding(told, "cost_per_call_usd")
    assert (Standing.BEST, SMALL) == finding(told, "tokens_per_second")


def test_small_samples_are_not_judged(backend: MetricsBackend) -> None:
    """With 29 calls there is no verdict, however far the models are apart."""
    two_models(backend, 29)
    assert {(Standing.TOO_FEW, None)} == {(each.standing, each.best) for each in compare(backend).findings}


def test_tails_take_more_calls(backend: MetricsBackend) -> None:
    """With 60 calls medians are compared, and 95th percentiles are not: nothing bounds them above."""
    two_models(backend, 60)
    told = compare(backend)
    assert (Standing.BEST, SMALL) == finding(told, "p50_latency_ms")
    assert (Standing.TOO_FEW, None) == finding(told, "p95_latency_ms")
    assert told.models[0].p95_latency_ms.high is None


def test_models_alike_have_no_best(backend: MetricsBackend) -> None:
    """Where intervals overlap there is no clear difference."""
    for model in (BIG, SMALL):
        for n in range(300):
            record(backend, llm_call(model, ms=100 + n % 50, usage=TokenUsage(100, 40 + n % 20)))
    told = compare(backend)
    assert (Standing.UNCLEAR, None) == finding(told, "success_rate")
    assert (Standing.UNCLEAR, None) == finding(told, "p50_latency_ms")


def test_the_best_of_three_is_clear_of_both(backend: MetricsBackend) -> None:
    """A third model that comes close takes the verdict away; one with few calls does not take part."""
    two_models(backend, 200)
    record(backend, *[llm_call("close", ms=480.0, cost="0.001", usage=TokenUsage(100, 50))] * 10)
    before = compare(backend)
    for n in range(190):
        record(backend, llm_call("close", ms=400.0 + n, cost=f"0.00{90 + n // 9:03d}"))
    after = compare(backend)
    assert [(Standing.BEST, SMALL), (Standing.UNCLEAR, None)] == [
        finding(told, "cost_per_call_usd") for told in (before, after)
    ]
    assert {BIG, SMALL} == {model for each in before.findings for model in each.compared}


def test_one_model_has_nothing_to_be_compared_with(backend: MetricsBackend) -> None:
    """Its figures stand alone."""
    record(backend, *[llm_call()] * 50)
    assert () == compare(backend).findings


# --- intervals ----------------------------------------------------------------------------------


@given(st.integers(0, 500), st.integers(1, 500))
def test_rates_have_wilsons_interval(part: int, whole: int) -> None:
    """It is the one that scipy computes."""
    part = min(part, whole)
    told = _estimates.rate(part, whole)
    low, high = stats.binomtest(part, whole).proportion_ci(method="wilson")
    assert (told.low, told.high) == (pytest.approx(100 * low, abs=1e-9), pytest.approx(100 * high, abs=1e-9))


@pytest.mark.parametrize("percent", [50, 95, 99])
@pytest.mark.parametrize("count", [100, 1_000])
def test_quantiles_lie_in_their_interval(percent: int, count: int) -> None:
    """In 95 % of samples or more the true quantile lies between the two order statistics."""
    generator, truth = np.random.default_rng(1), math.exp(stats.norm.ppf(percent / 100))
    inside = 0
    for _ in range(200):
        sketch = Sketch()
        for value in generator.lognormal(size=count):
            sketch.add(float(value))
        told = _estimates.quantile(sketch, percent)
        inside += (told.low or 0) * 0.99 <= truth <= (told.high or math.inf) * 1.01
    assert inside >= 0.92 * 200


def test_means_and_ratios_lie_in_their_interval() -> None:
    """In some 95 % of samples the true mean, and the true ratio of sums, lie in the interval."""
    generator = np.random.default_rng(2)
    seconds = generator.lognormal(0, 0.5, (2_000, 200))
    tokens = seconds * 50 * generator.lognormal(0, 0.3, (2_000, 200))
    ratio, mean = 50 * math.exp(0.3**2 / 2), math.exp(0.5**2 / 2)
    inside = [0, 0]
    for above, below in zip(tokens, seconds, strict=True):
        told = _estimates.ratio(
            above.sum(), below.sum(), (above**2).sum(), (above * below).sum(), (below**2).sum(), len(above)
        )
        inside[0] += (told.low or 0) <= ratio <= (told.high or 0)
        told = _estimates.mean(below.sum(), (below**2).sum(), len(below))
        inside[1] += (told.low or 0) <= mean <= (told.high or 0)
    assert [pytest.approx(0.95, abs=0.02)] * 2 == [each / 2_000 for each in inside]


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5])
def test_the_cost_of_a_rare_success_lies_in_its_interval(share: float) -> None:
    """So does cost per success where few of a hundred runs succeed; where it might be none at all there is no end."""
    generator = np.random.default_rng(3)
    truth = math.exp(0.7**2 / 2) / share
    told = []
    for _ in range(2_000):
        won, cost = generator.random(100) < share, generator.lognormal(0, 0.7, 100)
        told.append(_estimates.ratio(
            cost.sum(), won.sum(), (cost**2).sum(), (cost * won).sum(), won.sum(), 100
        ))  # fmt: skip
    bounded = [(each.low, each.high) for each in told if each.low is not None and each.high is not None]
    assert len(bounded) > 1_000
    assert sum(low <= truth <= high for low, high in bounded) >= 0.93 * len(bounded)
    assert all(each.low is None for each in told if (each.value or 0) > 50)


def test_a_mean_of_few_has_no_interval() -> None:
    """With 29 values there is a mean and nothing around it; with none there is nothing."""
    assert (2.0, None, None, 29) == _estimates.mean(58.0, 200.0, 29)
    assert None not in _estimates.mean(60.0, 200.0, 30)
    assert (None, None, None, 0) == _estimates.mean(0.0, 0.0, 0) == _estimates.rate(0, 0)


# --- how it is asked and shown ------------------------------------------------------------------


def test_a_window_that_cannot_be_read_is_refused(backend: MetricsBackend) -> None:
    """As it is for the golden signals."""
    with pytest.raises(tp.ConfigurationError, match="window"):
        compare(backend, window="soon")


def test_asking_needs_instrumentation() -> None:
    """Before instrument() there is nothing to compare."""
    with pytest.raises(tp.NotInstrumentedError):
        tp.compare_models()


def test_nothing_called_yet(backend: MetricsBackend) -> None:
    """An empty comparison says so."""
    assert "Models, last 5m: no call yet" == str(compare(backend, window="5m"))


def test_a_comparison_is_shown_as_a_table(backend: MetricsBackend) -> None:
    """Models stand beside each other, and the last column names the best."""
    record(backend, *[llm_call(ms=500.0)] * 40)
    record(backend, *[llm_call(BIG, ms=2000.0, cost="0.001")] * 38)
    record(backend, *[llm_call(BIG, outcome=Outcome.ERROR, error_type="TimeoutError", usage=None, cost=None)] * 2)
    expected = """\
Models, since the start, agent PlannerAgent
                                                   gpt-4o                           gpt-4o-mini                 best
  calls                                                40                                    40
  success rate                95.00 % (83.50 % … 98.62 %)         100.00 % (91.24 % … 100.00 %)  no clear difference
    TimeoutError                5.00 % (1.38 % … 16.50 %)                                     –
  p50 latency              2,000 ms (2,000 ms … 2,000 ms)              500 ms (500 ms … 500 ms)          gpt-4o-mini
  p95 latency                     2,000 ms (2,000 ms … –)                   500 ms (500 ms … –)              too few
  p99 latency                     2,000 ms (2,000 ms … –)                   500 ms (500 ms … –)              too few
  first chunk, p50                                      –                                     –
  first chunk, p95                                      –                                     –
  tokens a second                      25.0 (25.0 … 25.0)                 100.0 (100.0 … 100.0)          gpt-4o-mini
  cost per call            $0.00100 ($0.00100 … $0.00100)  $0.0000525 ($0.0000525 … $0.0000525)          gpt-4o-mini
  cost per successful run                               –                                     –
  correctness                                           –                                     –
  cached input                                     0.00 %                                0.00 %
  token limits hit                                      0                                     0
A run counts for the model that it called last.
Models that were given different work cannot be told apart by this; experiment() draws them by lot."""
    told = compare(backend, agent="PlannerAgent")
    assert expected == str(told)
    as_json = json.loads(json.dumps(told.as_dict(), allow_nan=False))
    assert {"value": 95.0, "sample": 40} == {
        name: as_json["models"][0]["success_rate"][name] for name in ("value", "sample")
    }
    assert {"best", "no clear difference", "too few"} == {each["standing"] for each in as_json["findings"]}


def test_html_is_escaped(backend: MetricsBackend) -> None:
    """Names from outside do not become markup."""
    record(backend, llm_call("<script>"))
    shown = compare(backend)._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown


def test_a_comparison_does_not_change(backend: MetricsBackend) -> None:
    """The answer is a snapshot: later calls are not in it."""
    record(backend, llm_call())
    told = compare(backend)
    before = str(told)
    record(backend, llm_call(outcome=Outcome.ERROR, error_type="E"))
    assert before == str(told)
    with pytest.raises(AttributeError):
        told.models = ()  # type: ignore[misc]
