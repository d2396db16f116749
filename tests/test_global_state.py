"""What is the application's own stays as it was: global state, providers, processors."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from taskpilot_instrument.embedded import EmbeddedServer

pytestmark = [pytest.mark.openai, pytest.mark.usefixtures("clean_environment")]


#: Defines ``state()``: the objects that an application may have set up for itself.
STATE = """
import asyncio, gc, json, logging, os, signal, socket, sys, threading, warnings

def state():
    found = {
        "root handlers": list(logging.root.handlers), "root filters": list(logging.root.filters),
        "root level": logging.root.level, "logger class": logging.getLoggerClass(),
        "record factory": logging.getLogRecordFactory(), "logging disabled": logging.root.manager.disable,
        "warning filters": list(warnings.filters), "showwarning": warnings.showwarning,
        "excepthook": sys.excepthook, "unraisablehook": sys.unraisablehook, "thread excepthook": threading.excepthook,
        "stdout": sys.stdout, "stderr": sys.stderr, "trace": sys.gettrace(), "profile": sys.getprofile(),
        "gc threshold": gc.get_threshold(), "environment": dict(os.environ),
        "recursion limit": sys.getrecursionlimit(), "timeout": socket.getdefaulttimeout(), "path": list(sys.path),
        "threads": sorted(thread.name for thread in threading.enumerate()),
    }
    for number in signal.valid_signals():
        found[f"signal {number}"] = signal.getsignal(number)
    if "structlog" in sys.modules:
        import structlog
        found["structlog configured"] = structlog.is_configured()
        config = structlog.get_config()
        found |= {f"structlog {name}": value for name, value in config.items() if name != "processors"}
        found["structlog processors"] = list(config["processors"])
    if "opentelemetry.propagate" in sys.modules:
        from opentelemetry import context, metrics, propagate, trace
        found["tracer provider"] = trace.get_tracer_provider()
        found["meter provider"] = metrics.get_meter_provider()
        found["propagator"] = propagate.get_global_textmap()
        found["context"] = context.get_current()
    return found

def same(a, b):
    if isinstance(a, list):
        return len(a) == len(b) and all(x is y for x, y in zip(a, b))
    return a is b or (isinstance(a, (int, str, tuple, dict, float, list)) and a == b)

def changed(before, now):
    return sorted(name for name, value in before.items() if not same(value, now[name]))
"""

CONFIGURED = """
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry import propagate
import structlog
structlog.configure(processors=[structlog.processors.JSONRenderer()], logger_factory=structlog.PrintLoggerFactory())
logging.basicConfig(level=logging.ERROR)
logging.root.addFilter(lambda record: True)
warnings.simplefilter("error", UserWarning)
sys.excepthook = lambda *error: sys.__excepthook__(*error)
threading.excepthook = lambda args: None
signal.signal(signal.SIGTERM, lambda *_: None)
signal.signal(signal.SIGINT, signal.SIG_IGN)
trace.set_tracer_provider(TracerProvider())
metrics.set_meter_provider(MeterProvider())
"""

WORK = """
import opentelemetry.propagate, structlog
from opentelemetry import metrics, trace
{setup}
import openai, prometheus_client
import taskpilot_instrument as tp

client = openai.OpenAI(max_retries=0)

def work():
    with tp.workflow("w"):
        client.chat.completions.create(model="gpt-4o-mini", messages=[{{"role": "user", "content": "x"}}])
    usage = {{"include_usage": True}}
    list(client.chat.completions.create(model="gpt-4o-mini", messages=[], stream=True, stream_options=usage))

work()
prometheus_client.generate_latest()
before = state()
handle = tp.instrument(logs=open(os.devnull, "w"), capture_content=True)
instrumented = changed(before, state())
work()
prometheus_client.generate_latest()
handle.force_flush()
worked = changed(before, state())
handle.uninstrument()
print(json.dumps([instrumented, worked, changed(before, state()), handle.health().calls_recorded]))
"""


def run(script: str, **environ: str) -> Any:
    """Run a script in a process of its own, and return the JSON that it prints last."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "TASKPILOT_"))}
    ended = subprocess.run(
        [sys.executable, "-c", script], env=inherited | environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    return json.loads(ended.stdout)


@pytest.mark.parametrize("setup", ["", CONFIGURED], ids=["bare", "configured"])
def test_global_state_is_not_ours(server: EmbeddedServer, setup: str) -> None:
    """Logging, structlog, warnings, hooks, signals, providers: the same objects before, while and after."""
    found = run(STATE + WORK.format(setup=setup), OPENAI_BASE_URL=server.url, OPENAI_API_KEY="sk-test")
    assert found == [[], [], [], 2]


def test_import_alone() -> None:
    """Importing touches no global state, no network and no thread, and imports neither openai nor the SDK."""
    script = """
events = []
sys.addaudithook(lambda event, args: events.append(event) if event.startswith(watched) else None)
watched = ("socket.", "_thread.start", "subprocess.", "os.fork", "os.posix_spawn", "signal.")
before = state()
import taskpilot_instrument
after = state()
from opentelemetry import metrics, trace
import prometheus_client, structlog
heavy = ("openai", "opentelemetry.sdk", "grpc", "requests", "httpx", "starlette", "redis", "scipy")
print(json.dumps([
    events,
    changed(before, after),
    [name for name in heavy if name in sys.modules],
    [type(trace.get_tracer_provider()).__name__, type(metrics.get_meter_provider()).__name__],
    structlog.is_configured(),
    [metric.name for metric in prometheus_client.REGISTRY.collect() if "taskpilot" in metric.name],
]))
"""
    assert run(STATE + script) == [[], [], [], ["ProxyTracerProvider", "_ProxyMeterProvider"], False, []]


def test_application_provider() -> None:
    """The application's global provider is used: its processors see our spans, under its own; it is never shut down."""
    script = """
import json
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
import taskpilot_instrument as tp

class Processor(SpanProcessor):
    ended, flushed, closed = [], 0, 0
    def on_end(self, span):
        self.ended.append([span.name, span.parent and span.parent.span_id])
    def force_flush(self, timeout_millis=30000):
        Processor.flushed += 1
        return True
    def shutdown(self):
        Processor.closed += 1

provider = TracerProvider(shutdown_on_exit=False)
provider.add_span_processor(Processor())
trace.set_tracer_provider(provider)
with tp.instrument(logs="off", service_name="ignored") as handle:
    with trace.get_tracer("application").start_as_current_span("request") as span:
        with tp.workflow("w"):
            with trace.get_tracer("application").start_as_current_span("query"):
                pass
    names = [name for name, _ in Processor.ended]
    under = Processor.ended[1][1] == span.get_span_context().span_id
    where, is_theirs = handle.health().spans_go_to, handle.tracer_provider is provider
with trace.get_tracer("application").start_as_current_span("afterwards"):
    pass
print(json.dumps([names, under, where, is_theirs, Processor.flushed, Processor.closed, Processor.ended[-1][0]]))
"""
    assert run(script, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9") == [
        ["query", "workflow.run", "request"],
        True,
        "the application's tracer provider",
        True,
        1,
        0,
        "afterwards",
    ]
