"""``health()``: how well the instrumentation itself is doing."""

import io

import openai
import prometheus_client
import pytest
from openai._base_client import AsyncAPIClient
from runtime_kit import ASK, MESSAGES, Memory, create_task

import taskpilot_instrument as tp
from taskpilot_instrument import semconv
from taskpilot_instrument.embedded import EmbeddedServer, Reply
from taskpilot_instrument.patches._patching import Patch

pytestmark = [pytest.mark.openai, pytest.mark.usefixtures("clean_environment")]


def test_health_of_a_fresh_start(memory: Memory) -> None:
    """A fresh instrumentation is well: all targets found, nothing missing, swallowed, dropped or unpriced."""
    with tp.instrument(tracer_provider=memory.provider):
        state = tp.health()
    assert state.ok
    assert str(state).splitlines() == [
        "instrumentation   active",
        "patched           openai.SyncAPIClient.request, openai.AsyncAPIClient.request, "
        "openai.SyncAPIClient._process_response, openai.AsyncAPIClient._process_response",
        "missing           nothing",
        "errors swallowed  none",
        "LLM calls         0 seen at the transport, 0 recorded, 0 open",
        "cost coverage     no calls yet",
        "label overflow    none",
        "spans             to the application's tracer provider; 0 exported, 0 pending, 0 dropped",
    ]


@pytest.mark.parametrize("name", ["request", "_process_response"])
def test_missing_target(
    memory: Memory,
    client: openai.OpenAI,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    """A method that a release of openai lacks is reported, warned of if calls go unseen, and stops no other patch."""
    with monkeypatch.context() as renamed:
        renamed.delattr(AsyncAPIClient, name)
        with tp.instrument(tracer_provider=memory.provider) as handle:
            client.chat.completions.create(**ASK)
            state = handle.health()
    target = f"openai.AsyncAPIClient.{name}"
    assert state.missing == (target,)
    assert len(state.patched) == 3
    assert not state.ok
    assert f"missing           {target}" in str(state).splitlines()
    assert memory.names == ["chat gpt-4o-mini"]
    assert [target in record.getMessage() for record in caplog.records] == ([True] if name == "request" else [])


def test_patch_on_a_class_without_the_method() -> None:
    """A single patch tells whether its method was there, and undoing one that was not does nothing."""

    class Library:
        """Stands for somebody else's class."""

        limit = 3

        def call(self) -> str:
            return "called"

    patches = {
        name: Patch(Library, name, lambda wrapped, _self, args, kwargs: wrapped(*args, **kwargs).upper())
        for name in ("call", "gone", "limit")
    }
    assert {name: patch.apply() for name, patch in patches.items()} == {"call": True, "gone": False, "limit": False}
    assert Library().call() == "CALLED"
    for patch in patches.values():
        patch.undo()
    assert (Library().call(), Library.limit, hasattr(Library, "gone")) == ("called", 3, False)


class BrokenStream(io.StringIO):
    """A log stream on a disk that is full."""

    def write(self, text: str, /) -> int:
        """Fail."""
        raise OSError(28, "No space left on device")


def test_errors_swallowed(memory: Memory, caplog: pytest.LogCaptureFixture) -> None:
    """Internal errors are counted by place, warned of once, seen in health() and metrics, and start anew next time."""
    with tp.instrument(tracer_provider=memory.provider, logs=BrokenStream()) as handle:
        assert create_task("x") == create_task("x") == "created x"
        state = handle.health()
        counted = prometheus_client.REGISTRY.get_sample_value(semconv.M_INSTRUMENT_ERRORS, {"where": "log"})
    assert (state.errors_swallowed, counted, state.ok) == ({"log": 2}, 2, False)
    assert "errors swallowed  log: 2" in str(state).splitlines()
    assert len(caplog.records) <= 1
    assert memory.names == ["create_task"] * 2
    with tp.instrument(tracer_provider=memory.provider) as handle:
        assert handle.health().errors_swallowed == {}


def test_calls_seen_and_recorded(memory: Memory, client: openai.OpenAI) -> None:
    """Calls seen at the transport and calls recorded differ by the streams that are open."""

    def calls() -> tuple[int, int]:
        state = tp.health()
        return state.calls_seen, state.calls_recorded

    with tp.instrument(tracer_provider=memory.provider):
        client.models.list()
        assert calls() == (0, 0)
        client.chat.completions.create(**ASK)
        assert calls() == (1, 1)
        stream = client.chat.completions.create(**ASK, stream=True)
        assert calls() == (2, 1)
        next(stream)
        assert "2 seen at the transport, 1 recorded" in str(tp.health())
        stream.close()
        assert calls() == (2, 2)


def test_cost_coverage(memory: Memory, server: EmbeddedServer, client: openai.OpenAI) -> None:
    """Cost coverage is the share of billable calls with a price, unknown before the first."""
    server.script(Reply("x", model="house-model-1"), Reply("x"), Reply("x"))
    with tp.instrument(tracer_provider=memory.provider):
        coverages = [tp.health().cost_coverage]
        for model in ("house-model-1", "gpt-4o-mini", "gpt-4o-mini"):
            client.chat.completions.create(model=model, messages=MESSAGES)
            coverages.append(tp.health().cost_coverage)
        assert "cost coverage     66.7% of billable calls" in str(tp.health()).splitlines()
    assert coverages == [None, 0.0, 0.5, pytest.approx(2 / 3)]


def test_label_overflow(memory: Memory) -> None:
    """Values beyond a label's cap are reported by label."""
    with tp.instrument(tracer_provider=memory.provider, label_cap=2):
        assert tp.health().label_overflow == {}
        for number in range(5):
            with tp.workflow(f"w{number}"):
                pass
        overflow = tp.health().label_overflow
        assert overflow is not None
        assert set(overflow) == {"workflow"}
        assert overflow["workflow"] >= 3
        assert f"label overflow    workflow: {overflow['workflow']}" in str(tp.health()).splitlines()
