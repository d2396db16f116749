"""What README.md shows, made by running it.

    .venv/bin/python tests/readme.py      rewrites the blocks between `<!-- begin: … -->` and `<!-- end -->`

The test beside this file holds that README.md shows what comes out here, times and ids apart.
"""

import contextlib
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry, generate_latest

import taskpilot_instrument as tp
from taskpilot_instrument._trace_tree import trace_tree
from taskpilot_instrument.embedded import EmbeddedServer, Reply
from taskpilot_instrument.settings import Settings

README: Final = Path(__file__).resolve().parent.parent / "README.md"
_BLOCK: Final = re.compile(r"(<!-- begin: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
#: Lines of the example's metrics that the README shows: a few of each kind.
_SHOWN: Final = (
    "taskpilot_workflow_runs_total", "taskpilot_llm_tokens_total{", "taskpilot_llm_cost_usd_total",
    "taskpilot_tool_calls_total", "workflow_success", "llm_cost_agent_", "llm_tokens_total_gpt",
)  # fmt: skip


def programs(readme: str) -> list[str]:
    """Return every block of Python."""
    return re.findall(r"```python\n(.*?)```", readme, re.DOTALL)


def shown(readme: str) -> dict[str, str]:
    """Return the generated blocks as they stand in the README, by name."""
    return {name: whole for whole, name in ((each[0], each[2]) for each in _BLOCK.finditer(readme))}


def generated(readme: str) -> dict[str, str]:
    """Return the generated blocks as they should stand there."""
    blocks = {**run(programs(readme)[0]), "settings": settings_table()}
    return {name: f"<!-- begin: {name} -->\n{text}\n<!-- end -->" for name, text in blocks.items()}


def run(program: str) -> dict[str, str]:
    """Run the example against the embedded server; return what it printed and recorded, each as a block."""
    spans, log, printed, registry = InMemorySpanExporter(), io.StringIO(), io.StringIO(), CollectorRegistry()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    answer = Reply("Collect the merged changes", usage=tp.TokenUsage(150, 50), delay=0.2)
    with (
        EmbeddedServer(lambda _: answer) as server,
        _environment(OPENAI_BASE_URL=server.url, OPENAI_API_KEY="none"),
        # The example's own instrument() finds this one in force, and changes nothing.
        tp.instrument(tracer_provider=provider, logs=log, registry=registry),
        contextlib.redirect_stdout(printed),
    ):
        known: dict[str, Any] = {"__name__": "__main__"}
        exec(compile(program, str(README), "exec"), known)
        known["client"].close()
        metrics = generate_latest(registry).decode()
    provider.shutdown()
    line = next(line for line in log.getvalue().splitlines() if json.loads(line)["event_name"] == "llm.called")
    samples = [line for line in metrics.splitlines() if line.startswith(_SHOWN) and not line.endswith(" 0.0")]
    return {
        "trace": _fenced(trace_tree(spans.get_finished_spans())),
        "log": _fenced(line, "json"),
        "metrics": _fenced("\n".join(samples)),
        "signals": _fenced(printed.getvalue().rstrip()),
    }


def settings_table() -> str:
    """Return every setting as a table of Markdown."""
    rows = [("setting", "value", "default", "environment", "what it does"), ("---",) * 5]
    for row in Settings.table():
        variables = ", ".join(f"`{name}`" for name in row.variables) or "–"
        rows.append((f"`{row.name}`", f"`{row.type}`".replace("|", "\\|"), f"`{row.default}`", variables, row.doc))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def without_times(text: str) -> str:
    """Replace what differs from run to run: times, ids, and the blanks that align them."""
    text = re.sub(r"[\d,.]+ ms\b", "T ms", text)
    text = re.sub(r"at \d{4}-\d\d-\d\dT[\d:]+Z", "at T", text)
    text = re.sub(r'"(timestamp|request_id|trace_id|span_id)": "[^"]*"', r'"\1": ID', text)
    text = re.sub(r'"latency_ms": [\d.]+', '"latency_ms": T', text)
    return re.sub(r" +", " ", text)


def _fenced(text: str, language: str = "text") -> str:
    return f"```{language}\n{text}\n```"


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def main() -> None:
    """Rewrite the generated blocks of README.md."""
    readme = README.read_text()
    blocks = generated(readme)
    README.write_text(_BLOCK.sub(lambda found: blocks[found[2]], readme))


if __name__ == "__main__":
    main()
