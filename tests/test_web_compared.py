"""Models, experiments, agents and signals over time, as the API and the page are given them."""

import asyncio
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import openai
import pytest
from browsing import PlannerAgent
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import taskpilot_instrument as tp
from taskpilot_instrument import _guard
from taskpilot_instrument.testing import Captured, FakeClock, capture
from taskpilot_instrument.web import Server, serve
from taskpilot_instrument.web.live import Live, Paced
from taskpilot_instrument.web.series import Series


@tp.observed_agent
class ExecutorAgent:
    """Fails."""

    def run(self) -> None:
        """Run."""
        raise ValueError("no")


@pytest.fixture
def api(shown: tuple[Captured, Server]) -> Iterator[httpx.Client]:
    """A client of that server."""
    with httpx.Client(base_url=shown[1].url) as client:
        yield client


def experiment_runs(count: int) -> None:
    """Make runs of an experiment, each of a user of its own."""
    for number in range(count):
        with tp.workflow("triage"):
            tp.experiment("planner-prompt", ["control", "terse"], unit=f"user-{number}")


# --- models -------------------------------------------------------------------------------------


def test_models(shown: tuple[Captured, Server], api: httpx.Client, client: openai.OpenAI) -> None:
    """The models are compared as the library compares them, filtered as asked."""
    for model in ("gpt-4o-mini", "gpt-4o-mini", "gpt-4.1"):
        PlannerAgent().run(client, model)
    found = api.get("/models").json()
    assert json.loads(json.dumps(shown[0].handle.compare_models().as_dict())) == found
    assert [("gpt-4o-mini", 2), ("gpt-4.1", 1)] == [(each["model"], each["calls"]) for each in found["models"]]
    assert [900, "PlannerAgent", 2] == [
        (asked := api.get("/models", params={"window": "15m", "agent": "PlannerAgent"}).json())["window_seconds"],
        asked["agent"],
        len(asked["models"]),
    ]
    assert [] == api.get("/models", params={"agent": "nobody"}).json()["models"]
    assert 422 == api.get("/models", params={"window": "yesterday"}).status_code
    told = api.get("/models", params={"reprice": "gpt-4o, gpt-4.1-nano"}).json()["models"]
    assert [["gpt-4o", "gpt-4.1-nano"]] * 2 == [list(each["repriced"]) for each in told]
    assert 422 == api.get("/models", params={"reprice": "no-such-model"}).status_code


# --- experiments --------------------------------------------------------------------------------


def test_experiments(shown: tuple[Captured, Server], api: httpx.Client) -> None:
    """Experiments are listed by name, and each has its report; one of a window is not judged."""
    assert [] == api.get("/experiments").json()
    experiment_runs(40)
    assert ["planner-prompt"] == api.get("/experiments").json()
    found = api.get("/experiments/planner-prompt").json()
    assert json.loads(json.dumps(shown[0].handle.experiment_report("planner-prompt").as_dict())) == found
    assert 40 == sum(each["runs"] for each in found["variants"])
    assert "not judged" == api.get("/experiments/planner-prompt", params={"window": "1h"}).json()["verdict"]
    assert 422 == api.get("/experiments/planner-prompt", params={"window": "yesterday"}).status_code


def test_an_unknown_experiment_is_not_found(shown: tuple[Captured, Server], api: httpx.Client) -> None:
    """The problem says which ones there are, or how one comes about."""
    assert "has to end first" in api.get("/experiments/nothing").json()["hint"]
    experiment_runs(1)
    answer = api.get("/experiments/nothing")
    assert 404 == answer.status_code
    assert "known are planner-prompt" == answer.json()["hint"]


