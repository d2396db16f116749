"""However a response over a WebSocket ends, it ends once: refusals, errors, closed and lost connections."""

import asyncio
import gc
import threading
import weakref
from typing import Any

import pytest
from mock_openai import settled

pytest.importorskip("websockets", reason="the openai extra realtime is not installed")

from socket_drives import (
    BOTH,
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
    CUT,
    Drive,
    Said,
    SocketServer,
    asking,
    begun,
    client_of,
    connected,
    done,
    manager_of,
    piece,
)
from websockets.exceptions import ConnectionClosed

import taskpilot_instrument as tp
from taskpilot_instrument.budgets import Budget
from taskpilot_instrument.patches import _openai_session
from taskpilot_instrument.testing import Captured, capture

pytestmark = [pytest.mark.openai, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
#: For the fixture ``captured``.
CAPTURE = {"observe_sockets": True}


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
