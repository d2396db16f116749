"""Fixtures: everything recorded in memory, and a check that no test leaves anything behind."""

import gc
import logging
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from typing import Any

import hypothesis
import openai
import pytest
from backends import RedisServer
from log_bench import Bench, Kept
from openai._base_client import AsyncAPIClient, SyncAPIClient
from runtime_kit import Memory

import taskpilot_instrument as tp
from taskpilot_instrument import _collector, _guard, _operation, _recorder
from taskpilot_instrument.embedded import EmbeddedServer
from taskpilot_instrument.testing import Captured, capture
from taskpilot_instrument.web import Server, serve

# How long an example takes depends on the machine, and says nothing about the code.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture
def captured(request: pytest.FixtureRequest) -> Iterator[Captured]:
    """Instrumentation that records in memory and raises its own errors; a module's ``CAPTURE`` holds its settings."""
    with capture(**getattr(request.module, "CAPTURE", {})) as everything:
        yield everything


@pytest.fixture
def server() -> Iterator[EmbeddedServer]:
    """An OpenAI-compatible server on 127.0.0.1."""
    with EmbeddedServer() as running:
        yield running


@pytest.fixture
def client(request: pytest.FixtureRequest, server: EmbeddedServer) -> Iterator[openai.OpenAI]:
    """The real client, made before any patch; a module's ``CLIENT`` holds further arguments."""
    with openai.OpenAI(api_key="sk-test", base_url=server.url, **getattr(request.module, "CLIENT", {})) as made:
        yield made


@pytest.fixture
async def aclient(request: pytest.FixtureRequest, server: EmbeddedServer) -> AsyncIterator[openai.AsyncOpenAI]:
    """The real async client, likewise."""
    more = getattr(request.module, "CLIENT", {})
    async with openai.AsyncOpenAI(api_key="sk-test", base_url=server.url, **more) as made:
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


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A real Redis."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium, without a window."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        message = "not installed: chromium (apt-get install chromium)"
        if os.environ.get("TASKPILOT_REQUIRE_BACKENDS") == "1":
            pytest.fail(message)
        pytest.skip(message)
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def shown() -> Iterator[tuple[Captured, Server]]:
    """Instrumentation and a server that shows it."""
    with capture() as captured, serve(0, handle=captured.handle) as server:
        yield captured, server