def test_without_scipy_it_is_said(
    shown: tuple[Captured, Server], api: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where scipy is not installed the answer says what to install, and the page is still drawn."""
    experiment_runs(40)
    monkeypatch.setitem(sys.modules, "scipy", None)
    answer = api.get("/experiments/planner-prompt")
    assert 424 == answer.status_code
    assert "taskpilot-instrument[experiments]" in answer.json()["hint"]
    (told,) = api.get("/state").json()["experiments"]
    assert "taskpilot-instrument[experiments]" in told["problem"]


@given(name=st.text(min_size=1, max_size=20) | st.just("planner-prompt"), window=st.text(max_size=6) | st.just("1h"))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_question_breaks_the_server(
    shown: tuple[Captured, Server], api: httpx.Client, name: str, window: str
) -> None:
    """Whatever experiment, window and agent are asked for, the answer is no 5xx."""
    experiment_runs(1)
    assert api.get(f"/experiments/{quote(name, safe='')}", params={"window": window}).status_code < 500
    assert api.get("/models", params={"window": window, "agent": name}).status_code < 500


# --- agents -------------------------------------------------------------------------------------


def test_agents(shown: tuple[Captured, Server], api: httpx.Client, client: openai.OpenAI) -> None:
    """Those that fail come first, each with its runs, spend and violations, also those told by name."""
    for _ in range(2):
        PlannerAgent().run(client)
    with pytest.raises(ValueError, match="no"):
        ExecutorAgent().run()
    client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "x"}])
    shown[0].metrics.increment_counter("agent.PlannerAgent.policy.violations")
    failing, planner, outside = api.get("/state").json()["agents"]
    assert ("ExecutorAgent", 1, 1, 0.0) == tuple(failing[key] for key in ("agent", "runs", "failed", "success_rate"))
    assert ("PlannerAgent", 2, 0, 2, 1) == tuple(
        planner[key] for key in ("agent", "runs", "failed", "calls", "violations")
    )
    assert {"runs": 1, "cost_usd": 0.0, "unpriced": 0} == api.get("/signals").json()["failed"]
    assert 2 * outside["cost_usd"] == pytest.approx(planner["cost_usd"])
    assert ("none", 0, 1) == (outside["agent"], outside["runs"], outside["calls"])


def test_what_ails_the_instrumentation_is_told(shown: tuple[Captured, Server], api: httpx.Client) -> None:
    """Errors of our own, after which figures may not be whole, stand on the page too."""
    assert [] == api.get("/state").json()["health"]
    _guard.count("usage")
    assert ["errors of its own: usage 1"] == api.get("/state").json()["health"]


# --- over time ----------------------------------------------------------------------------------


def test_signals_over_time() -> None:
    """Each point is what its stretch of time held; where nothing ended there is none."""
    with capture(fake_clock=True) as captured, serve(0, handle=captured.handle) as server:
        assert captured.clock is not None
        captured.clock.advance(3600)
        for fails in (False, True, False):
            with pytest.raises(ValueError, match="no") if fails else tp.workflow("w"):
                if fails:
                    ExecutorAgent().run()
                captured.clock.advance(2)
            captured.clock.advance(60 if fails else 58)  # to the next minute
        series = httpx.get(server.url + "state", params={"window": "1h"}).json()["series"]
    assert (3600, 60) == (series["seconds"], series["width_s"])
    runs, rates = series["points"]["runs"], series["points"]["success_rate"]
    assert 60 == len(runs) == len(rates)
    assert [100.0, 0.0, 100.0] == [rate for rate in rates if rate is not None]
    assert 3 == sum(runs)
    assert all((rate is None) == (count == 0) for rate, count in zip(rates, runs, strict=True))
    latencies = [each for each in series["points"]["p95_latency_ms"] if each is not None]
    assert [pytest.approx(2000, rel=0.01), pytest.approx(0, abs=0.01), pytest.approx(2000, rel=0.01)] == latencies


@given(
    gaps=st.lists(st.integers(0, 4_000), max_size=20),
    looks=st.sets(st.integers(0, 19), max_size=5),
    window=st.sampled_from([60, 90, 900, 3_600, 7_200, 86_400]),
)
@settings(max_examples=60, deadline=None)
def test_no_run_is_lost_or_counted_twice(gaps: list[int], looks: set[int], window: int) -> None:
    """However runs lie in time, and whenever somebody looked before, each is in the point of its time."""
    clock = FakeClock()
    metrics = tp.MetricsBackend(clock=clock.clock)
    series, times = Series(metrics.windows), []
    for number, gap in enumerate(gaps):
        clock.advance(gap)
        metrics.increment_counter("workflow.runs")
        times.append(clock.clock.monotonic_ns() // 1_000_000_000)
        if number in looks:
            series.over(window)
    found = series.over(window)
    now = clock.clock.monotonic_ns() // 1_000_000_000 // found.width_s
    counted = Counter(time // found.width_s for time in times)
    expected = [counted[number] for number in range(now - len(found.points["runs"]) + 1, now + 1)]
    assert expected == found.points["runs"]
    assert window <= len(expected) * found.width_s < window + found.width_s


def test_a_young_process_shows_minutes() -> None:
    """Since the start, the period grows with the age of the process up to an hour."""
    clock = FakeClock()
    series = Series(tp.MetricsBackend(clock=clock.clock).windows)
    found = []
    for seconds in (0, 290, 20, 3_000, 80_000):
        clock.advance(seconds)
        found.append(series.over(None)[:2])
    assert [(300, 5), (300, 5), (900, 15), (3600, 60), (3600, 60)] == found


def test_feedback_has_its_time() -> None:
    """A vote, which comes from outside of a run, is shown at the time at which it came."""
    with capture(fake_clock=True) as captured, serve(0, handle=captured.handle) as server:
        assert captured.clock is not None
        captured.clock.advance(100)
        captured.handle.record_feedback(correct=False, request_id="req-1")
        (event,) = httpx.get(server.url + "state").json()["events"]
        assert captured.clock.clock.epoch_ns() / 1e9 == event["at"]


# --- one look for all ---------------------------------------------------------------------------


def test_all_who_watch_share_a_look() -> None:
    """However many ask at a time, there is one look for each window."""
    looks: list[str | None] = []
    live = Live(lambda window: (looks.append(window), f"seen {window}")[1])

    async def ask() -> list[str]:
        return await asyncio.gather(*(live.text(window) for window in ("1m", None) * 20))

    assert ["seen 1m", "seen None"] * 20 == asyncio.run(ask())
    assert Counter(["1m", None]) == Counter(looks)


def test_one_who_goes_away_leaves_the_others_their_look() -> None:
    """A watcher that is cancelled while the figures are computed takes nothing from the rest."""
    begun, go_on = threading.Event(), threading.Event()

    def look(_window: str | None) -> str:
        begun.set()
        go_on.wait(20)
        return "seen"

    async def ask() -> str:
        live = Live(look)
        first, second = (asyncio.create_task(live.text(None)) for _ in range(2))
        await asyncio.to_thread(begun.wait, 20)
        first.cancel()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await first
        return await second

    assert "seen" == asyncio.run(ask())


def test_a_look_that_fails_is_looked_again() -> None:
    """An error reaches those who asked, and the next one tries anew."""
    answers: Iterator[Any] = iter([tp.ConfigurationError("no such window"), "seen"])

    def look(_window: str | None) -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    async def ask() -> str:
        live = Live(look)
        for found in await asyncio.gather(live.text(None), live.text(None), return_exceptions=True):
            assert isinstance(found, tp.ConfigurationError)
        return await live.text(None)

    assert "seen" == asyncio.run(ask())


def test_what_takes_long_is_made_less_often() -> None:
    """What is made at once is made anew each time it is old; what took long is given again meanwhile."""
    paced, made = Paced(), Counter[str]()

    def make(what: str, seconds: float) -> int:
        time.sleep(seconds)
        made[what] += 1
        return made[what]

    for _ in range(3):
        paced.get("slow", "1h", lambda: make("slow", 0.5))  # good for ten seconds
    paced.get("slow", "24h", lambda: make("slow", 0))
    assert 2 == made["slow"]
    paced.get("quick", None, lambda: make("quick", 0))
    time.sleep(0.2)
    assert 2 == paced.get("quick", None, lambda: make("quick", 0))
