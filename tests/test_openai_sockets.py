"""Responses that go over the client's WebSockets are seen like any call."""

import json
from decimal import Decimal
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mock_openai import settled
from openai_methods import ROWS, Bill

pytest.importorskip("websockets", reason="the openai extra realtime is not installed")

from socket_drives import (
    CHAT_USD,
    REALTIME_USD,
    both,
    ending,
    every,
    greeting,
    realtime,
    responses,
    serving,
    tags_of,
    whole,
)
from socket_server import (
    SURFACES,
    Drive,
    Said,
    SocketServer,
    asking,
    begun,
    configured,
    connected,
    done,
    piece,
)
from websockets.exceptions import ConnectionClosed

import taskpilot_instrument as tp
from taskpilot_instrument.patches._openai_messages import kind_of
from taskpilot_instrument.testing import Captured, capture

pytestmark = [pytest.mark.openai, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
#: For the fixture ``captured``.
CAPTURE = {"observe_sockets": True}


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
