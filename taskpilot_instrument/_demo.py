"""The demo: run the example workflow, then show its trace, its log lines and its golden signals."""

import asyncio
import importlib.util
import json
import os
import shlex
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count, cycle, islice
from pathlib import Path
from shutil import which
from types import ModuleType
from typing import Final

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider

from taskpilot_instrument import semconv as names
from taskpilot_instrument._instrument import instrument
from taskpilot_instrument._trace_tree import trace_tree
from taskpilot_instrument.embedded import EmbeddedServer
from taskpilot_instrument.runtime import Instrumentation

_COMMAND: Final = "taskpilot-instrument"
_EXAMPLE: Final = "taskpilot_workflow.py"
#: Spans and log lines beyond these are forgotten, oldest first: a run of the demo has about ten of each.
_KEEP: Final = 2_000
_USAGE_ERROR: Final = 2

_NO_OPENAI: Final = """\
The demo calls the model through the openai client, which is not installed. Install it with

    pip install openai rich
"""
_LIVE: Final = """\
OPENAI_API_KEY is set: calling the real API, three small calls a run. Without the key, or with --embedded, the demo
brings a server of its own along.
"""
_TRACES: Final = "Traces: {}. The figures are the spans' own tags."
_NO_TRACES: Final = "Traces: none, because spans are switched off (OTEL_SDK_DISABLED)."
_SWITCHED_OFF: Final = "TASKPILOT_ENABLED switches observation off, so there is nothing to show."
_LOGS: Final = "Log lines: three of the last run above, one JSON object each."
_NEXT: Final = """\
Next:
  put tp.instrument() and the decorators into your own program (README.md shows how)
  send the traces somewhere     OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4318 {command} demo
  see it move                   {command} demo --serve{web}
  serve the metrics             tp.instrument(metrics_port=9464), then open http://127.0.0.1:9464/metrics
"""
_NO_WEB: Final = "      (first: pip install starlette uvicorn)"


def demo(runs: int, *, embedded: bool = False, serve_port: int | None = None) -> int:
    """Run the example workflow and print what was seen of it.

    :param runs: workflow runs, from the example's goals over and over.
    :param embedded: never call the real API, as is done where OPENAI_API_KEY is set.
    :param serve_port: run on and on with the live page on this port, until interrupted; never calls the real API.
    :returns: the exit status.
    """
    if importlib.util.find_spec("openai") is None:
        sys.stderr.write(_NO_OPENAI)
        return _USAGE_ERROR
    if serve_port is not None:
        from taskpilot_instrument._demo_page import demo_with_page

        return demo_with_page(serve_port)
    live = bool(os.environ.get("OPENAI_API_KEY")) and not embedded
    if live:
        sys.stderr.write(_LIVE)
    example = load_example()
    goals = list(islice(cycle(example.GOALS), runs))
    seen, lines = _Spans(), _Lines()
    with instrument(logs=lines) as observed:
        if isinstance(observed.tracer_provider, TracerProvider):  # else spans are switched off
            observed.tracer_provider.add_span_processor(seen)
        with _progress(len(goals)) as tell:
            asyncio.run(work(example, goals, observed, tell, live=live))
        signals = str(observed.golden_signals())
    if not observed.settings.enabled:
        print(_SWITCHED_OFF)
        return 0
    shown = _worth_showing(list(seen.traces()))
    traces = list(shown.values())
    heading = _TRACES.format(", ".join(shown)) if shown else _NO_TRACES
    print(heading, *map(trace_tree, traces), sep="\n\n", end="\n\n")
    has_page = all(map(importlib.util.find_spec, ("starlette", "uvicorn")))
    following = _NEXT.format(command=_called(), web="" if has_page else _NO_WEB)
    print(_LOGS, "\n".join(_of_one_run(lines, traces)), signals, following, sep="\n\n", end="")
    return 0


