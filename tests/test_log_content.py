"""Log lines hold content only where it is asked for, and secrets never."""

from hypothesis import given
from hypothesis import strategies as st
from log_bench import Bench, run_workflow

from taskpilot_instrument._operation import Operation
from taskpilot_instrument.redaction import MARKER
from taskpilot_instrument.semconv import (
    Kind,
)

# --- content and secrets -------------------------------------------------------------------------------


def _with_content(bench: Bench) -> list[str]:
    agent = Operation(bench.recorder, Kind.AGENT, "PlannerAgent")
    agent.input_text, agent.input_length = "Create a task", 13
    agent.announce()
    with agent:
        tool = bench.start(Kind.TOOL, "create_task")
        tool.input_text = '{"title": "x"}'
        tool.finish()
        agent.output_text, agent.output_length = "Done", 4
    return [line["message"] for line in bench.lines if line["event_name"] != "workflow.finished"]


def test_content_is_in_the_message_where_it_is_asked_for() -> None:
    """Captured text follows the colon."""
    assert [
        "[AUDIT] PlannerAgent Input: Create a task",
        '[AUDIT] create_task called: {"title": "x"}',
        "[AUDIT] PlannerAgent Output: Done",
    ] == _with_content(Bench(content=True))


def test_content_captured_for_spans_does_not_reach_the_log(bench: Bench) -> None:
    """Text that only the spans are to carry stays out of every line; lengths are no content."""
    assert ["[AUDIT] PlannerAgent Input", "[AUDIT] create_task called", "[AUDIT] PlannerAgent Output"] == (
        _with_content(bench)
    )
    assert "Create a task" not in bench.stream.getvalue()
    assert (13, 4) == (bench.lines[0]["input_length"], bench.lines[2]["output_length"])


def test_messages_without_captured_text_end_before_the_colon() -> None:
    """Content that nobody captured leaves no trace in the message."""
    bench = Bench(content=True)
    run_workflow(bench)

    assert "[AUDIT] PlannerAgent Input" == bench.lines[0]["message"]


def test_secrets_in_an_error_message_are_not_written(bench: Bench) -> None:
    """A provider that quotes the key in its complaint does not get it into the log."""
    bench.call().finish(ValueError("Incorrect API key provided: sk-proj-abcdefgh12345678. See the docs."))

    assert f"Incorrect API key provided: {MARKER}. See the docs." == bench.line["error_message"]
    assert "abcdefgh12345678" not in bench.stream.getvalue()


def test_a_long_error_message_is_cut() -> None:
    """A message of a hundred thousand characters becomes 512 and a note."""
    bench = Bench()
    bench.call().finish(ValueError("x" * 100_000))

    assert "x" * 512 + "… [cut: 100000 characters in all]" == bench.line["error_message"]


def test_the_redact_hook_sees_error_messages() -> None:
    """What the application's own function takes out is not written."""
    bench = Bench(redact=lambda text: text.replace("Ann", "somebody"))
    bench.call().finish(ValueError("Ann said password=hunter2"))

    assert f"somebody said password={MARKER}" == bench.line["error_message"]


def test_a_broken_hook_loses_the_message_not_the_line(swallowing: None) -> None:
    """Where the application's function raises, the line is written without the text."""

    def broken(text: str) -> str:
        raise RuntimeError(text)

    bench = Bench(redact=broken)
    bench.call().finish(ValueError("private"))

    assert "llm.failed" == bench.line["event_name"]
    assert "private" not in bench.stream.getvalue()


class Unspeakable(Exception):
    """An exception that cannot say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no")


def test_an_exception_that_cannot_be_shown_is_named(bench: Bench) -> None:
    """A broken ``__str__`` costs the message, not the line."""
    bench.call().finish(Unspeakable())

    assert "<unprintable Unspeakable>" == bench.line["error_message"]


@given(st.text(min_size=1))
def test_any_name_stays_on_one_line(name: str) -> None:
    """Line breaks, control characters and letters of any script come back from the parsed line as they were."""
    bench = Bench()
    with bench.start(Kind.TOOL, name):
        pass

    assert 1 == len(bench.stream.getvalue().splitlines())
    assert bench.stream.getvalue().isascii()
    assert (name, f"[AUDIT] {name} called") == (bench.line["tool"], bench.line["message"])
