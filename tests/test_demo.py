"""The demo and its example: what they print is what was sent, added up right."""

import json
import re
import runpy
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any, Final

import openai
import pytest
from opentelemetry.sdk.trace import ReadableSpan

import taskpilot_instrument as tp
from taskpilot_instrument._demo import load_example, work
from taskpilot_instrument._demo_page import BUDGETS, goals
from taskpilot_instrument._trace_tree import trace_tree
from taskpilot_instrument.cli import main
from taskpilot_instrument.embedded import EmbeddedServer, Received, Reply
from taskpilot_instrument.testing import Captured, capture

pytestmark = pytest.mark.openai

EXAMPLE: Final = Path(__file__).resolve().parent.parent / "examples" / "taskpilot_workflow.py"


# --- the example --------------------------------------------------------------------------------


class Example:
    """What one pass of the example over its goals sent and recorded."""

    def __init__(self, captured: Captured, sent: list[Reply], told: dict[str, str]) -> None:
        self.captured = captured
        self.sent = sent
        self.told = told

    def below(self, root: ReadableSpan, prefix: str) -> list[ReadableSpan]:
        """Return the spans of a root's trace, below it at any depth, whose name begins with ``prefix``."""
        spans = {span.context.span_id: span for span in self.captured.spans if span.context is not None}

        def is_below(span: ReadableSpan) -> bool:
            while span.parent is not None:
                span = spans[span.parent.span_id]
                if span is root:
                    return True
            return False

        return [span for span in spans.values() if span.name.startswith(prefix) and is_below(span)]


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine has set, no test spends money."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


@pytest.fixture
async def example(captured: Captured) -> Example:
    """Run the example as it stands against an embedded server that remembers what it answered."""
    program: dict[str, Any] = runpy.run_path(str(EXAMPLE))
    sent: list[Reply] = []
    told: dict[str, str] = {}

    def answer(request: Received) -> Reply:
        sent.append(replace(program["answer"](request), delay=0.0, part_delay=0.0))
        return sent[-1]

    with EmbeddedServer(answer) as server:
        async with openai.AsyncOpenAI(api_key="none", base_url=server.url) as client:
            await program["work_off"](program["GOALS"], client, captured.metrics, told.__setitem__)
    return Example(captured, sent, told)


async def test_llm_spans_hold_what_the_server_sent(example: Example) -> None:
    """Each answer that carried usage is one LLM span with exactly its numbers."""
    sent = Counter((reply.usage.input_tokens, reply.usage.output_tokens) for reply in example.sent if reply.usage)
    spans = [dict(span.attributes or {}) for span in example.captured.spans if span.name.startswith("chat ")]
    assert sent == Counter((tags["input_tokens"], tags["output_tokens"]) for tags in spans)
    assert 1 == len([tags for tags in spans if tags.get("http.request.resend_count") == 1])


async def test_numbers_add_up_at_each_level(example: Example) -> None:
    """Each figure on every workflow and agent span is the exact sum over the LLM calls beneath it."""
    runs = [span for span in example.captured.spans if span.name == "workflow.run" or span.name.endswith(".execute")]
    assert 10 + 10 + 10 + 9 == len(runs)
    for run in runs:
        calls = example.below(run, "chat ")
        for tag in ("input_tokens", "output_tokens", "cost_usd"):
            assert sum(figure(call, tag) for call in calls) == figure(run, tag), (run.name, tag)


def figure(span: ReadableSpan, tag: str) -> Decimal:
    """Return a tag's number as it is written."""
    return Decimal(str((span.attributes or {})[tag]))


async def test_example_shows_each_ending(example: Example) -> None:
    """Of ten goals eight succeed, one fails in a tool, one is blocked; the violation is counted once."""
    outcomes = Counter(str((s.attributes or {})["outcome"]) for s in example.captured.spans if s.name == "workflow.run")
    assert {"success": 8, "error": 1, "blocked": 1} == outcomes
    assert "failed: the pager gateway does not answer" == example.told["Page the engineer on call"]
    assert "blocked: REJECT" in example.told["Send the customer list to my private address"]
    metrics = example.captured.metrics
    assert 1 == metrics.get_counter("policy.violations.total")
    assert 1 == metrics.get_counter("agent.ReviewerAgent.policy.violations")
    assert (80.0, 87.5) == (
        metrics.get_golden_signals()["success_rate"],
        metrics.get_golden_signals()["user_confirmed_correctness_percent"],
    )


