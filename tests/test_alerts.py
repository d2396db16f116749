"""Alerts in process: when a callback is called, with what, in which thread, and what it cannot do to the agent."""

import asyncio
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import openai
import pytest

import taskpilot_instrument as tp
from taskpilot_instrument import Alert, AlertFired, Runaway, TokenLimit, TokenUsage
from taskpilot_instrument._guard import swallowed
from taskpilot_instrument._operation import current
from taskpilot_instrument.embedded import EmbeddedServer, Reply
from taskpilot_instrument.testing import Captured, capture

MESSAGES: Any = [{"role": "user", "content": "hello there"}]
ASK: dict[str, Any] = {"model": "gpt-4o-mini", "messages": MESSAGES}


class Fired(list[AlertFired]):
    """A callback that keeps what it was given."""

    def __call__(self, fired: AlertFired) -> None:
        """Keep it."""
        self.append(fired)


@pytest.fixture
def fired() -> Fired:
    """A callback that keeps what it was given."""
    return Fired()


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """Assert that the thread of the alerts ends with the instrumentation."""
    yield
    assert [] == [thread.name for thread in threading.enumerate() if thread.name == "taskpilot-alerts"]


def runs(count: int, *, failing: int = 0) -> None:
    """Make workflow runs, some of which fail."""
    for place in range(count):
        with tp.workflow("triage") as run:
            if place < failing:
                run.fail("no answer")


def wait(captured: Captured) -> None:
    """Have every alert looked at, and wait until the callbacks have returned."""
    assert captured.handle.force_flush()


# --- counted signals ----------------------------------------------------------------------------


def limit_hit(captured: Captured) -> None:
    """Hit a token limit, by hand."""
    result = {"model": "gpt-4o-mini", "usage": {}, "choices": [{"finish_reason": "length"}]}
    tp.track_llm_metrics(result, "PlannerAgent", captured.handle.metrics)


def test_an_event_fires_at_once_and_says_all(fired: Fired) -> None:
    """Name, signal, value, threshold, window, time and a sentence."""
    with capture(alerts=[Alert(fired, "token_limit")], fake_clock=True) as captured:
        limit_hit(captured)
        wait(captured)
    message = "token_limit is 1 in 5m, above 0: chat gpt-4o-mini stopped at the token limit"
    at = datetime.fromtimestamp(1_700_000_000, UTC)
    assert [AlertFired("token_limit above 0", "token_limit", 1, 0.0, "5m", at, message)] == fired


def test_an_event_needs_no_flush() -> None:
    """The thread looks when something happens."""
    called = threading.Event()
    with capture(alerts=[Alert(lambda _fired: called.set(), "token_limit")]) as captured:
        limit_hit(captured)
        assert called.wait(10)


def test_cool_down(fired: Fired) -> None:
    """What happens again before the cool-down is over is counted, and does not fire; nor does time alone."""
    with capture(alerts=[Alert(fired, "token_limit", window="1h", cooldown_s=60)], fake_clock=True) as captured:
        assert captured.clock is not None
        for pause in (0, 30, 29.9):
            captured.clock.advance(pause)
            limit_hit(captured)
            wait(captured)
        assert [1] == [each.value for each in fired]
        captured.clock.advance(600)
        wait(captured)
        assert [1] == [each.value for each in fired]
        limit_hit(captured)
        wait(captured)
        assert [1, 4] == [each.value for each in fired]


def test_a_threshold_of_events(fired: Fired) -> None:
    """So many within the window; what is longer ago does not count."""
    alert = Alert(fired, "token_limit", above=2, window="1m", name="cut off")
    with capture(alerts=[alert], fake_clock=True) as captured:
        assert captured.clock is not None
        for pause in (0, 10, 60, 10):
            captured.clock.advance(pause)
            limit_hit(captured)
            wait(captured)
        assert [] == fired
        limit_hit(captured)
        wait(captured)
    assert [("cut off", 3, 2.0)] == [(each.name, each.value, each.threshold) for each in fired]


