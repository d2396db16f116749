"""The client's WebSockets stay as they were, and what newer clients do with them is seen."""

import inspect
from contextlib import suppress
from typing import Any

import openai
import pytest
from mock_openai import settled

pytest.importorskip("websockets", reason="the openai extra realtime is not installed")

from socket_drives import THERE, both, ending, every, greeting, responses, serving, tags_of, whole
from socket_server import (
    Drive,
    Said,
    SocketServer,
    asking,
    begun,
    client_of,
    connected,
    done,
    manager_of,
)
from websockets.exceptions import ConnectionClosed

from taskpilot_instrument import _guard
from taskpilot_instrument.budgets import Budget
from taskpilot_instrument.patches import _openai_session, _openai_sockets
from taskpilot_instrument.testing import Captured, capture

pytestmark = [pytest.mark.openai, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
#: For the fixture ``captured``.
CAPTURE = {"observe_sockets": True}


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
