"""Another provider's client is one more file: what it takes, for a client made up here."""

import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest

import taskpilot_instrument as tp
from taskpilot_instrument._bodies import EventBody
from taskpilot_instrument._guard import swallow
from taskpilot_instrument._operation import Operation
from taskpilot_instrument._recorder import active
from taskpilot_instrument._records import LLMCall
from taskpilot_instrument._streams import Watch
from taskpilot_instrument.embedded import EmbeddedServer, Reply
from taskpilot_instrument.patches._patching import Patch
from taskpilot_instrument.semconv import Kind, Outcome
from taskpilot_instrument.testing import Captured, capture
from taskpilot_instrument.typing import ChunkReader
from taskpilot_instrument.usage import TokenUsage

# --- the provider's client ------------------------------------------------------------------------


class AcmeClient:
    """The client of a provider that nobody has heard of."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(trust_env=False)
        self._url = url

    def ask(self, model: str, question: str, *, stream: bool = False) -> Any:
        """Return the answer, or the HTTP response that it comes in by and by."""
        request = self._http.build_request("POST", self._url, json={"model": model, "question": question})
        response = self._http.send(request, stream=stream)
        response.raise_for_status()
        return response if stream else response.json()

    def close(self) -> None:
        """Close its connections."""
        self._http.close()


class AsyncAcmeClient:
    """The same for coroutines."""

    def __init__(self, url: str) -> None:
        self._http = httpx.AsyncClient(trust_env=False)
        self._url = url

    async def ask(self, model: str, question: str, *, stream: bool = False) -> Any:
        """Return the answer, or the HTTP response that it comes in by and by."""
        request = self._http.build_request("POST", self._url, json={"model": model, "question": question})
        response = await self._http.send(request, stream=stream)
        response.raise_for_status()
        return response if stream else response.json()

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()


# --- the one file ---------------------------------------------------------------------------------


def patches() -> list[Patch]:
    """Return what observes every call of the client."""
    return [Patch(AcmeClient, "ask", _ask), Patch(AsyncAcmeClient, "ask", _ask_async)]


def _ask(wrapped: Callable[..., Any], _client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    operation = _begin(args, kwargs)
    if operation is None:
        return wrapped(*args, **kwargs)
    with operation:
        operation.admit()  # budgets and limits may refuse it
        answer = wrapped(*args, **kwargs)
        _read(operation, answer)
    return answer


async def _ask_async(wrapped: Callable[..., Any], _client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    operation = _begin(args, kwargs)
    if operation is None:
        return await wrapped(*args, **kwargs)
    with operation:
        operation.admit()
        answer = await wrapped(*args, **kwargs)
        _read(operation, answer)
    return answer


def _begin(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Operation | None:
    recorder = active()
    if recorder is None:
        return None
    try:
        llm = LLMCall("chat", args[0], provider="openai", streamed=bool(kwargs.get("stream")))
        operation = Operation(recorder, Kind.LLM, llm.operation, llm=llm)
        operation.announce()
    except Exception as error:
        swallow("before", error)
        return None
    return operation


def _read(operation: Operation, answer: Any) -> None:
    try:
        llm = operation.llm
        assert llm is not None
        llm.billable = True
        if llm.streamed:
            watch = Watch(operation, AcmeReader(llm))
            watch.hook(answer, EventBody(watch.saw))  # it ends the operation, however the stream ends
            operation.handed_over = True
        else:
            llm.usage = TokenUsage(answer["tokens"]["in"], answer["tokens"]["out"])
    except Exception as error:
        swallow("usage", error)


class AcmeReader:
    """Reads a streamed answer."""

    def __init__(self, llm: LLMCall) -> None:
        self.complete = False
        self.failure: tuple[Outcome, str | None] | None = None
        self._llm = llm

    def read_chunk(self, chunk: Any) -> None:
        """Keep the tokens, which the last event tells."""
        tokens = getattr(chunk, "tokens", None)
        if tokens is not None:
            self._llm.usage = TokenUsage(getattr(tokens, "in"), tokens.out)
            self.complete = True

    def is_only_usage(self, _chunk: Any) -> bool:
        """Return False: nothing was asked for that the caller did not ask for."""
        return False

    def read_end(self) -> None:
        """Do nothing: what there was is written."""


_HOLDS_THE_PROTOCOL: type[ChunkReader] = AcmeReader


# --- what comes of it -----------------------------------------------------------------------------


@pytest.fixture
def acme(server: EmbeddedServer) -> Iterator[AcmeClient]:
    """The client, observed."""
    client = AcmeClient(f"{server.origin}/ask")
    yield client
    client.close()


@pytest.fixture
async def async_acme(server: EmbeddedServer) -> AsyncIterator[AsyncAcmeClient]:
    """The client for coroutines, observed."""
    client = AsyncAcmeClient(f"{server.origin}/ask")
    yield client
    await client.close()


@pytest.fixture(autouse=True)
def observed() -> Iterator[None]:
    """What the file offers is in force."""
    found = patches()
    for patch in found:
        patch.apply()
    yield
    for patch in found:
        patch.undo()


WHOLE = {"answer": "done", "tokens": {"in": 150, "out": 50}}
EVENTS = ({"answer": "do"}, {"answer": "ne", "tokens": {"in": 150, "out": 50}})


def assert_counted(captured: Captured) -> None:
    """Assert that the one call beneath an agent was counted everywhere."""
    assert ["workflow.run", "  PlannerAgent.execute", "    chat gpt-4o-mini"] == captured.tree()
    tags = captured.tags("chat gpt-4o-mini")
    assert (150, 50, 0.0000525, "PlannerAgent") == tuple(
        tags[name] for name in ("input_tokens", "output_tokens", "cost_usd", "agent")
    )
    assert 0.0000525 == captured.tags("workflow.run")["cost_usd"]
    assert (1, 1) == (captured.golden_signals().sample.runs, captured.golden_signals().sample.calls)


def test_an_answer(captured: Captured, server: EmbeddedServer, acme: AcmeClient) -> None:
    """A whole answer is a call with its tokens and cost, beneath the agent that made it."""
    server.script(Reply.raw(json.dumps(WHOLE).encode()))

    @tp.observed_agent(name="PlannerAgent")
    def run() -> Any:
        return acme.ask("gpt-4o-mini", "Create a task")

    assert run() == WHOLE
    assert_counted(captured)


def test_a_stream(captured: Captured, server: EmbeddedServer, acme: AcmeClient) -> None:
    """A streamed answer is one too, read by whoever asked for it."""
    server.script(Reply.events(*EVENTS))

    @tp.observed_agent(name="PlannerAgent")
    def run() -> bytes:
        response = acme.ask("gpt-4o-mini", "Create a task", stream=True)
        return b"".join(response.iter_bytes())

    assert b'"ne"' in run()
    assert_counted(captured)


@pytest.mark.parametrize("stream", [False, True])
async def test_coroutines(
    captured: Captured, server: EmbeddedServer, async_acme: AsyncAcmeClient, stream: bool
) -> None:
    """The client's coroutines are observed as its functions are."""
    server.script(Reply.events(*EVENTS) if stream else Reply.raw(json.dumps(WHOLE).encode()))

    @tp.observed_agent(name="PlannerAgent")
    async def run() -> Any:
        answer = await async_acme.ask("gpt-4o-mini", "Create a task", stream=stream)
        return b"".join([part async for part in answer.aiter_bytes()]) if stream else answer

    answer = await run()
    assert b'"ne"' in answer if stream else answer == WHOLE
    assert_counted(captured)