@pytest.mark.openai
def test_each_event_reaches_the_alerts_that_are_about_it(server: EmbeddedServer, client: openai.OpenAI) -> None:
    """Limits, policies, guardrails and runaway runs; a runaway run is a violation of a policy as well."""
    calls: list[str] = []

    def deny(subject: Any) -> str | None:
        return "too long" if len(subject.text) > 10 else None

    @tp.observed_agent(name="Planner")
    def plan(text: str) -> str:
        return text

    @tp.observed_tool
    def look() -> None:
        pass

    signals = ("token_limit", "budget", "policy", "guardrail", "runaway")
    alerts = [Alert(lambda each: calls.append(each.signal), signal, cooldown_s=0) for signal in signals]
    with capture(
        alerts=alerts,
        policies=[tp.Policy(deny, "short", moments=["agent_input"])],
        guardrails=[tp.Guardrail("polite", check_input=lambda text: text != "bad")],
        runaway=Runaway(same_tool_calls=2),
        budgets=[tp.Budget("small", 0.000001, on_exceed="block", window="total")],
        ledger="memory",
        token_limits=[TokenLimit(1, on_exceed="block", workflow="limited")],
    ) as captured:

        def expect(*expected: str, after: Callable[[], Any]) -> None:
            calls.clear()
            try:
                after()
            except tp.BlockedError:
                pass
            wait(captured)
            assert sorted(expected) == sorted(calls)

        def limited() -> None:
            with tp.workflow("limited"):
                client.chat.completions.create(**ASK)

        def circle() -> None:
            with tp.workflow("triage"):
                look()
                look()

        expect(after=lambda: plan("fine"))
        expect("policy", after=lambda: plan("far too long"))
        expect("guardrail", after=lambda: plan("bad"))
        expect("policy", "runaway", after=circle)
        expect("token_limit", after=limited)
        expect("budget", after=lambda: client.chat.completions.create(**ASK, max_tokens=1_000))


@pytest.mark.openai
def test_a_budget_that_only_warns(server: EmbeddedServer, client: openai.OpenAI, fired: Fired) -> None:
    """A threshold of a budget that a call crossed fires too."""
    server.script(Reply("x", usage=TokenUsage(100, 100)))
    with capture(alerts=[Alert(fired, "budget")], budgets=[tp.Budget("b", "0.000001")], ledger="memory") as captured:
        client.chat.completions.create(**ASK)
        wait(captured)
    assert ["budget"] == [each.signal for each in fired]


def test_what_was_said_is_not_in_an_alert(fired: Fired) -> None:
    """Captured content stands in the decision log, and does not leave with an alert."""

    @tp.observed_agent(name="Planner")
    def plan(text: str) -> str:
        return text

    policy = tp.Policy(lambda _subject: "no", "never")
    with capture(alerts=[Alert(fired, "policy")], policies=[policy], capture_content=True) as captured:
        with pytest.raises(tp.PolicyViolationError):
            plan("sorrel soup")
        wait(captured)
        assert "sorrel" in str(captured.logs)
    assert ["policy is 1 in 5m, above 0: never, deny"] == [each.message for each in fired]


# --- measured signals ---------------------------------------------------------------------------


def test_success_rate(fired: Fired) -> None:
    """It fires below its threshold, is silent during the cool-down, and fires again afterwards if still below."""
    alert = Alert(fired, "success_rate", below=95, window="10m", cooldown_s=300)
    with capture(alerts=[alert], fake_clock=True) as captured:
        assert captured.clock is not None
        runs(20, failing=1)
        wait(captured)
        assert [] == fired  # exactly 95 %
        runs(1, failing=1)
        wait(captured)
        wait(captured)
        assert [("success_rate below 95", 95.0, "10m")] == [(each.name, each.threshold, each.window) for each in fired]
        assert pytest.approx(100 * 19 / 21) == fired[0].value
        assert "success_rate is 90.4762 in 10m, below 95" == fired[0].message
        captured.clock.advance(299)
        wait(captured)
        assert 1 == len(fired)
        captured.clock.advance(1)
        wait(captured)
        assert 2 == len(fired)
        captured.clock.advance(900)  # nothing bad is left in the window
        runs(20)
        wait(captured)
        assert 2 == len(fired)


def test_recovered_and_bad_again_within_the_cool_down(fired: Fired) -> None:
    """Between two calls there is the cool-down, whatever happened meanwhile."""
    alert = Alert(fired, "success_rate", below=90, window="1m", cooldown_s=600)
    with capture(alerts=[alert], fake_clock=True) as captured:
        assert captured.clock is not None
        for pause, failing in ((0, 10), (120, 0), (120, 10), (361, 10)):
            captured.clock.advance(pause)
            runs(10, failing=failing)
            wait(captured)
        assert 2 == len(fired)


def test_too_little_to_judge_by(fired: Fired) -> None:
    """One failed run at night wakes nobody."""
    alerts = [Alert(fired, "success_rate", below=95), Alert(fired, "success_rate", below=95, min_sample=3, name="few")]
    with capture(alerts=alerts) as captured:
        runs(2, failing=2)
        wait(captured)
        assert [] == fired
        runs(1)
        wait(captured)
        assert ["few"] == [each.name for each in fired]
        runs(7)
        wait(captured)
        assert ["few", "success_rate below 95"] == [each.name for each in fired]


