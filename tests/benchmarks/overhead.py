"""Measure what observation costs, beside a bare hand-written OpenTelemetry span in the same run.

    python tests/benchmarks/overhead.py [--rounds 40] [--calls 300]

The bare span has 12 attributes, each set by hand, on the same SDK with the same processor. Each round runs
every case once, in turn, and takes CPU time for a call; the figure is the median over the rounds, less that of
the same code unobserved. Spans end in a processor that drops them: exporting costs the same with and without us.
The client's transport is replaced by one that answers at once, so that what is left is what we add.
"""

import argparse
import gc
import io
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import openai
from openai._base_client import SyncAPIClient
from openai._models import FinalRequestOptions
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from prometheus_client import CollectorRegistry

import taskpilot_instrument as tp
from taskpilot_instrument.runtime import Instrumentation

BODY: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}], "temperature": 0.2}
COMPLETION = ChatCompletion.model_validate(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-4o-mini-2024-07-18",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hi"}}],
        "usage": {"prompt_tokens": 150, "completion_tokens": 50, "total_tokens": 200},
    }
)
CHUNK = {
    "id": "chatcmpl-1",
    "object": "chat.completion.chunk",
    "created": 1,
    "model": "gpt-4o-mini-2024-07-18",
    "choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": None}],
}
CHUNKS = 1000


class Null(io.TextIOBase):
    """A stream that takes log lines and keeps none."""

    def write(self, text: str, /) -> int:
        """Drop the line."""
        return len(text)


class Dropped(SpanProcessor):
    """A processor that takes spans and keeps none."""


def provider(**options: Any) -> TracerProvider:
    """Return a provider like an application's, exporting nowhere."""
    made = TracerProvider(shutdown_on_exit=False, **options)
    made.add_span_processor(Dropped())
    return made


@contextmanager
def instrumented(**settings: Any) -> Iterator[None]:
    """Observe inside the block."""
    given = {"registry": CollectorRegistry(), "tracer_provider": provider(), "logs": "off", **settings}
    handle = Instrumentation(tp.Settings.resolve(given, {}))
    handle.start()
    try:
        yield
    finally:
        handle.uninstrument()


# --- what is measured ---------------------------------------------------------------------------

TRACER = provider().get_tracer("bare")


def bare_span() -> None:
    """Open a span and set 12 attributes, as one would by hand."""
    with TRACER.start_as_current_span("chat gpt-4o-mini") as span:
        span.set_attribute("agent", "PlannerAgent")
        span.set_attribute("model", "gpt-4o-mini")
        span.set_attribute("gen_ai.operation.name", "chat")
        span.set_attribute("gen_ai.provider.name", "openai")
        span.set_attribute("gen_ai.request.model", "gpt-4o-mini")
        span.set_attribute("gen_ai.response.model", "gpt-4o-mini-2024-07-18")
        span.set_attribute("gen_ai.response.id", "chatcmpl-1")
        span.set_attribute("gen_ai.usage.input_tokens", 150)
        span.set_attribute("gen_ai.usage.output_tokens", 50)
        span.set_attribute("cost_usd", 0.0000525)
        span.set_attribute("latency_ms", 12.5)
        span.set_attribute("request_id", "req-abc-123")


CLIENT = openai.OpenAI(api_key="k", base_url="http://127.0.0.1:9/v1")


OPTIONS = FinalRequestOptions.construct(method="post", url="/chat/completions", json_data=BODY)


def llm_call() -> None:
    """Make one chat completion where the client hands it to its transport, which answers at once."""
    CLIENT.request(ChatCompletion, OPTIONS)


def answer_at_once(_self: Any, _cast_to: Any, _options: Any, **_: Any) -> Any:
    """Stand in for ``SyncAPIClient.request``."""
    return COMPLETION


@tp.observed_tool
def tool(text: str) -> str:
    """Do nothing."""
    return text


@tp.observed_agent
class Agent:
    """An agent that calls one tool."""

    def run(self, text: str) -> str:
        """Call the tool."""
        return tool(text)


AGENT = Agent()


class BareAgent:
    """The same without decorators."""

    def run(self, text: str) -> str:
        """Call the tool."""
        return tool.__wrapped__(text)  # type: ignore[attr-defined,no-any-return] # functools.wraps sets it


BARE_AGENT = BareAgent()


def stream_of_chunks() -> Any:
    """Return an SDK stream over ready-made chunks, so that only the iteration costs."""
    chunk = ChatCompletionChunk.model_validate(CHUNK)

    class Ready(openai.Stream[ChatCompletionChunk]):
        def __stream__(self) -> Iterator[ChatCompletionChunk]:
            for _ in range(CHUNKS):
                yield chunk

    return Ready