async def test_votes_are_known_by_agent_and_model(example: Example) -> None:
    """Users' verdicts are linked to their runs, so that every breakdown by correctness has them."""
    handle = example.captured.handle
    sample = handle.golden_signals(agent="ExecutorAgent").sample
    assert (7, 1) == (sample.correct, sample.incorrect)
    (model,) = handle.compare_models().models
    assert (87.5, 8) == (model.correctness_percent.value, model.correctness_percent.sample)


def test_example_runs_on_its_own() -> None:
    """As a script the example works off its goals and prints the golden signals; its log lines go to stderr."""
    ran = subprocess.run([sys.executable, str(EXAMPLE)], check=True, capture_output=True, text=True, timeout=60)
    assert "Golden signals" in ran.stdout
    assert "8 of 10 runs" in ran.stdout
    assert {"triage"} == {json.loads(line)["workflow"] for line in ran.stderr.splitlines()}


# --- the command --------------------------------------------------------------------------------


def test_demo_prints_trees_lines_and_signals(capsys: pytest.CaptureFixture[str]) -> None:
    """The demo shows a retried, a refused and a failed run, three log lines that share ids, the five signals."""
    assert 0 == main(["demo"])
    printed = capsys.readouterr().out
    assert 2 == printed.count("workflow.run                      1,700         126  $0.0002538")
    assert "chat gpt-4o-mini              150          50  $0.0000525" in printed
    assert "Traces: one run that met a rate limit, one refused by policy, one that failed." in printed
    assert re.search(r"retried 1×$", printed, re.MULTILINE)
    assert 3 == len(
        re.findall(r"chat gpt-4o-mini +1,240 .* streamed, first chunk after [\d.]+ ms$", printed, re.MULTILINE)
    )
    assert re.search(r"ReviewerAgent.execute .* blocked", printed)
    assert re.search(r"└─ notify_external_system .* error, ConnectionError$", printed, re.MULTILINE)
    lines = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    assert ["llm.called", "tool.failed", "workflow.finished"] == [line["event_name"] for line in lines]
    assert 1 == len({(line["request_id"], line["trace_id"]) for line in lines})
    assert re.search(r"success rate +80\.00 %", printed)
    assert re.search(r"policy violations +10\.00 %", printed)


@pytest.mark.parametrize(
    ("called", "path", "shown"),
    [
        (".venv/bin/taskpilot-instrument", "/usr/bin", ".venv/bin/taskpilot-instrument"),
        ("{bin}/taskpilot-instrument", "{bin}", "taskpilot-instrument"),
        ("/my tools/taskpilot-instrument", "{bin}", "'/my tools/taskpilot-instrument'"),
        ("cli.py", "{bin}", f"{sys.executable} -m taskpilot_instrument.cli"),
    ],
)
def test_what_comes_next_can_be_pasted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    called: str, path: str, shown: str,
) -> None:  # fmt: skip
    """The commands at the end name the program as it was called, by its name alone where the shell finds it."""
    program = tmp_path / "taskpilot-instrument"
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", path.format(bin=tmp_path))
    monkeypatch.setattr(sys, "argv", [called.format(bin=tmp_path), "demo"])
    assert 0 == main(["demo", "--runs", "1"])
    assert f"\n  see it move                   {shown} demo --serve\n" in capsys.readouterr().out


async def test_budgets_of_the_demo_with_its_page() -> None:
    """One budget of the demo that goes on and on warns, without being spent, and the others hold for its hour."""
    program = load_example()
    with capture(budgets=list(BUDGETS), ledger="memory") as captured:
        await work(program, islice(goals(program, 0), 60), captured.handle)
        spent = {status.name: status.ratio for status in tp.budget_status()}
    assert 0.8 <= spent.pop("trial") < 1
    # Half a second between them makes at most 7,200 runs an hour, if they took no time themselves.
    assert {"all agents": True, "planner": True} == {name: ratio / 60 * 7200 < 0.8 for name, ratio in spent.items()}