async def work(
    example: ModuleType,
    goals: Iterable[str],
    observed: Instrumentation,
    tell: Callable[[str, str], None] = lambda _goal, _result: None,
    *,
    live: bool = False,
) -> None:
    """Work off goals, with an embedded server in place of the real API unless told otherwise."""
    import openai

    if live:
        async with openai.AsyncOpenAI() as client:
            await example.work_off(goals, client, observed.metrics, tell)
        return
    with EmbeddedServer(example.answer) as server:
        async with openai.AsyncOpenAI(api_key="none", base_url=server.url) as client:
            await example.work_off(goals, client, observed.metrics, tell)


def load_example() -> ModuleType:
    """Load the example from the wheel, or from the source tree beside this package."""
    here = Path(__file__).parent
    path = next(path for path in (here / "_examples" / _EXAMPLE, here.parent / "examples" / _EXAMPLE) if path.exists())
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- what is kept while it runs -----------------------------------------------------------------


class _Spans(SpanProcessor):
    """Keep the latest finished spans."""

    def __init__(self) -> None:
        self.spans: deque[ReadableSpan] = deque(maxlen=_KEEP)

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)

    def traces(self) -> Iterator[list[ReadableSpan]]:
        """Yield the spans of each trace, in the order in which the traces ended."""
        traces: dict[int, list[ReadableSpan]] = {}
        for span in self.spans:
            if span.context is not None:
                traces.setdefault(span.context.trace_id, []).append(span)
        yield from traces.values()


class _Lines:
    """Keep the latest log lines."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=_KEEP)

    def write(self, text: str, /) -> None:
        self.lines.extend(line for line in text.splitlines() if line)


# --- what is shown ------------------------------------------------------------------------------


def _called() -> str:
    """Return how this command line is called, as it can be pasted: it may lie in an environment that is not active."""
    called = Path(sys.argv[0])
    if called.stem != _COMMAND:
        return f"{shlex.quote(sys.executable)} -m taskpilot_instrument.cli"
    found = which(_COMMAND)
    is_found = found is not None and Path(found).resolve() == called.resolve()
    return _COMMAND if is_found else shlex.quote(str(called))


def _worth_showing(traces: list[list[ReadableSpan]]) -> dict[str, list[ReadableSpan]]:
    """Return a run that was retried, one that was refused and one that failed; the last run where there are none."""
    retried = next((trace for trace in traces if any(_tag(span, names.HTTP_RESEND_COUNT) for span in trace)), None)
    refused, failed = (
        next((trace for trace in traces if _tag(trace[-1], names.OUTCOME) == outcome), None)
        for outcome in (names.Outcome.BLOCKED, names.Outcome.ERROR)
    )
    named = {"one run that met a rate limit": retried, "one refused by policy": refused, "one that failed": failed}
    found = {name: trace for name, trace in named.items() if trace is not None}
    return found or ({"the last run": traces[-1]} if traces else {})


def _tag(span: ReadableSpan, name: str) -> object:
    return (span.attributes or {}).get(name)


def _of_one_run(lines: _Lines, traces: list[list[ReadableSpan]]) -> Iterator[str]:
    """Yield three lines of different kinds that belong to the last trace."""
    wanted = [names.E_LLM_CALLED, names.E_TOOL_FAILED, names.E_WORKFLOW_FINISHED, names.E_TOOL_CALLED]
    trace_ids = {format(trace[-1].context.trace_id, "032x") for trace in traces[-1:] if trace[-1].context is not None}
    first: dict[str, str] = {}
    for line in lines.lines:
        fields = json.loads(line)
        if fields.get(names.F_TRACE_ID) in trace_ids or not trace_ids:
            first.setdefault(fields[names.F_EVENT_NAME], line)
    yield from islice((first[name] for name in wanted if name in first), 3)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[str, str], None]]:
    """Show progress on stderr while the block runs: a bar where rich is installed, else a line for each run."""
    if importlib.util.find_spec("rich") is None:
        done = count(1)
        yield lambda goal, result: print(f"[{next(done)}/{total}] {goal}: {result}", file=sys.stderr)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (MofNCompleteColumn(), BarColumn(bar_width=24), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total)
        yield lambda goal, _result: bar.update(task, advance=1, description=goal)