@pytest.mark.parametrize(
    ("signal", "beyond", "expected"),
    [
        ("p95_latency_ms", 1_000, 2_000),
        ("cost_per_successful_task_usd", 0.1, 0.15),
        ("policy_violation_rate_percent", 5, 10),
        ("spend_usd_per_minute", 0.1, 1.5 / 5),
        ("tokens_per_minute", 1_000_000, 10 * 1_000_010 / 5),
    ],
)
@pytest.mark.openai
def test_each_measured_signal(
    server: EmbeddedServer, client: openai.OpenAI, fired: Fired, signal: str, beyond: float, expected: float
) -> None:
    """Each has the value that the golden signals and metrics have."""
    server.script(*[Reply("x", usage=TokenUsage(1_000_000, 10)) for _ in range(10)])
    alerts = [Alert(fired, signal, above=beyond), Alert(fired, signal, above=beyond * 100)]
    with capture(alerts=alerts, fake_clock=True) as captured:
        assert captured.clock is not None
        for place in range(10):
            with tp.workflow("triage"):
                client.chat.completions.create(**ASK)
                captured.clock.advance(2)
                if not place:
                    captured.metrics.record_policy_violation("Planner", "no_pii")
        wait(captured)
    (one,) = fired
    assert signal == one.signal
    assert pytest.approx(expected, rel=0.01) == one.value


def test_user_correctness(fired: Fired) -> None:
    """Its sample is what users said, not what ran."""
    with capture(alerts=[Alert(fired, "user_confirmed_correctness_percent", below=80)]) as captured:
        runs(20)
        for correct in [True] * 7 + [False] * 2:
            captured.metrics.record_feedback(correct)
        wait(captured)
        assert [] == fired
        captured.metrics.record_feedback(correct=False)
        wait(captured)
    assert [70.0] == [each.value for each in fired]


def test_unknown_is_no_alert(fired: Fired) -> None:
    """Where nothing ran, nothing is too low."""
    with capture(alerts=[Alert(fired, "success_rate", below=95, min_sample=1)]) as captured:
        wait(captured)
    assert [] == fired


# --- callbacks ----------------------------------------------------------------------------------


async def test_callbacks_run_in_a_thread_of_ours() -> None:
    """Neither in the thread of the agent nor in its event loop, and outside of its operation."""
    seen: list[Any] = []

    def plain(_fired: AlertFired) -> None:
        seen.append((threading.current_thread().name, current()))

    async def coroutine(_fired: AlertFired) -> None:
        await asyncio.sleep(0)
        seen.append((threading.current_thread().name, current(), asyncio.get_running_loop() is mine))

    mine = asyncio.get_running_loop()
    with capture() as captured, tp.workflow("triage"):
        captured.handle.on_alert(plain, "token_limit")
        captured.handle.on_alert(coroutine, "token_limit")
        limit_hit(captured)
        wait(captured)
    assert [("taskpilot-alerts", None), ("taskpilot-alerts", None, False)] == seen


@pytest.mark.parametrize("error", [ValueError("sorrel"), SystemExit(1), asyncio.CancelledError()])
def test_a_callback_that_raises(fired: Fired, caplog: pytest.LogCaptureFixture, error: BaseException) -> None:
    """It is counted and logged once by its type; the agent, the other alerts and the next call do not notice."""

    async def broken(_fired: AlertFired) -> None:
        raise error

    alerts = [Alert(broken, "token_limit", cooldown_s=0), Alert(fired, "token_limit", cooldown_s=0)]
    with capture(alerts=alerts, reraise=False) as captured, caplog.at_level(logging.WARNING, "taskpilot_instrument"):
        for _ in range(2):
            limit_hit(captured)
            wait(captured)
        assert {"alert_callback": 2} == swallowed()
        assert {"alert_callback": 2} == captured.handle.health().errors_swallowed
    assert [1, 2] == [each.value for each in fired]
    assert 1 == len(caplog.records)
    assert "sorrel" not in caplog.text


def test_a_callback_that_hangs_holds_nobody_up() -> None:
    """Agents go on, and what happens meanwhile is counted; a flush gives up in time."""
    started, go_on, values = threading.Event(), threading.Event(), []

    def slow(fired: AlertFired) -> None:
        values.append(fired.value)
        started.set()
        go_on.wait(30)

    with capture(alerts=[Alert(slow, "token_limit", cooldown_s=0)]) as captured:
        limit_hit(captured)
        assert started.wait(10)
        for _ in range(10_000):
            limit_hit(captured)
        alerts = captured.handle.parts.alerts
        assert alerts is not None
        assert not alerts.flush(0.05)
        go_on.set()
        wait(captured)
    assert [1, 10_001] == values


