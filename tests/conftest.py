"""Fixtures: everything recorded in memory, and a check that no test leaves anything behind."""

import gc
import logging
import os
from collections.abc import AsyncIterator, Iterator

import hypothesis
import openai
import pytest
from log_bench import Bench, Kept
from openai._base_client import AsyncAPIClient, SyncAPIClient
from runtime_kit import Memory

import taskpilot_instrument as tp
from taskpilot_instrument import _collector, _guard, _operation, _recorder
from taskpilot_instrument.embedded import EmbeddedServer
from taskpilot_instrument.testing import Captured, capture

# How long an example takes depends on the machine, and says nothing about the code.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture
def captured() -> Iterator[Captured]:
    """Instrumentation that records in memory and raises its own errors."""
    with capture() as everything:
        yield everything


@pytest.fixture
def server() -> Iterator[EmbeddedServer]:
    """An OpenAI-compatible server on 127.0.0.1."""
    with EmbeddedServer() as running:
        yield running


@pytest.fixture
def client(server: EmbeddedServer) -> Iterator[openai.OpenAI]:
    """The real client, made before any patch."""
    with openai.OpenAI(api_key="sk-test", base_url=server.url) as made:
        yield made


@pytest.fixture
async def aclient(server: EmbeddedServer) -> AsyncIterator[openai.AsyncOpenAI]:
    """The real async client."""
    async with openai.AsyncOpenAI(api_key="sk-test", base_url=server.url) as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Assert that a test leaves no patch, no active recorder and no current operation behind."""
    gc.freeze()  # what is there already need not be looked through again when the test ends
    _guard.reset()
    before = [
        vars(owner)[name] for owner in (SyncAPIClient, AsyncAPIClient) for name in ("request", "_process_response")
    ]
    yield
    gc.collect()
    after = [
        vars(owner)[name] for owner in (SyncAPIClient, AsyncAPIClient) for name in ("request", "_process_response")
    ]
    assert before == after
    assert not _collector.is_watched()
    assert _recorder.active() is None
    assert _operation.current() is None


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hide the developer's own variables, and let no failed test stay instrumented."""
    for name in os.environ:
        if name.startswith(("OTEL_", "TASKPILOT_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TASKPILOT_LOGS", "off")
    yield
    tp.uninstrument()
    _guard.reset()


@pytest.fixture
def memory() -> Iterator[Memory]:
    """A tracer provider of the application."""
    made = Memory()
    yield made
    made.provider.shutdown()


@pytest.fixture
def bench() -> Bench:
    """A sink that writes the flat profile into memory."""
    return Bench()


@pytest.fixture
def swallowing() -> Iterator[None]:
    """Let the guard swallow, as in production, and forget what it counted."""
    before, _guard.policy.reraise = _guard.policy.reraise, False
    yield
    _guard.policy.reraise = before
    _guard.reset()


@pytest.fixture
def logger() -> logging.Logger:
    """A stdlib logger of its own."""
    made = logging.Logger("app", logging.INFO)  # noqa: LOG001 - no other test may see it
    made.addHandler(Kept())
    return made