def answer_with_stream(ready: Any) -> Callable[..., Any]:
    """Stand in for ``SyncAPIClient.request`` with ``stream=True``."""
    import httpx2

    def request(self: Any, _cast_to: Any, _options: Any, *, stream_cls: Any, **_: Any) -> Any:
        response = httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=httpx2.ByteStream(b""))
        return stream_cls(cast_to=ChatCompletionChunk, response=response, client=self)

    request.ready = ready  # type: ignore[attr-defined]
    return request


# --- measuring ----------------------------------------------------------------------------------


def cpu_us(call: Callable[[], object], calls: int) -> float:
    """Return CPU microseconds for one call."""
    began = time.process_time_ns()
    for _ in range(calls):
        call()
    return (time.process_time_ns() - began) / calls / 1000


def measure(rounds: int, calls: int) -> dict[str, float]:
    """Return the median of each case, in microseconds."""
    cases: dict[str, tuple[Callable[[], Any], Callable[[], object]]] = {
        "bare span": (ExitStack, bare_span),
        "llm unobserved": (ExitStack, llm_call),
        "llm": (instrumented, llm_call),
        "llm + log": (lambda: instrumented(logs=Null()), llm_call),
        "llm sampled out": (lambda: instrumented(tracer_provider=provider(sampler=ALWAYS_OFF)), llm_call),
        "pair unobserved": (ExitStack, lambda: BARE_AGENT.run("x")),
        "pair": (in_workflow, lambda: AGENT.run("x")),
    }
    found: dict[str, list[float]] = {name: [] for name in cases}
    gc.collect()
    gc.freeze()
    with mock.patch.object(SyncAPIClient, "request", answer_at_once):
        for _ in range(rounds):
            for name, (around, call) in cases.items():
                with around():
                    cpu_us(call, 20)
                    found[name].append(cpu_us(call, calls))
    found.update(measure_chunks(rounds))
    return {name: statistics.median(values) for name, values in found.items()}


@contextmanager
def in_workflow() -> Iterator[None]:
    """Observe inside the block, with a workflow around it."""
    with instrumented(), tp.workflow("w"):
        yield


def measure_chunks(rounds: int) -> dict[str, list[float]]:
    """Return CPU microseconds for one chunk, observed and not."""
    ready = stream_of_chunks()
    found: dict[str, list[float]] = {"chunk unobserved": [], "chunk": []}

    def read() -> None:
        stream: Any = CLIENT.post(
            "/chat/completions", cast_to=ChatCompletionChunk, body=BODY, stream=True, stream_cls=ready
        )
        for _ in stream:
            pass

    with mock.patch.object(SyncAPIClient, "request", answer_with_stream(ready)):
        for _ in range(rounds):
            for name, around in (("chunk unobserved", ExitStack), ("chunk", instrumented)):
                with around():
                    read()
                    found[name].append(cpu_us(read, 3) / CHUNKS)
    return found


def import_ms(module: str) -> float:
    """Return the wall-clock milliseconds of an import in a fresh interpreter, less those of a bare start."""

    def run(code: str) -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return (time.perf_counter() - began) * 1000

    return statistics.median(run(f"import {module}") - run("pass") for _ in range(7))


def main() -> None:
    """Print each figure and its ratio to the bare span."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=40)
    options.add_argument("--calls", type=int, default=300)
    args = options.parse_args()
    found = measure(args.rounds, args.calls)
    bare = found["bare span"]
    llm = found["llm unobserved"]
    print(f"bare span with 12 attributes {bare:10.2f} µs")
    for name, cost, target in (
        ("LLM call", found["llm"] - llm, "1.5"),
        ("LLM call with JSON log", found["llm + log"] - llm, "1.8"),
        ("LLM call, sampled out", found["llm sampled out"] - llm, "0.6"),
    ):
        print(f"{name:28} {cost:10.2f} µs   {cost / bare:5.2f} × bare       (target ≤ {target})")
    pair = found["pair"] - found["pair unobserved"]
    print(f"{'agent + tool':28} {pair:10.2f} µs   {pair / bare / 2:5.2f} × two bare   (target ≤ 1.4)")
    chunk = found["chunk"] - found["chunk unobserved"]
    print(f"{'streamed chunk':28} {chunk:10.3f} µs   (target ≤ 0.3 µs)")
    print(f"{'import':28} {import_ms('taskpilot_instrument'):10.0f} ms")
    print(f"{'import opentelemetry.sdk':28} {import_ms('opentelemetry.sdk.trace'):10.0f} ms")


if __name__ == "__main__":
    main()
