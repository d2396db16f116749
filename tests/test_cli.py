"""The commands of the command line, against a page on a real socket."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import openai
import pytest

import taskpilot_instrument as tp
from taskpilot_instrument.budgets import Budget
from taskpilot_instrument.cli import main
from taskpilot_instrument.testing import Captured, capture
from taskpilot_instrument.web import Server, serve

COMMANDS = ["demo", "serve", "signals", "runs", "budgets", "models", "experiments", "prices", "check", "report"]


@pytest.fixture
def shown() -> Iterator[tuple[Captured, Server]]:
    """A page over instrumentation in memory."""
    settings: dict[str, Any] = {"budgets": [Budget("daily", "0.0000001")], "ledger": "memory"}
    with capture(**settings) as captured, serve(0, handle=captured.handle) as server:
        yield captured, server


def fail_once() -> None:
    """Make a run that fails."""
    with pytest.raises(ValueError, match="no"), tp.workflow("w"):
        raise ValueError("no")


def test_signals(shown: tuple[Captured, Server], capsys: pytest.CaptureFixture[str]) -> None:
    """The signals are shown as a table and as JSON; ``--fail-on`` makes a bad verdict the exit status."""
    url = shown[1].url
    with tp.workflow("w"):
        pass
    assert 0 == main(["signals", "--url", url, "--fail-on", "warning"])
    fail_once()
    assert 0 == main(["signals", "--url", url])
    printed = capsys.readouterr().out
    assert re.search(r"success rate +50.00 % +critical +1 of 2 runs", printed)
    assert re.search(r"user correctness +– +no threshold", printed)
    assert 0 == main(["signals", "--url", url, "--format", "json", "--window", "15m"])
    assert 2 == json.loads(capsys.readouterr().out)["runs"]
    assert [1, 1] == [main(["signals", "--url", url, "--fail-on", each]) for each in ("critical", "warning")]


def test_budgets(shown: tuple[Captured, Server], client: openai.OpenAI, capsys: pytest.CaptureFixture[str]) -> None:
    """Budgets are shown, and a spent one is the exit status."""
    assert 0 == main(["budgets", "--url", shown[1].url])
    client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "x"}])
    assert 1 == main(["budgets", "--url", shown[1].url])
    assert "daily" in capsys.readouterr().out


def test_what_cannot_be_reached_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """No page there, or a wrong question, is exit status 2 and a sentence that says what to do."""
    assert 2 == main(["signals", "--url", "http://127.0.0.1:1"])
    assert "demo --serve" in capsys.readouterr().err
    assert 2 == main(["signals", "--url", "127.0.0.1"])
    assert "expected an address" in capsys.readouterr().err


def test_wrong_window_is_told(shown: tuple[Captured, Server], capsys: pytest.CaptureFixture[str]) -> None:
    """The page's hint is the command's."""
    assert 2 == main(["signals", "--url", shown[1].url, "--window", "yesterday"])
    assert "such as '90s'" in capsys.readouterr().err


def test_prices(capsys: pytest.CaptureFixture[str]) -> None:
    """A model's price for a million tokens is shown; an unknown model is exit status 1."""
    assert 0 == main(["prices", "gpt-4o-mini"])
    out = capsys.readouterr().out
    assert re.search(r"input +\$0\.15 +genai-prices", out)
    assert re.search(r"output +\$0\.6 +genai-prices", out)
    assert 1 == main(["prices", "my-own-model"])
    said = capsys.readouterr()
    assert 'my-own-model has no known price: set MODEL_PRICING["my-own-model"]' in said.out
    assert (1, "") == (len(said.out.splitlines()), said.err)


def test_an_unknown_price_is_said_once(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    """The answer says it; the library's own warning does not say it again."""
    assert 1 == main(["prices", "one-more-model-of-mine", "--provider", "azure"])
    assert 1 == main(["check", "--model", "yet-another-model-of-mine"])
    assert "one-more-model-of-mine, provider azure has no known price" in capsys.readouterr().out
    assert [] == [line for line in caplog.messages if "of-mine" in line]


def test_check(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """``check`` says what is patched, priced and reachable; a receiver that is not there is exit status 1."""
    assert 0 == main(["check"])
    assert "openai.SyncAPIClient.request" in capsys.readouterr().out
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    assert 1 == main(["check"])
    assert "cannot be reached" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_by_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command has a help with examples of its own, and what its exit status means."""
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert 0 == left.value.code
    out = capsys.readouterr().out
    assert f"  taskpilot-instrument {command}" in out
    assert "exit status:\n  0  " in out
    others = re.findall(rf"^  taskpilot-instrument (?!{command}\b)", out, re.MULTILINE)
    assert [] == others


def test_demo_with_the_page() -> None:
    """``demo --serve`` runs on with a page that moves, and ends at once when interrupted."""
    command = [sys.executable, "-m", "taskpilot_instrument.cli", "demo", "--serve", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OPENAI_API_KEY": ""})
    assert process.stdout is not None
    try:
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found is not None
        for _ in range(100):
            answer = subprocess.run(
                [sys.executable, "-m", "taskpilot_instrument.cli", "signals", "--url", found[0], "--format", "json"],
                capture_output=True, text=True, check=True, timeout=30,
            )  # fmt: skip
            if json.loads(answer.stdout)["runs"] >= 2:
                break
        assert json.loads(answer.stdout)["runs"] >= 2
    finally:
        process.send_signal(signal.SIGINT)
        try:
            status = process.wait(20)
        finally:
            process.kill()
            process.stdout.close()
    assert 0 == status