def test_a_callback_may_use_the_library(fired: Fired) -> None:
    """It may flush, ask for signals, add alerts, and even undo the instrumentation, without waiting for itself."""

    def busy(_fired: AlertFired) -> None:
        captured.handle.golden_signals()
        captured.handle.on_alert(fired, "token_limit")
        captured.handle.force_flush()
        limit_hit(captured)
        captured.handle.uninstrument()
        done.set()

    done = threading.Event()
    with capture() as captured:
        captured.handle.on_alert(busy, "token_limit")
        limit_hit(captured)
        assert done.wait(10)


# --- beginning and end --------------------------------------------------------------------------


def test_no_alert_no_thread() -> None:
    """The thread begins with the first alert and ends with the instrumentation; then an alert comes too late."""
    with capture() as captured:
        assert None is captured.handle.parts.alerts
        alert = captured.handle.on_alert(print, "token_limit")
        assert Alert(print, "token_limit") == alert
        assert "taskpilot-alerts" in {thread.name for thread in threading.enumerate()}
    captured.handle.on_alert(print, "token_limit")


def test_switched_off(fired: Fired) -> None:
    """Where nothing is observed, nothing is watched."""
    with tp.Instrumentation(tp.Settings.resolve({"enabled": False, "alerts": [Alert(fired, "policy")]}, {})) as handle:
        handle.on_alert(fired, "policy")
        assert None is handle.parts.alerts


SCRIPT = """
import os, sys
import taskpilot_instrument as tp

def cut_off():
    result = {"model": "m", "usage": {}, "choices": [{"finish_reason": "length"}]}
    tp.track_llm_metrics(result, "PlannerAgent", handle.metrics)

def tell(fired):
    print(os.getpid() == parent, fired.signal, fired.value, flush=True)

parent = os.getpid()
handle = tp.instrument(logs="off", alerts=[tp.Alert(tell, "token_limit", cooldown_s=0)])
handle.on_alert(tell, "success_rate", below=95, min_sample=1)
"""


def run_script(rest: str) -> list[str]:
    """Run the script with more lines at its end; return the lines that it printed."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT + rest], capture_output=True, text=True, check=True, timeout=60
    )  # fmt: skip
    return sorted(done.stdout.splitlines())


def test_alerts_of_a_script_that_ends() -> None:
    """What is due when the process ends is still told."""
    assert ["True success_rate 0.0", "True token_limit 1"] == run_script("""
with tp.workflow("triage") as run:
    run.fail("no answer")
    cut_off()
""")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_forked_processes_have_alerts_of_their_own() -> None:
    """A worker that was forked watches what it does itself, with a thread of its own, beginning at nothing."""
    assert ["False token_limit 1", "True token_limit 1"] == run_script("""
cut_off()
handle.force_flush()
child = os.fork()
if not child:
    cut_off()
    handle.force_flush()
    os._exit(0)
os.waitpid(child, 0)
""")


# --- definitions --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"callback": "print"}, "callback='print'"),
        ({"signal": "succes_rate"}, "signal='succes_rate'.*did you mean 'success_rate'"),
        ({"above": None}, "above and below: expected one of the two"),
        ({"below": 5}, "above and below: expected one of the two"),
        ({"above": -1}, "above=-1"),
        ({"above": "5"}, "above='5'"),
        ({"window": "5 minutes"}, "window='5 minutes'.*such as 90s, 5m or 1h"),
        ({"window": "2s"}, "window='2s'"),
        ({"cooldown_s": -1}, "cooldown_s=-1"),
        ({"min_sample": 0}, "min_sample=0"),
        ({"name": ""}, "name=''"),
        ({"signal": "policy", "above": None, "below": 5}, "below=5: 'policy' is counted"),
    ],
)
def test_wrong_definitions_are_refused(fields: dict[str, Any], named: str) -> None:
    """The message names the field and says what would be right; on_alert says the same."""
    given: dict[str, Any] = {"callback": print, "signal": "p95_latency_ms", "above": 5_000, **fields}
    with pytest.raises(tp.ConfigurationError, match=f"Alert: {named}"):
        Alert(**given)
    with capture() as captured, pytest.raises(tp.ConfigurationError, match=f"Alert: {named}"):
        captured.handle.on_alert(**given)


def test_wrong_settings_are_refused() -> None:
    """What is no alert is refused when the application starts."""
    with pytest.raises(tp.ConfigurationError, match=r"alerts: expected a list of Alert\(…\)"):
        tp.Instrumentation(tp.Settings.resolve({"alerts": [print]}, {}))
