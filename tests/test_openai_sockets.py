"""Responses that go over the client's WebSockets are seen like any call, and the connection stays as it was."""

import asyncio
import gc
import importlib
import inspect
import json
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from decimal import Decimal
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mock_openai import settled
from openai_methods import ROWS, Bill

pytest.importorskip("websockets", reason="the openai extra realtime is not installed")

from socket_server import (
    CUT,
    SURFACES,
    Drive,
    Said,
    SocketServer,
    asking,
    begun,
    client_of,
    configured,
    connected,
    done,
    manager_of,
    piece,
)
from websockets.exceptions import ConnectionClosed

import taskpilot_instrument as tp
from taskpilot_instrument import _guard
from taskpilot_instrument.budgets import Budget
from taskpilot_instrument.patches import _openai_session, _openai_sockets
from taskpilot_instrument.patches._openai_messages import kind_of
from taskpilot_instrument.testing import Captured, capture

pytestmark = [pytest.mark.openai, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

#: 55 text, 13 audio and 64 cached text tokens in, 30 text and 91 audio tokens out of gpt-realtime.
REALTIME_USD = (55 * Decimal(4) + 13 * 32 + 64 * Decimal("0.4") + 30 * 16 + 91 * 64) / 1_000_000
CHAT_USD = Decimal("0.0000525")


def _is_there(surface: str) -> bool:
    name = surface.rpartition(".")[2]
    try:
        module = importlib.import_module(f"openai.resources.{surface}.{name}")
    except ImportError:
        return False
    return hasattr(module, f"{name.title()}Connection")


THERE = [surface for surface in SURFACES if _is_there(surface)]
DRIVES = [
    pytest.param(Drive(surface, is_async), id=f"{surface}-{'async' if is_async else 'sync'}")
    for surface in THERE
    for is_async in (False, True)
]
REALTIME = [each for each in DRIVES if "realtime" == each.values[0].surface]  # type: ignore[union-attr]
RESPONSES = [each for each in DRIVES if "responses" == each.values[0].surface]  # type: ignore[union-attr]
BOTH = REALTIME + RESPONSES
every = pytest.mark.parametrize("drive", DRIVES)
both = pytest.mark.parametrize("drive", BOTH)
realtime = pytest.mark.parametrize("drive", REALTIME)
responses = pytest.mark.parametrize("drive", RESPONSES)


@pytest.fixture
def captured() -> Iterator[Captured]:
    """Instrumentation that observes sockets, records in memory and raises its own errors."""
    with capture(observe_sockets=True) as everything:
        yield everything


def whole(surface: str) -> Callable[[dict[str, Any]], list[Said]]:
    """Answer each request for a response with one, numbered."""
    numbers = iter(range(1, 1_000))

    def answer(message: dict[str, Any]) -> list[Said]:
        if message["type"] != "response.create":
            return []
        name = f"resp_{next(numbers)}"
        return [begun(surface, name), piece(surface, name), piece(surface, name), done(surface, name)]

    return answer


def ending(drive: Drive) -> str:
    """Return the type of the message that ends a response."""
    return "response.done" if "realtime" in drive.surface else "response.completed"


def greeting(drive: Drive) -> list[Said]:
    """Return what a server says first."""
    return [configured()] if "realtime" in drive.surface else []


def serving(drive: Drive, *said: Said) -> SocketServer:
    """Return a server that says this to each request for a response."""
    return SocketServer(lambda message: said if message["type"] == "response.create" else (), greeting(drive))


def tags_of(captured: Captured) -> list[dict[str, Any]]:
    """Return the tags of each LLM call."""
    every = [dict(span.attributes or {}) for span in captured.spans]
    return [tags for tags in every if "gen_ai.request.model" in tags or "cost_source" in tags]


# --- one response, one bill ---------------------------------------------------------------------


def test_every_surface_with_a_socket_is_tested() -> None:
    """A method whose bill is said to come over its socket is one that is driven below."""
    told = {name for name, row in ROWS.items() if row.bill is Bill.ON_THE_SOCKET}
    assert {f"{surface}.connect" for surface in SURFACES} == told


@every
async def test_each_response_is_one_bill(captured: Captured, drive: Drive) -> None:
    """Two responses of one connection are two calls, with the provider's tokens, the price and their own ids."""
    with SocketServer(whole(drive.surface), greeting(drive)) as server:
        async with connected(drive, server) as line:
            for _ in range(2):
                await line.send(asking(drive.surface))
                await line.until(ending(drive))
    is_realtime = "realtime" in drive.surface
    counts, usd, model = (
        ((132, 121), REALTIME_USD, "gpt-realtime") if is_realtime else ((150, 50), CHAT_USD, "gpt-4o-mini")
    )
    tags = tags_of(captured)
    assert ["resp_1", "resp_2"] == [each["gen_ai.response.id"] for each in tags]
    for each in tags:
        assert counts == (each["input_tokens"], each["output_tokens"])
        assert (model, float(usd), "success") == (each["model"], each["cost_usd"], each["outcome"])
        assert ("chat", ("stop",)) == (each["gen_ai.operation.name"], each["gen_ai.response.finish_reasons"])
        assert each["time_to_first_chunk_ms"] <= each["latency_ms"]
        assert (64 if is_realtime else None) == each.get("cached_tokens")
    assert 2 * usd == captured.golden_signals().sample.spent_usd
    assert 2 == captured.handle.health().calls_recorded


@both
@pytest.mark.parametrize("way", ["recv_bytes", "iterate", "dispatch"])
async def test_every_way_of_receiving_is_seen(captured: Captured, drive: Drive, way: str) -> None:
    """Raw messages, iteration and handlers show the same call, and give what they gave."""
    with serving(drive, begun(drive.surface), piece(drive.surface), done(drive.surface), 1000) as server:
        async with connected(drive, server) as line:
            if way == "dispatch" and not hasattr(line.connection, "dispatch_events"):
                pytest.skip(f"openai {openai.__version__} has no handlers")
            await line.send(asking(drive.surface))
            seen = []
            if way == "recv_bytes":
                with pytest.raises(ConnectionClosed):
                    while True:
                        seen.append(json.loads(await settled(line.connection.recv_bytes()))["type"])
            elif way == "iterate":
                seen = [event.type async for event in line.events()]
            else:
                line.connection.on("event", lambda event: seen.append(event.type))
                await settled(line.connection.dispatch_events())
    expected = [*greeting(drive), begun(drive.surface), piece(drive.surface), done(drive.surface)]
    assert [each["type"] for each in expected if isinstance(each, dict)] == seen
    assert ["success"] == [tags["outcome"] for tags in tags_of(captured)]


@both
async def test_messages_may_come_as_bytes_models_or_raw(captured: Captured, drive: Drive) -> None:
    """Whatever form a request for a response is sent in, it is one."""
    message = json.dumps(asking(drive.surface))
    with SocketServer(whole(drive.surface), greeting(drive)) as server:
        async with connected(drive, server) as line:
            ways = [lambda: line.connection._connection.send(message.encode())]
            if hasattr(line.connection, "send_raw"):
                ways.append(lambda: line.connection.send_raw(message))
            for way in ways:
                await settled(way())
                await line.until(ending(drive))
    assert len(ways) == len(tags_of(captured))


@both
async def test_nothing_is_seen_where_nobody_asked_for_it(drive: Drive) -> None:
    """Sockets are observed by a setting; without it the connection is not touched."""
    with capture() as captured, SocketServer(whole(drive.surface), greeting(drive)) as server:
        async with connected(drive, server) as line:
            assert not {"send", "recv", "close"} & vars(line.connection._connection).keys()
            await line.send(asking(drive.surface))
            await line.until(ending(drive))
    assert [] == captured.spans


# --- whose response it is -----------------------------------------------------------------------


class Speaker:
    """An agent that speaks over a connection."""

    @tp.observed_agent
    async def run(self, line: Any, event: Any) -> None:
        """Ask for a response, and leave it to others to hear it."""
        await line.send(event)


class Listener:
    """An agent that hears what comes."""

    @tp.observed_agent
    async def run(self, line: Any, kind: str) -> None:
        """Receive up to the end of a response."""
        await line.until(kind)


@both
async def test_a_response_belongs_to_the_run_that_asked(captured: Captured, drive: Drive) -> None:
    """Its agent is the one that sent the request, though another one hears the answer."""
    with SocketServer(whole(drive.surface), greeting(drive)) as server:
        async with connected(drive, server) as line:
            await Speaker().run(line, asking(drive.surface))
            await Listener().run(line, ending(drive))
    (tags,) = tags_of_calls(captured)
    assert "Speaker" == tags["agent"]
    assert captured.span("Speaker.execute").context.trace_id == call_of(captured).context.trace_id  # type: ignore[union-attr]


@realtime
async def test_what_nobody_asked_for_belongs_to_whoever_hears_it(captured: Captured, drive: Drive) -> None:
    """A response after a pause in somebody's speech is one of the run that receives it, with its tokens rolled up."""
    spoken: list[Said] = [begun(drive.surface), done(drive.surface)]
    server = SocketServer(lambda message: spoken if message["type"] == "input_audio_buffer.append" else ())
    with server:
        async with connected(drive, server) as line:
            await line.send({"type": "input_audio_buffer.append", "audio": "AAAA"})
            await Listener().run(line, "response.done")
    (tags,) = tags_of_calls(captured)
    assert ("Listener", "success", float(REALTIME_USD)) == (tags["agent"], tags["outcome"], tags["cost_usd"])
    assert (132, 121) == tuple(captured.tags("Listener.execute")[name] for name in ("input_tokens", "output_tokens"))


@realtime
async def test_else_it_belongs_to_the_run_that_connected(captured: Captured, drive: Drive) -> None:
    """Where no run receives, as in a handler's task, the run counts in which the connection was opened."""
    said: list[Said] = [begun(drive.surface), done(drive.surface)]
    lines = []

    class Opener:
        @tp.observed_agent
        async def run(self) -> None:
            manager = connected(drive, server)
            lines.append((manager, await manager.__aenter__()))

    with SocketServer(lambda _: said) as server:
        await Opener().run()
        ((manager, line),) = lines
        await line.send({"type": "input_audio_buffer.commit"})
        await line.until("response.done")
        await manager.__aexit__(None, None, None)
    (tags,) = tags_of_calls(captured)
    assert "Opener" == tags["agent"]


def tags_of_calls(captured: Captured) -> list[dict[str, Any]]:
    """Return the tags of the calls, without those of the runs around them."""
    return [tags for tags in tags_of(captured) if tags.get("gen_ai.operation.name") in {"chat", "transcription"}]


def call_of(captured: Captured) -> Any:
    """Return the span of the one call."""
    (span,) = [each for each in captured.spans if each.name.startswith("chat ")]
    return span


@realtime
async def test_parallel_responses_are_told_apart_by_their_metadata(captured: Captured, drive: Drive) -> None:
    """Two agents ask at once, the answers come the other way round, and each agent has its own."""
    one, two = {"topic": "one"}, {"topic": "two"}
    said: list[Said] = [
        begun(drive.surface, "resp_2", metadata=two), begun(drive.surface, "resp_1", metadata=one),
        done(drive.surface, "resp_1", metadata=one), done(drive.surface, "resp_2", metadata=two),
    ]  # fmt: skip
    server = SocketServer(
        lambda message: said if (message.get("response") or {}).get("metadata") == two else (), greeting(drive)
    )
    with server:
        async with connected(drive, server) as line:
            await Speaker().run(line, asking(drive.surface, metadata=one))
            await line.send(asking(drive.surface, metadata=two))
            for _ in range(2):
                await line.until("response.done")
    assert {"resp_1": "Speaker", "resp_2": None} == {
        tags["gen_ai.response.id"]: tags.get("agent") for tags in tags_of_calls(captured)
    }


@responses
async def test_lanes_are_told_apart(captured: Captured, drive: Drive) -> None:
    """Requests of one connection go side by side on lanes, each answered in turn."""
    said: list[Said] = [
        begun(drive.surface, "resp_b", stream_id="b"), begun(drive.surface, "resp_a", stream_id="a"),
        done(drive.surface, "resp_a", stream_id="a"), done(drive.surface, "resp_b", stream_id="b"),
    ]  # fmt: skip
    with SocketServer(lambda message: said if message.get("stream_id") == "b" else ()) as server:
        async with connected(drive, server) as line:
            await Speaker().run(line, asking(drive.surface, stream_id="a"))
            await line.send(asking(drive.surface, stream_id="b"))
            for _ in range(2):
                await line.until("response.completed")
    assert {"resp_a": "Speaker", "resp_b": None} == {
        tags["gen_ai.response.id"]: tags.get("agent") for tags in tags_of_calls(captured)
    }


@both
async def test_what_is_told_twice_counts_once(captured: Captured, drive: Drive) -> None:
    """A second message of a response's end, here or on another connection to the same host, is no second bill."""
    told = [begun(drive.surface), done(drive.surface), done(drive.surface)]
    with SocketServer(lambda _: told, greeting(drive)) as server:
        async with connected(drive, server) as line:
            await line.send(asking(drive.surface))
            for _ in range(2):
                await line.until(ending(drive))
        async with connected(drive, server) as line:
            await line.send({"type": "input_audio_buffer.clear"} if "realtime" in drive.surface else {"type": "x"})
            await line.until(ending(drive))
    assert ["success"] == [tags["outcome"] for tags in tags_of(captured)]


@both
async def test_a_response_whose_beginning_was_not_told_counts(captured: Captured, drive: Drive) -> None:
    """Its end says it all."""
    with SocketServer(lambda _: [done(drive.surface)], greeting(drive)) as server:
        async with connected(drive, server) as line:
            await line.send({"type": "input_audio_buffer.clear"} if "realtime" in drive.surface else {"type": "x"})
            await line.until(ending(drive))
    (tags,) = tags_of(captured)
    assert ("success", "genai-prices") == (tags["outcome"], tags["cost_source"])


# --- what it tells ------------------------------------------------------------------------------


@realtime
@pytest.mark.parametrize(
    ("status", "details", "outcome", "reason", "error"),
    [
        ("completed", None, "success", "stop", None),
        ("cancelled", {"type": "cancelled", "reason": "turn_detected"}, "cancelled", "cancelled", None),
        ("incomplete", {"type": "incomplete", "reason": "max_output_tokens"}, "success", "length", None),
        ("incomplete", {"type": "incomplete", "reason": "content_filter"}, "success", "content_filter", None),
        (
            "failed",
            {"type": "failed", "error": {"code": "rate_limit_exceeded"}},
            "error",
            "error",
            "rate_limit_exceeded",
        ),
        ("failed", {"type": "failed", "error": {"type": "server_error"}}, "error", "error", "server_error"),
    ],
)
async def test_a_session_tells_how_its_response_ended(
    captured: Captured, drive: Drive, status: str, details: Any, outcome: str, reason: str, error: str | None
) -> None:
    """What was used is billed, whether the response was completed, cancelled, cut short or failed."""
    with serving(drive, begun(drive.surface), done(drive.surface, status=status, status_details=details)) as server:
        async with connected(drive, server) as line:
            await line.send(asking(drive.surface))
            await line.until("response.done")
    (tags,) = tags_of(captured)
    assert (outcome, (reason,), error) == (
        tags["outcome"], tags["gen_ai.response.finish_reasons"], tags.get("error.type"),
    )  # fmt: skip
    assert float(REALTIME_USD) == tags["cost_usd"]
    assert "conv_1" == tags["gen_ai.conversation.id"]


@responses
@pytest.mark.parametrize(
    ("status", "more", "outcome", "error"),
    [
        ("incomplete", {"incomplete_details": {"reason": "max_output_tokens"}}, "success", None),
        ("failed", {"error": {"code": "server_error", "message": "x"}}, "error", "server_error"),
    ],
)
async def test_a_response_tells_how_it_ended(
    captured: Captured, drive: Drive, status: str, more: Any, outcome: str, error: str | None
) -> None:
    """As over HTTP."""
    with serving(drive, begun(drive.surface), done(drive.surface, status=status, **more)) as server:
        async with connected(drive, server) as line:
            await line.send(asking(drive.surface))
            await line.until(f"response.{status}")
    (tags,) = tags_of(captured)
    assert (outcome, error, float(CHAT_USD)) == (tags["outcome"], tags.get("error.type"), tags["cost_usd"])


@realtime
async def test_the_session_names_the_model_and_what_is_asked(captured: Captured, drive: Drive) -> None:
    """The price is that of the model which the session runs; its settings are the request's, which may have its own."""
    tool = {"type": "function", "name": "look_up", "parameters": {}}
    hello = configured("gpt-realtime-mini-2025-12-15", tools=[tool], max_output_tokens=300, output_modalities=["audio"])
    with SocketServer(whole(drive.surface), [hello]) as server:
        async with connected(drive, server) as line:
            await line.until("session.created")
            await line.send(asking(drive.surface, max_output_tokens=20, conversation="auto"))
            await line.until("response.done")
        assert ["/v1/realtime?model=gpt-realtime"] == server.paths
    (tags,) = tags_of(captured)
    assert ("gpt-realtime", "gpt-realtime-mini-2025-12-15") == (tags["model"], tags["gen_ai.response.model"])
    assert (20, "speech") == (tags["gen_ai.request.max_tokens"], tags["gen_ai.output.type"])
    assert [{"type": "function", "name": "look_up"}] == json.loads(tags["gen_ai.tool.definitions"])
    usd = (55 * Decimal("0.6") + 13 * 10 + 64 * Decimal("0.06") + 30 * Decimal("2.4") + 91 * 20) / 1_000_000
    assert float(usd) == tags["cost_usd"]


@pytest.mark.skipif(not hasattr(openai.OpenAI, "realtime"), reason=f"openai {openai.__version__} has it in beta only")
def test_a_deployment_of_azure_is_priced_by_the_model_of_its_session(captured: Captured) -> None:
    """The address names the deployment, the session the model; Azure is known at an address of one's own, too."""
    drive = Drive("realtime", is_async=False)
    with (
        SocketServer(whole(drive.surface), [configured()]) as server,
        openai.AzureOpenAI(
            api_key="k",
            api_version="2025-08-28",
            azure_endpoint="http://127.0.0.1",
            websocket_base_url=f"ws://127.0.0.1:{server.port}/openai",
        ) as client,
        client.realtime.connect(model="my-voice") as connection,
    ):
        assert "session.created" == connection.recv().type
        connection.send(asking(drive.surface))
        while connection.recv().type != "response.done":
            pass
    (tags,) = tags_of(captured)
    assert ("azure.ai.openai", "my-voice") == (tags["gen_ai.provider.name"], tags["model"])
    assert ("gpt-realtime", float(REALTIME_USD)) == (tags["gen_ai.response.model"], tags.get("cost_usd"))


@realtime
@pytest.mark.parametrize(
    ("model", "usage", "tokens", "source"),
    [
        (
            "gpt-4o-mini-transcribe",
            {"type": "tokens", "input_tokens": 14, "output_tokens": 45, "input_token_details": {"audio_tokens": 14}},
            (14, 45),
            "genai-prices",
        ),
        ("gpt-realtime-whisper", {"type": "duration", "seconds": 3.0}, (None, None), "genai-prices"),
        ("whisper-unheard-of", {"type": "duration", "seconds": 3.0}, (None, None), "unknown"),
        ("gpt-4o-mini-transcribe", None, (None, None), "unknown"),
    ],
)
async def test_a_transcription_is_billed_apart(
    captured: Captured, drive: Drive, model: str, usage: Any, tokens: Any, source: str
) -> None:
    """What the user said is written down by a model of its own, at its own price; where that is not told, unknown."""
    told = {"type": "conversation.item.input_audio_transcription.completed", "item_id": "item_1", "transcript": "hi"}
    hello = configured(audio={"input": {"transcription": {"model": model}}})
    server = SocketServer(lambda _: ({**told, **({"usage": usage} if usage else {})},), [hello])
    with server:
        async with connected(drive, server) as line:
            await line.send({"type": "input_audio_buffer.commit"})
            await line.until(told["type"])
    (tags,) = tags_of(captured)
    assert ("transcription", model, source) == (tags["gen_ai.operation.name"], tags["model"], tags["cost_source"])
    assert tokens == (tags.get("input_tokens"), tags.get("output_tokens"))
    assert (source == "genai-prices") is ("cost_usd" in tags)


@both
async def test_content_is_captured_where_asked_for(drive: Drive) -> None:
    """The request's instructions or input, and what was said, stand on the span."""
    item = {"type": "message", "role": "assistant", "content": [{"type": "output_audio", "transcript": "Good day"}]}
    settings: Any = {"observe_sockets": True, "capture_content": "span_only"}
    with (
        capture(**settings) as captured,
        serving(drive, begun(drive.surface), done(drive.surface, output=[item])) as server,
    ):
        async with connected(drive, server) as line:
            await line.send(asking(drive.surface, instructions="Be brief"))
            await line.until(ending(drive))
    (tags,) = tags_of(captured)
    assert "Be brief" in tags["gen_ai.system_instructions"]
    assert "Good day" in tags["gen_ai.output.messages"]


# --- refusals and errors ------------------------------------------------------------------------


@every
async def test_a_budget_holds(drive: Drive) -> None:
    """A request that may overspend is not sent, nor later; the connection goes on."""
    budget = Budget("tiny", "0.0000001", on_exceed="block")
    other = "input_audio_buffer.clear" if "realtime" in drive.surface else "response.steer"
    with (
        capture(observe_sockets=True, budgets=[budget], ledger="memory") as captured,
        SocketServer(lambda _: [{"type": "heard"}]) as server,
    ):
        async with connected(drive, server) as line:
            with pytest.raises(tp.BudgetExceededError):
                await line.send(asking(drive.surface))
            assert 0 == len(getattr(line.connection, "_send_queue", ()))  # of what is sent when it can be
            await line.send({"type": other})
            await line.until("heard")
        assert [other] == [message["type"] for message in server.received]
    (tags,) = tags_of(captured)
    assert ("blocked", None) == (tags["outcome"], tags.get("cost_source"))


@realtime
async def test_a_budget_counts_what_it_cannot_refuse(drive: Drive) -> None:
    """Responses that the server makes by itself are spent, so that the next request is refused."""
    with (
        capture(observe_sockets=True, budgets=[Budget("b", "0.0060", on_exceed="block")], ledger="memory") as captured,
        SocketServer(lambda _: (begun(drive.surface), done(drive.surface)), greeting(drive)) as server,
    ):
        async with connected(drive, server) as line:
            await line.send({"type": "input_audio_buffer.append", "audio": "AAAA"})
            await line.until("response.done")
            (status,) = captured.handle.budgets()
            assert REALTIME_USD == status.spent_usd
            with pytest.raises(tp.BudgetExceededError):
                await line.send(asking(drive.surface, max_output_tokens=1))


@realtime
async def test_a_budget_knows_the_conversation(drive: Drive) -> None:
    """All that a session has heard is input again: a budget for the first response is none for the second."""
    limit = Budget("b", "0.0180", on_exceed="block")
    with (
        capture(observe_sockets=True, budgets=[limit], ledger="memory") as captured,
        SocketServer(whole(drive.surface), greeting(drive)) as server,
    ):
        async with connected(drive, server) as line:
            await line.send(asking(drive.surface, max_output_tokens=100))
            await line.until("response.done")
            (status,) = captured.handle.budgets()
            assert (REALTIME_USD, 0) == (status.spent_usd, status.reserved_usd)
            # 253 tokens and those of the request, at the dearest rates, are more than the 0.011 that are left.
            with pytest.raises(tp.BudgetExceededError):
                await line.send(asking(drive.surface, max_output_tokens=100))


@realtime
async def test_an_error_ends_the_request_that_it_names(captured: Captured, drive: Drive) -> None:
    """A request that the server does not take failed, and is not billed; other errors end nothing."""
    other = {
        "type": "error",
        "event_id": "e",
        "error": {"type": "invalid_request_error", "code": "x", "event_id": None},
    }
    busy = {"code": "conversation_already_has_active_response", "type": "invalid_request_error"}

    def answer(message: dict[str, Any]) -> list[Said]:
        if message["type"] != "response.create":
            return [other]
        return [{"type": "error", "event_id": "e", "error": {**busy, "event_id": message.get("event_id")}}]

    with SocketServer(answer, greeting(drive)) as server:
        async with connected(drive, server) as line:
            await line.send({"type": "input_audio_buffer.commit"})
            await line.until("error")
            for event in ("mine", None):
                await line.send(asking(drive.surface, **({"event_id": event} if event else {})))
                await line.until("error")
    assert [("error", busy["code"], None)] * 2 == [
        (tags["outcome"], tags["error.type"], tags.get("cost_source")) for tags in tags_of(captured)
    ]


@responses
async def test_an_error_ends_the_response_of_its_lane(captured: Captured, drive: Drive) -> None:
    """Before it begins it costs nothing; after that nobody knows what it cost."""
    error = {"type": "error", "status": 400, "error": {"type": "invalid_request_error", "code": "bad", "message": "x"}}
    answers = iter([[error], [begun(drive.surface), error]])
    with SocketServer(lambda _: next(answers)) as server:
        async with connected(drive, server) as line:
            for _ in range(2):
                await line.send(asking(drive.surface))
                await line.until("error")
    assert [("error", "bad", None), ("error", "bad", "unknown")] == [
        (tags["outcome"], tags["error.type"], tags.get("cost_source")) for tags in tags_of(captured)
    ]


# --- every way to an end ------------------------------------------------------------------------


@both
async def test_closing_in_the_middle_cancels_the_response(captured: Captured, drive: Drive) -> None:
    """One that had begun and one that had not end once, at an unknown cost."""
    answers = iter([[begun(drive.surface), piece(drive.surface)], []])
    with SocketServer(lambda _: next(answers), greeting(drive)) as server:
        async with connected(drive, server) as line:
            await line.send(asking(drive.surface))
            await line.until("response.created")
            await line.send(asking(drive.surface))
            await line.close()
            await line.close()
    assert [("cancelled", "unknown")] * 2 == [(tags["outcome"], tags["cost_source"]) for tags in tags_of(captured)]


@both
async def test_leaving_by_an_exception_cancels_it_too(captured: Captured, drive: Drive) -> None:
    """The block is left, the connection closed, and the caller's exception is its own."""
    mine = ValueError("mine")
    with serving(drive, begun(drive.surface)) as server, pytest.raises(ValueError, match="mine") as caught:
        async with connected(drive, server) as line:
            await line.send(asking(drive.surface))
            await line.until("response.created")
            raise mine
    assert mine is caught.value
    assert ["cancelled"] == [tags["outcome"] for tags in tags_of(captured)]


@both
@pytest.mark.parametrize(
    ("how", "error"), [(CUT, "ConnectionClosedError"), (1011, "ConnectionClosedError"), (1000, "ConnectionClosedOK")]
)
async def test_a_connection_that_breaks_is_an_error(captured: Captured, drive: Drive, how: int, error: str) -> None:
    """The call failed with what the caller gets to see."""
    with serving(drive, begun(drive.surface), how) as server:
        async with connected(drive, server) as line:
            await line.send(asking(drive.surface))
            with pytest.raises(ConnectionClosed) as caught:
                await line.until("response.done")
    (tags,) = tags_of(captured)
    assert error == type(caught.value).__name__
    assert ("error", error) == (tags["outcome"], tags["error.type"])


@both
async def test_what_cannot_be_sent_is_an_error(captured: Captured, drive: Drive) -> None:
    """A request on a connection that is gone fails as it did, and is not billed."""
    with serving(drive) as server:
        async with connected(drive, server) as line:
            await line.close()
            with pytest.raises(ConnectionClosed):
                await line.send(asking(drive.surface))
    (tags,) = tags_of(captured)
    assert ("error", None) == (tags["outcome"], tags.get("cost_source"))


@both
async def test_a_forgotten_connection_abandons_its_response(drive: Drive) -> None:
    """It ends when the connection is collected, at the time of the last message."""
    with (
        capture(observe_sockets=True, fake_clock=True) as captured,
        serving(drive, begun(drive.surface), piece(drive.surface)) as server,
    ):
        clock = captured.clock
        assert clock is not None
        client = client_of(drive, server.port)
        manager = manager_of(drive, client)
        connection = await settled(manager.enter())
        socket = connection._connection
        await settled(connection.send(asking(drive.surface)))
        for _ in range(1 + len(greeting(drive))):
            await settled(connection.recv())
        clock.advance(2.0)
        await settled(connection.recv())
        clock.advance(5.0)
        del connection, manager
        gc.collect()
        (tags,) = tags_of(captured)
        assert ("abandoned", 2000.0, "unknown") == (tags["outcome"], tags["latency_ms"], tags["cost_source"])
        await settled(socket.close())
        await settled(client.close())


@pytest.mark.parametrize("drive", [each for each in BOTH if each.values[0].is_async])  # type: ignore[union-attr]
async def test_a_cancelled_task_cancels_the_response(captured: Captured, drive: Drive) -> None:
    """Waiting for the next message may be given up without harm; leaving the connection ends the response."""
    with serving(drive, begun(drive.surface)) as server:

        async def speak() -> None:
            async with connected(drive, server) as line:
                await line.send(asking(drive.surface))
                await line.until("response.created")
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(line.recv(), 0.02)
                assert [] == captured.spans
                waiting.set()
                await line.recv()

        waiting = asyncio.Event()
        task = asyncio.create_task(speak())
        await waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert ["cancelled"] == [tags["outcome"] for tags in tags_of(captured)]


@pytest.mark.parametrize("drive", [each for each in BOTH if each.values[0].is_async])  # type: ignore[union-attr]
def test_a_loop_that_is_closed_leaves_nothing_open(captured: Captured, drive: Drive) -> None:
    """The connection dies with its loop, and its response with it."""
    kept: list[Any] = []

    async def speak() -> None:
        client = client_of(drive, server.port)
        connection = await manager_of(drive, client).enter()
        await connection.send(asking(drive.surface))
        while (await connection.recv()).type != "response.created":
            pass
        kept.extend([connection, connection._connection.transport])
        await client.close()

    with serving(drive, begun(drive.surface)) as server:
        asyncio.run(speak())
        assert [] == captured.spans
        transport = kept.pop()
        kept.clear()
        gc.collect()
        assert ["abandoned"] == [tags["outcome"] for tags in tags_of(captured)]
        socket, transport._sock = transport._sock, None  # its own close() asks the loop, which is closed
        socket.close()


@both
async def test_uninstrumenting_ends_what_is_open(drive: Drive) -> None:
    """What goes on afterwards is not seen, and the connection still works."""
    with SocketServer(whole(drive.surface), greeting(drive)) as server, capture(observe_sockets=True) as captured:
        async with connected(drive, server) as line:
            await line.send(asking(drive.surface))
            await line.until("response.created")
            captured.handle.uninstrument()
            await line.until(ending(drive))
            await line.send(asking(drive.surface))
            await line.until(ending(drive))
    assert ["abandoned"] == [tags["outcome"] for tags in tags_of(captured)]


@pytest.mark.parametrize("drive", [each for each in BOTH if not each.values[0].is_async])  # type: ignore[union-attr]
def test_threads_may_share_a_connection(captured: Captured, drive: Drive) -> None:
    """One thread asks, another hears; each of a hundred responses is one call."""
    number = 100

    def hear(connection: Any) -> None:
        left = number
        while left:
            left -= connection.recv().type == ending(drive)

    with (
        SocketServer(whole(drive.surface), greeting(drive)) as server,
        client_of(drive, server.port) as client,
        manager_of(drive, client) as connection,
    ):
        listener = threading.Thread(target=hear, args=(connection,))
        listener.start()
        for _ in range(number):
            connection.send(asking(drive.surface))
        listener.join()
    assert number == len({tags["gen_ai.response.id"] for tags in tags_of(captured)})
    assert number == captured.handle.health().calls_recorded


@both
async def test_a_server_that_never_answers_fills_no_memory(
    captured: Captured, drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of very many responses that do not begin, or do not end, the oldest are given up."""
    monkeypatch.setattr(_openai_session, "_MOST_OPEN", 2)
    numbers = iter(range(9))
    answers = iter([(), (), (), *([begun(drive.surface, f"resp_{number}")] for number in numbers)])
    with SocketServer(lambda _: next(answers), greeting(drive)) as server:
        async with connected(drive, server) as line:
            for _ in range(3):
                await line.send(asking(drive.surface))
            assert ["cancelled"] == [tags["outcome"] for tags in tags_of(captured)]
            for _ in range(3):
                await line.send({"type": "x"})
                await line.until("response.created")
            assert ["cancelled"] * 2 == [tags["outcome"] for tags in tags_of(captured)]
    assert ["cancelled"] * 4 == [tags["outcome"] for tags in tags_of(captured)]


@both
async def test_a_closed_connection_is_let_go(captured: Captured, drive: Drive) -> None:
    """Nothing of ours outlives it, nor keeps it."""
    with SocketServer(whole(drive.surface), greeting(drive)) as server:
        async with connected(drive, server) as line:
            await line.send(asking(drive.surface))
            await line.until(ending(drive))
            gone = weakref.ref(line.connection)
            session = weakref.ref(next(each for each in gc.get_objects() if type(each) is _openai_session.Session))
        del line
        await asyncio.sleep(0.01)
        gc.collect()
    assert (None, None) == (gone(), session())
    assert 1 == len(captured.spans)


# --- what newer clients do ----------------------------------------------------------------------


def newer(drive: Drive, name: str) -> None:
    """Skip where the installed client's connections cannot do that."""
    with client_of(Drive(drive.surface, is_async=False), 1) as client:
        if not hasattr(manager_of(Drive(drive.surface, is_async=False), client), name):
            pytest.skip(f"openai {openai.__version__} has no {name} there")


@both
async def test_a_connection_that_comes_back_is_still_seen(captured: Captured, drive: Drive) -> None:
    """The response that was cut failed; the next one goes over the new socket."""
    newer(drive, "_connect_ws")
    answers = iter(
        [[begun(drive.surface), 1012], [begun(drive.surface, "resp_2"), done(drive.surface, "resp_2"), 1000]]
    )
    with SocketServer(lambda _: next(answers), [{"type": "hello"}]) as server:
        async with connected(drive, server, on_reconnecting=lambda _: None, initial_delay=0.001) as line:
            async for event in line.events():
                if event.type == "hello":
                    await line.send(asking(drive.surface))
    assert 2 == len(server.paths)
    assert [("resp_1", "error"), ("resp_2", "success")] == [
        (tags["gen_ai.response.id"], tags["outcome"]) for tags in tags_of(captured)
    ]


@both
async def test_what_was_queued_before_connecting_is_seen(captured: Captured, drive: Drive) -> None:
    """A request may be made before there is a connection."""
    newer(drive, "send")
    with SocketServer(whole(drive.surface), greeting(drive)) as server:
        client = client_of(drive, server.port)
        manager = manager_of(drive, client)
        manager.send(asking(drive.surface))
        connection = await settled(manager.enter())
        while (await settled(connection.recv())).type != ending(drive):
            pass
        await settled(connection.close())
        await settled(client.close())
    assert ["success"] == [tags["outcome"] for tags in tags_of(captured)]


@both
async def test_what_was_queued_is_refused_when_it_would_go_out(drive: Drive) -> None:
    """The client keeps to itself that it could not send what was queued; the call says so."""
    newer(drive, "send")
    budget = Budget("tiny", "0.0000001", on_exceed="block")
    with (
        capture(observe_sockets=True, budgets=[budget], ledger="memory") as captured,
        SocketServer(lambda _: [{"type": "heard"}]) as server,
    ):
        client = client_of(drive, server.port)
        manager = manager_of(drive, client)
        manager.send(asking(drive.surface))
        connection = await settled(manager.enter())
        await settled(connection.send({"type": "response.cancel" if "realtime" in drive.surface else "response.steer"}))
        assert "heard" == (await settled(connection.recv())).type
        await settled(connection.close())
        await settled(client.close())
        assert ["response.create"] != [message["type"] for message in server.received]
    assert ["blocked"] == [tags["outcome"] for tags in tags_of(captured)]


@responses
async def test_a_session_of_lanes_is_seen(captured: Captured, drive: Drive) -> None:
    """The client's helper that shares a connection between lanes sends past the connection's own methods."""
    lanes = pytest.importorskip("openai.lib.responses_websocket", reason=f"openai {openai.__version__} has no lanes")
    kind = lanes.AsyncResponsesWebSocketSession if drive.is_async else lanes.ResponsesWebSocketSession
    limits = lanes.ResponsesWebSocketLimits(
        max_lanes=2, max_events_per_lane=9, max_events=9, max_bytes_per_lane=99_999, max_bytes=99_999,
        max_response_bytes=None,
    )  # fmt: skip

    def answer(message: dict[str, Any]) -> list[Said]:
        lane = message["stream_id"]
        return [begun(drive.surface, lane, stream_id=lane), done(drive.surface, lane, stream_id=lane)]

    with SocketServer(answer) as server:
        client = client_of(drive, server.port)
        connection = await settled(manager_of(drive, client).enter())
        session = kind(connection, limits=limits)
        await settled(session.__aenter__() if drive.is_async else session.__enter__())
        lane = session.lane("here")
        await settled(lane.send(asking(drive.surface)))
        response = await settled(lane.get_final_response())
        await settled(session.close())
        await settled(client.close())
    (tags,) = tags_of(captured)
    assert ("here", "here", "success") == (response.id, tags["gen_ai.response.id"], tags["outcome"])


# --- nothing changes for the caller -------------------------------------------------------------


@every
async def test_the_connection_is_what_it_was(captured: Captured, drive: Drive) -> None:
    """Its class, its methods and what they are to ``inspect`` are the client's own."""
    with serving(drive) as server:
        async with connected(drive, server) as line:
            kind: Any = type(line.connection)
            assert kind.__module__.startswith("openai.resources.")
            assert "send" not in vars(line.connection)
            socket = line.connection._connection
            for name in ("send", "recv", "close"):
                mine, original = getattr(socket, name), getattr(type(socket), name)
                assert inspect.iscoroutinefunction(original) == inspect.iscoroutinefunction(mine)
                assert original.__doc__ == mine.__doc__
                expected = list(inspect.signature(original).parameters)[1:]
                assert expected == list(inspect.signature(mine).parameters)
    assert [] == tags_of(captured)


@both
@pytest.mark.parametrize("broken", ["sending", "heard", "ended", "not_sent"])
async def test_our_own_errors_stay_ours(drive: Drive, broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fails here, the conversation goes on, and the failure is counted."""

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("ours")

    target = {"sending": "document_of", "heard": "as_object"}.get(broken)
    if target is not None:
        monkeypatch.setattr(_openai_session, target, fail)
    else:
        monkeypatch.setattr(_openai_session.Session, broken, fail)
    with (
        capture(observe_sockets=True, reraise=False),
        SocketServer(whole(drive.surface), greeting(drive)) as server,
    ):
        async with connected(drive, server) as line:
            await line.send(asking(drive.surface))
            assert ending(drive) == (await line.until(ending(drive))).type
            await line.close()
            with suppress(ConnectionClosed):
                await line.send(asking(drive.surface))
        assert _guard.swallowed()["socket"]


def test_a_socket_that_cannot_be_hooked_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client whose sockets are unlike those that are known works as without us."""
    drive = Drive(THERE[0], is_async=False)

    def fail(_: Any) -> Any:
        raise RuntimeError("ours")

    monkeypatch.setattr(_openai_sockets, "place_of", fail)
    with (
        capture(observe_sockets=True, reraise=False) as captured,
        SocketServer(whole(drive.surface), greeting(drive)) as server,
        client_of(drive, server.port) as client,
        manager_of(drive, client) as connection,
    ):
        connection.send(asking(drive.surface))
        while connection.recv().type != ending(drive):
            pass
        assert ([], {"socket": 1}) == (captured.spans, _guard.swallowed())


# --- reading messages ---------------------------------------------------------------------------

KINDS = st.sampled_from(["response.done", "response.created", "x", "session.updated"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.just("type"), inner),
    max_leaves=8,
)


@given(
    KINDS, st.dictionaries(st.text(min_size=1).filter(lambda key: key != "type"), JSON), st.booleans(), st.booleans()
)
def test_the_type_of_a_message_is_its_own(kind: str, more: dict[str, Any], first: bool, spaced: bool) -> None:
    """Where the front tells a type it is the message's, never that of something inside it."""
    document = {"type": kind, **more} if first else {**more, "type": kind}
    message = json.dumps(document, separators=None if spaced else (",", ":"))
    assert kind_of(message) in {kind, None}
    assert kind_of(message.encode()) == kind_of(message)
    assert not first or kind_of(message) == kind


@given(st.text() | st.binary())
def test_what_is_no_message_has_no_type(text: str | bytes) -> None:
    """Anything may come over a socket."""
    assert kind_of(text) is None
