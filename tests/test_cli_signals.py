"""``taskpilot-instrument signals``: what it shows, and how it judges, against a page on a real socket."""

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

import taskpilot_instrument as tp
from taskpilot_instrument._signals_json import from_json, to_json
from taskpilot_instrument._waste import Waste, WasteInMetrics
from taskpilot_instrument.cli import main
from taskpilot_instrument.golden import of_sample
from taskpilot_instrument.sinks._signals import Sample
from taskpilot_instrument.testing import Captured, capture
from taskpilot_instrument.web import Server, serve


@pytest.fixture
def shown() -> Iterator[tuple[Captured, Server]]:
    """A page over instrumentation in memory."""
    with capture() as captured, serve(0, handle=captured.handle) as server:
        yield captured, server


@tp.observed_agent
class PlannerAgent:
    """Asks a model."""

    def run(self, client: openai.OpenAI, model: str) -> None:
        """Run."""
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": "x"}])


def run_some(captured: Captured, client: openai.OpenAI) -> None:
    """Make runs that tell each signal something: priced and unpriced calls, a failure, votes, a violation."""
    for number, model in enumerate(("gpt-4o-mini", "gpt-4.1", "nobody-knows-its-price")):
        with tp.workflow("triage", request_id=f"req-{number}"):
            PlannerAgent().run(client, model)
    with tp.workflow("triage") as run:
        run.fail("no")
    captured.handle.record_feedback(True, request_id="req-0")
    captured.handle.metrics.increment_counter("agent.PlannerAgent.policy.violations")


@pytest.mark.parametrize(
    "asked",
    [{}, {"window": "15m"}, {"agent": "PlannerAgent"}, {"workflow": "triage"}, {"model": "gpt-4.1"}, {"agent": "x"}],
)
def test_shows_what_python_shows(
    asked: dict[str, Any], shown: tuple[Captured, Server], client: openai.OpenAI, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command shows the signals of another process as that process would itself: units, sample sizes, scope."""
    captured, server = shown
    run_some(captured, client)
    options = [text for name, value in asked.items() for text in (f"--{name}", value)]
    assert 0 == main(["signals", "--url", server.url, *options])
    assert f"{captured.handle.golden_signals(**asked)}\n" == capsys.readouterr().out


def test_shows_it_where_nothing_ran(shown: tuple[Captured, Server], capsys: pytest.CaptureFixture[str]) -> None:
    """Before the first run, too."""
    assert 0 == main(["signals", "--url", shown[1].url])
    assert f"{shown[0].handle.golden_signals()}\n" == capsys.readouterr().out


def test_another_release_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """An answer in other words is exit status 2 and a sentence."""
    with capture() as captured, serve(0, handle=captured.handle) as server:
        assert 2 == main(["signals", "--url", f"{server.url}healthz?x="])
    assert "another version" in capsys.readouterr().err


# --- the gate -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--agent", "PlanerAgent"], "there is no run of agent PlanerAgent (agents are PlannerAgent), so"),
        (["--workflow", "tirage", "--window", "1h"], "of workflow tirage in the last 1h (workflows are triage), so"),
        (["--model", "gpt-5"], "of model gpt-5 (models are gpt-4.1, gpt-4o-mini, nobody-knows-its-price), so"),
        (["--agent", "PlannerAgent", "--model", "gpt-5"], "of agent PlannerAgent, model gpt-5 (models are"),
    ],
)
def test_a_gate_for_a_name_without_a_run_does_not_pass(
    options: list[str],
    said: str,
    shown: tuple[Captured, Server],
    client: openai.OpenAI,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing was judged, so the gate has neither passed nor failed: exit status 2, and a sentence that says why."""
    run_some(shown[0], client)
    for fail_on in ("warning", "critical"):
        assert 2 == main(["signals", "--url", shown[1].url, "--fail-on", fail_on, *options])
        assert said in capsys.readouterr().err
    assert 0 == main(["signals", "--url", shown[1].url, *options])


def test_a_gate_before_the_first_run_does_not_pass(
    shown: tuple[Captured, Server], capsys: pytest.CaptureFixture[str]
) -> None:
    """Where nothing ran at all, a gate has nothing to judge either."""
    assert 2 == main(["signals", "--url", shown[1].url, "--fail-on", "warning"])
    assert "nothing ran, so there is nothing for --fail-on to judge" in capsys.readouterr().err


def test_watching_waits_for_the_first_run(shown: tuple[Captured, Server]) -> None:
    """With ``--watch`` the gate says once that nothing ran, and judges what runs later."""
    command = [sys.executable, "-m", "taskpilot_instrument.cli", "signals", "--url", shown[1].url]
    watching = [*command, "--watch", "1", "--fail-on", "critical", "--format", "json"]
    process = subprocess.Popen(watching, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        assert [0, 0] == [json.loads(process.stdout.readline())["runs"] for _ in range(2)]
        with tp.workflow("triage") as run:
            run.fail("no")
        out, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (1, "critical") == (process.returncode, json.loads(out.splitlines()[-1])["verdict"])
    assert 1 == said.count("Waiting for it.")


def test_a_fleet_is_asked_with_the_core_alone() -> None:
    """``--source`` needs no server of ours, so it works where the extra ``web`` is not installed."""
    program = (
        "import sys\nfor name in ('starlette', 'uvicorn', 'rich'):\n    sys.modules[name] = None\n"
        "from taskpilot_instrument.cli import main\nsys.exit(main(['signals', '--source', 'http://127.0.0.1:1']))\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert 2 == ended.returncode, ended.stderr
    assert "cannot be asked" in ended.stderr
    assert "Traceback" not in ended.stderr


# --- the way there ------------------------------------------------------------------------------


counts = st.integers(0, 10**9)
sums = st.decimals(0, 10**6, places=12)
SAMPLES = st.builds(
    Sample,
    runs=counts,
    successes=counts,
    p95_ms=st.none() | st.floats(0, 1e9),
    timed=counts,
    spent_usd=st.none() | sums,
    calls=st.none() | counts,
    priced=st.none() | counts,
    unpriced=st.none() | counts,
    violations=st.none() | counts,
    correct=st.none() | counts,
    incorrect=st.none() | counts,
    checked=st.none() | counts,
    check_failed=st.none() | counts,
    wasted=st.none()
    | st.builds(Waste, counts, counts, counts, counts, sums, counts)
    | st.builds(WasteInMetrics, counts, counts, counts, sums, st.none() | counts),
    p95_bounds_ms=st.none() | st.tuples(st.floats(0, 1e9), st.floats(0, 1e9) | st.just(math.inf)),
)


@given(
    sample=SAMPLES, seconds=st.none() | st.integers(60, 86_400), source=st.none() | st.just("http://prometheus:9090")
)
def test_whatever_is_known_is_shown(sample: Sample, seconds: int | None, source: str | None) -> None:
    """Signals from any source come out of strict JSON as they went in: every figure, unknown ones too."""
    found = of_sample(sample, seconds, "triage", None, None, source)
    told = from_json(json.loads(json.dumps(to_json(found), allow_nan=False)))
    assert (found, str(found)) == (told, str(told))