def test_a_stream_that_is_left(captured: Captured, server: EmbeddedServer, acme: AcmeClient) -> None:
    """Whoever closes the response before its end has cancelled the call."""
    server.script(Reply.events(*EVENTS, part_delay=0.2))

    response = acme.ask("gpt-4o-mini", "Create a task", stream=True)
    next(response.iter_bytes())
    response.close()

    assert "cancelled" == captured.tags("chat gpt-4o-mini")["outcome"]


def test_a_failure(captured: Captured, server: EmbeddedServer, acme: AcmeClient) -> None:
    """A failing call is a failed one, and its error the client's own."""
    server.script(Reply.raw(b"{}", status=500))

    with pytest.raises(httpx.HTTPStatusError):
        acme.ask("gpt-4o-mini", "Create a task")

    assert "HTTPStatusError" == captured.tags("chat gpt-4o-mini")["error.type"]


def test_a_budget(server: EmbeddedServer, acme: AcmeClient) -> None:
    """A budget refuses its calls as any other's, before they are sent."""
    budget = tp.Budget("all", limit_usd="0.00001", on_exceed="block")
    with capture(budgets=[budget], ledger="memory") as captured:
        with pytest.raises(tp.BudgetExceededError):
            acme.ask("gpt-4o-mini", "Create a task")

        assert "blocked" == captured.spans[0].attributes["outcome"]
    assert [] == server.requests
