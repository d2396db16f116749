"""``opentelemetry-instrument`` switches observation on without a line of code."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from taskpilot_instrument.embedded import EmbeddedServer

APPLICATION = """
import openai, opentelemetry.trace

client = openai.OpenAI(api_key="sk-test", base_url={url!r})
client.chat.completions.create(model="gpt-4o-mini", messages=[{{"role": "user", "content": "hello"}}])
"""


def run(tmp_path: Path, url: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run an application that knows nothing of us under ``opentelemetry-instrument``."""
    command = Path(sys.executable).with_name("opentelemetry-instrument")
    if not command.exists() and shutil.which("opentelemetry-instrument") is None:
        pytest.fail("opentelemetry-instrument is missing: install the extra dev")
    app = tmp_path / "app.py"
    app.write_text(APPLICATION.format(url=url))
    quiet = {"OTEL_TRACES_EXPORTER": "console", "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}
    return subprocess.run(
        [str(command), sys.executable, str(app)],
        env={**os.environ, **quiet, **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_an_application_is_observed_without_code(tmp_path: Path, server: EmbeddedServer) -> None:
    """The call of an application without a line of ours is a log line and a span of the auto-instrumentation's SDK."""
    done = run(tmp_path, server.url, OTEL_SERVICE_NAME="zero-code", TASKPILOT_LOG_PROFILE="flat")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert ["llm.called"] == [line["event_name"] for line in lines]
    assert lines[0]["service_name"] == "zero-code"
    assert '"name": "chat gpt-4o-mini"' in done.stdout
    assert lines[0]["trace_id"] in done.stdout


def test_it_can_be_left_off(tmp_path: Path, server: EmbeddedServer) -> None:
    """``OTEL_PYTHON_DISABLED_INSTRUMENTATIONS`` leaves us off, as any other instrumentation."""
    done = run(tmp_path, server.url, OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="taskpilot")
    assert done.returncode == 0, done.stderr
    assert "llm.called" not in done.stderr
    assert "chat gpt-4o-mini" not in done.stdout


def test_a_wrong_variable_is_told_and_the_application_runs(tmp_path: Path, server: EmbeddedServer) -> None:
    """A setting that is not valid is said on stderr with what would be right; the application still runs."""
    done = run(tmp_path, server.url, TASKPILOT_LOG_PROFILE="nested")
    assert done.returncode == 0, done.stderr
    assert "TASKPILOT_LOG_PROFILE='nested'" in done.stderr


def test_without_a_collector_nobody_complains(tmp_path: Path, server: EmbeddedServer) -> None:
    """What would be sent to a collector on localhost is switched off by two variables; what we record goes on."""
    ended = run(tmp_path, server.url, OTEL_TRACES_EXPORTER="none", TASKPILOT_LOG_LEVEL="INFO")
    assert 0 == ended.returncode, ended.stderr
    lines = [json.loads(line) for line in ended.stderr.splitlines()]
    assert ["llm.called"] == [line["event_name"] for line in lines]
