"""Abandon streams and generators while the garbage collector runs at every step; run by test_exact.py."""

import faulthandler
import gc
import json
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mock_openai import chunks, completion, event_response, json_response, sync_client
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry, generate_latest

import taskpilot_instrument as tp

THREADS, ROUNDS = 4, 150
ASK: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]}


def answer(request: Any) -> Any:
    """Answer as the API would."""
    return event_response(*chunks()) if json.loads(request.content).get("stream") else json_response(completion())


client = sync_client(answer)


@tp.observed_tool
def forever() -> Iterator[int]:
    """Yield without end."""
    while True:
        yield 1


def abandon(number: int) -> None:
    """Leave a stream and a generator behind, in a knot that only the collector unties."""
    stream = client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True})
    for _ in range(1 + number % 4):  # at times the usage has come already
        next(stream)
    generator = forever()
    next(generator)
    knot: list[Any] = [stream, generator]
    knot.append(knot)


def work() -> None:
    """Abandon, and finish others meanwhile."""
    for number in range(ROUNDS):
        with tp.workflow(f"workflow-{number}"):
            abandon(number)
            client.chat.completions.create(**ASK)


def main(watchdog_s: float) -> None:
    """Run the threads and look whether every span ended."""
    faulthandler.dump_traceback_later(watchdog_s, exit=True)
    at_once, in_batches = InMemorySpanExporter(), InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(at_once))
    provider.add_span_processor(BatchSpanProcessor(in_batches, schedule_delay_millis=5))
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.jsonl"
        registry = CollectorRegistry()
        handle = tp.instrument(tracer_provider=provider, logs=log, registry=registry, capture_content=True)
        abandon(0)  # import and bind everything first: these objects are left out of the collections
        gc.collect()
        gc.freeze()
        sys.setswitchinterval(1e-6)
        gc.set_threshold(1)
        threads = [threading.Thread(target=work) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            generate_latest(registry)
            handle.golden_signals()
            threads[0].join(0.05)
        for thread in threads:
            thread.join()
        gc.set_threshold(700)
        gc.collect()
        health = handle.health()
        provider.force_flush()
        lines = log.read_text().splitlines()
        handle.uninstrument()
    runs = THREADS * ROUNDS
    expected = {"workflow.run": runs, "chat gpt-4o-mini": 2 * runs + 1, "forever": runs + 1}
    for spans in (at_once.get_finished_spans(), in_batches.get_finished_spans()):
        names = [span.name for span in spans]
        assert expected == {name: names.count(name) for name in expected}, names
    assert len(lines) == sum(expected.values()), len(lines)
    assert health.errors_swallowed == {}, health
    assert health.calls_seen == health.calls_recorded == 2 * runs + 1, health
    sys.stdout.write("all ended\n")


if __name__ == "__main__":
    main(float(sys.argv[1]))
