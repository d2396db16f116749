"""Fixtures: everything recorded in memory, and a check that no test leaves anything behind."""

import gc
from collections.abc import AsyncIterator, Iterator

import hypothesis
import openai
import pytest
from openai._base_client import AsyncAPIClient, SyncAPIClient

from taskpilot_instrument import _guard, _operation
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
    assert _operation._note_collector not in gc.callbacks
    assert _operation.active() is None
    assert _operation.current() is None
