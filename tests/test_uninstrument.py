"""``uninstrument()``: nothing is left behind, whoever else patched; beside the testing kit, too."""

import functools
from collections.abc import Callable
from typing import Any

import openai
import pytest
import wrapt
from openai._base_client import AsyncAPIClient, SyncAPIClient
from runtime_kit import ASK, Memory, create_task, footprint

import taskpilot_instrument as tp
from taskpilot_instrument.embedded import EmbeddedServer, Reply
from taskpilot_instrument.testing import capture

pytestmark = [pytest.mark.openai, pytest.mark.usefixtures("clean_environment")]


# --- undo -----------------------------------------------------------------------------------------


def test_context_manager(memory: Memory) -> None:
    """Leaving the block undoes everything, by an exception too, which passes through."""
    before = footprint()
    boom = KeyError("boom")
    with pytest.raises(KeyError) as caught, tp.instrument(tracer_provider=memory.provider) as handle:
        assert before != footprint()
        assert handle.health().active
        raise boom
    assert caught.value is boom
    assert before == footprint()
    assert not handle.health().active


def test_uninstrument_twice(memory: Memory, client: openai.OpenAI) -> None:
    """Undoing twice is harmless, and the handle of one that is over does not touch the next."""
    before = footprint()
    first = tp.instrument(tracer_provider=memory.provider)
    first.uninstrument()
    first.uninstrument()
    tp.uninstrument()
    assert before == footprint()
    second = tp.instrument(tracer_provider=memory.provider)
    assert second is not first
    assert first.shutdown() is True
    client.chat.completions.create(**ASK)
    assert memory.names == ["chat gpt-4o-mini"]
    assert second.health().active
    second.uninstrument()
    assert before == footprint()


def test_uninstrument_inside_a_workflow(memory: Memory) -> None:
    """A run that is under way finishes into the instrumentation that it began under; what begins later is not seen."""
    handle = tp.instrument(tracer_provider=memory.provider)
    with tp.workflow("w"):
        handle.uninstrument()
        assert create_task("x") == "created x"
    assert memory.names == ["workflow.run"]
    assert handle.golden_signals().sample.runs == 1


Theirs = Callable[[Callable[..., Any], list[str]], Callable[..., Any]]


def with_wrapt(original: Callable[..., Any], calls: list[str]) -> Callable[..., Any]:
    """Patch as most instrumentations do."""

    def wrapper(wrapped: Callable[..., Any], instance: Any, args: Any, kwargs: Any) -> Any:
        calls.append("theirs")
        return wrapped(*args, **kwargs)

    return wrapt.FunctionWrapper(original, wrapper)


def with_functools(original: Callable[..., Any], calls: list[str]) -> Callable[..., Any]:
    """Patch as most applications do."""

    @functools.wraps(original)
    def request(*args: Any, **kwargs: Any) -> Any:
        calls.append("theirs")
        return original(*args, **kwargs)

    return request


def with_a_closure(original: Callable[..., Any], calls: list[str]) -> Callable[..., Any]:
    """Patch so that nobody can tell what is beneath."""

    def request(*args: Any, **kwargs: Any) -> Any:
        calls.append("theirs")
        return original(*args, **kwargs)

    return request


@pytest.mark.parametrize("theirs", [with_wrapt, with_functools, with_a_closure])
@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_under_somebody_elses_patch(
    memory: Memory,
    client: openai.OpenAI,
    aclient: openai.AsyncOpenAI,
    monkeypatch: pytest.MonkeyPatch,
    theirs: Theirs,
    mode: str,
) -> None:
    """From under another patch ours is gone or inert, theirs stays and works, and ours again sees each call once."""
    owner: Any = SyncAPIClient if mode == "sync" else AsyncAPIClient
    calls: list[str] = []

    async def call() -> str | None:
        pending: Any = (client if mode == "sync" else aclient).chat.completions.create(**ASK)
        reply = pending if mode == "sync" else await pending
        return str(reply.choices[0].message.content)

    bare = await call()
    with monkeypatch.context() as undone:
        undone.setattr(owner, "request", vars(owner)["request"])  # put back at the end
        handle = tp.instrument(tracer_provider=memory.provider)
        owner.request = patched = theirs(owner.request, calls)
        assert await call() == bare
        assert (len(memory.spans), len(calls)) == (1, 1)

        handle.uninstrument()
        assert vars(owner)["request"] is patched
        assert await call() == bare
        assert (len(memory.spans), len(calls)) == (1, 2)

        for spans in (2, 3):
            with tp.instrument(tracer_provider=memory.provider) as handle:
                assert await call() == bare
                assert handle.health().calls_recorded == 1
                assert handle.health().errors_swallowed == {}
            assert (len(memory.spans), len(calls)) == (spans, spans + 1)

        assert vars(owner)["request"] is patched
        assert await call() == bare
        assert (len(memory.spans), len(calls)) == (3, 5)