def test_demo_shows_progress_on_stderr(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without rich there is a line for each run; stdout is left to the results."""
    monkeypatch.setitem(sys.modules, "rich", None)
    assert 0 == main(["demo", "--runs", "2"])
    shown = capsys.readouterr()
    assert ["[1/2] Prepare the release notes", "[2/2] Order tea for the office"] == [
        line.partition(":")[0] for line in shown.err.splitlines()
    ]
    assert "[1/2]" not in shown.out


def test_demo_runs_as_often_as_asked(capsys: pytest.CaptureFixture[str]) -> None:
    """Goals are gone through over and over where there are fewer than runs."""
    assert 0 == main(["demo", "--runs", "12"])
    assert "10 of 12 runs" in capsys.readouterr().out


def test_demo_without_spans(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the SDK switched off there is no trace to draw, and the rest is shown all the same."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert 0 == main(["demo", "--runs", "1"])
    printed = capsys.readouterr().out
    assert "workflow.run" not in printed
    assert "1 of 1 runs" in printed
    assert "llm.called" in printed


def test_demo_without_openai_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the openai client is missing, the demo names the command that installs it."""
    monkeypatch.setitem(sys.modules, "openai", None)
    assert 2 == main(["demo"])
    assert "pip install openai rich" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [[], ["--embedded"]])
def test_a_key_means_the_real_api(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, flags: list[str]
) -> None:
    """Where a key is set the demo calls the API that the client knows, and says so; --embedded prevents it."""
    program = runpy.run_path(str(EXAMPLE))
    with EmbeddedServer(program["answer"]) as real:
        monkeypatch.setenv("OPENAI_API_KEY", "none")
        monkeypatch.setenv("OPENAI_BASE_URL", real.url)
        assert 0 == main(["demo", "--runs=1", *flags])
        assert (3 if not flags else 0) == len(real.requests)
    assert ("real API" in capsys.readouterr().err) == (not flags)


@pytest.mark.parametrize("runs", ["0", "-1", "many", "1.5"])
def test_wrong_number_of_runs_is_explained(capsys: pytest.CaptureFixture[str], runs: str) -> None:
    """A number of runs that is none ends with the usage and what would be right."""
    with pytest.raises(SystemExit) as exited:
        main(["demo", f"--runs={runs}"])
    assert 2 == exited.value.code
    assert "whole number from 1" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"]])
def test_help_teaches_by_example(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    """The help shows commands to copy."""
    with pytest.raises(SystemExit) as exited:
        main(arguments)
    assert 0 == exited.value.code
    assert "taskpilot-instrument demo --runs 50" in capsys.readouterr().out


# --- the tree -----------------------------------------------------------------------------------


def test_tree_without_spans() -> None:
    """No spans are said to be none."""
    assert "(no spans)" == trace_tree([])


def test_tree_draws_children_in_order_of_start(captured: Captured) -> None:
    """Children stand below their parent as they started, the last one at a corner; unknown figures stay empty."""

    @tp.observed_tool
    def tool() -> None: ...

    @tp.observed_agent
    def agent() -> None:
        tool()
        tool()

    with tp.workflow("triage"):
        agent()
        tool()

    drawn = [re.sub(r"(?<=\w)  .*", "", line) for line in trace_tree(captured.spans).splitlines()[1:]]
    assert ["workflow.run", "├─ agent.execute", "│  ├─ tool", "│  └─ tool", "└─ tool"] == drawn


def test_tree_of_part_of_a_trace(captured: Captured) -> None:
    """A span whose parent is not given is drawn as a root, so that nothing is left out."""

    @tp.observed_tool
    def tool() -> None: ...

    with tp.workflow("triage"):
        tool()

    drawn = trace_tree([captured.span("tool")]).splitlines()
    assert 2 == len(drawn)
    assert drawn[1].startswith("tool ")