def test_wrapt_patch_is_freed_of_ours(memory: Memory, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beneath another wrapt patch our layer is taken out: what theirs wraps afterwards is the original."""
    original = vars(SyncAPIClient)["request"]
    with monkeypatch.context() as undone:
        undone.setattr(SyncAPIClient, "request", original)
        with tp.instrument(tracer_provider=memory.provider):
            patched: Any = with_wrapt(vars(SyncAPIClient)["request"], [])
            SyncAPIClient.request = patched  # type: ignore[method-assign]
            client.chat.completions.create(**ASK)
        assert patched.__wrapped__ is original
        client.chat.completions.create(**ASK)
    assert len(memory.spans) == 1


@pytest.mark.parametrize("theirs", [with_wrapt, with_functools, with_a_closure])
def test_on_top_of_somebody_elses_patch(
    memory: Memory, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch, theirs: Theirs
) -> None:
    """On top of another patch both see the call, and theirs is back as it was; if they take theirs away, so be it."""
    original = vars(SyncAPIClient)["request"]
    calls: list[str] = []
    with monkeypatch.context() as undone:
        patched = theirs(original, calls)
        undone.setattr(SyncAPIClient, "request", patched)
        with tp.instrument(tracer_provider=memory.provider):
            client.chat.completions.create(**ASK)
        assert vars(SyncAPIClient)["request"] is patched
        assert (len(memory.spans), len(calls)) == (1, 1)
        with tp.instrument(tracer_provider=memory.provider):
            SyncAPIClient.request = original  # type: ignore[method-assign]
        assert vars(SyncAPIClient)["request"] is original


def test_uninstrument_in_mid_stream(memory: Memory, server: EmbeddedServer, client: openai.OpenAI) -> None:
    """A stream that is open when all is undone finishes once, as abandoned, and its reader reads on to the end."""
    server.script(Reply("one two three four"), Reply("one two three four"))
    bare = [chunk.choices[0].delta.content for chunk in client.chat.completions.create(**ASK, stream=True)]
    handle = tp.instrument(tracer_provider=memory.provider)
    stream = client.chat.completions.create(**ASK, stream=True)
    seen = [next(stream).choices[0].delta.content]
    handle.uninstrument()
    assert memory.outcomes == ["abandoned"]
    seen += [chunk.choices[0].delta.content for chunk in stream]
    stream.close()
    assert bare == seen
    assert memory.outcomes == ["abandoned"]
    state = handle.health()
    assert (state.calls_seen, state.calls_recorded) == (1, 1)


async def test_uninstrument_in_mid_async_stream(
    memory: Memory, server: EmbeddedServer, aclient: openai.AsyncOpenAI
) -> None:
    """The same for an async stream that is closed early."""
    server.script(Reply("one two three four"))
    handle = tp.instrument(tracer_provider=memory.provider)
    stream = await aclient.chat.completions.create(**ASK, stream=True)
    first = await anext(stream)
    handle.uninstrument()
    rest = [chunk async for chunk in stream]
    await stream.close()
    assert "one two three four" == "".join(chunk.choices[0].delta.content or "" for chunk in [first, *rest])
    assert memory.outcomes == ["abandoned"]


# --- beside the testing kit -----------------------------------------------------------------------


def test_capture_inside_an_instrumented_application(memory: Memory, client: openai.OpenAI) -> None:
    """capture() takes over inside its block, and the application's instrumentation sees again afterwards."""
    with tp.instrument(tracer_provider=memory.provider):
        with capture() as captured:
            client.chat.completions.create(**ASK)
        assert (captured.names(), memory.names) == (["chat gpt-4o-mini"], [])
        client.chat.completions.create(**ASK)
    assert (captured.names(), memory.names) == (["chat gpt-4o-mini"], ["chat gpt-4o-mini"])


def test_capture_leaves_open_streams_alone(memory: Memory, client: openai.OpenAI) -> None:
    """The end of a capture ends no stream that the application opened before it."""
    with tp.instrument(tracer_provider=memory.provider):
        stream = client.chat.completions.create(**ASK, stream=True)
        next(stream)
        with capture():
            pass
        assert memory.spans == []
        list(stream)
    assert memory.outcomes == ["success"]


def test_instrumented_inside_capture(memory: Memory, client: openai.OpenAI) -> None:
    """An application that is instrumented inside a capture, and stays so, still sees its calls when that ends."""
    before = footprint()
    with capture():
        handle = tp.instrument(tracer_provider=memory.provider)
    client.chat.completions.create(**ASK)
    create_task("x")
    assert memory.names == ["chat gpt-4o-mini", "create_task"]
    handle.uninstrument()
    assert before == footprint()


def test_uninstrumented_inside_capture(memory: Memory, client: openai.OpenAI) -> None:
    """An application that undoes its own instrumentation inside a capture does not stop that, nor come back."""
    before = footprint()
    handle = tp.instrument(tracer_provider=memory.provider)
    with capture() as captured:
        handle.uninstrument()
        client.chat.completions.create(**ASK)
        create_task("x")
    create_task("y")
    assert captured.names() == ["chat gpt-4o-mini", "create_task"]
    assert memory.names == []
    assert before == footprint()
