"""Workflow runs: outcomes, ids, nesting, and what rolls up into them."""

import asyncio
from uuid import UUID

import pytest
import structlog

import taskpilot_instrument as tp
from taskpilot_instrument.testing import Captured


def test_success_and_ids(captured: Captured) -> None:
    """The given request id is on every span and log line, with one trace id."""

    @tp.observed_tool
    def tool() -> None: ...

    with tp.workflow("triage", request_id="req-abc-123", session_id="s", user_id="u") as run:
        tool()
    assert run.request_id == "req-abc-123"
    assert [span.attributes["request_id"] for span in captured.spans] == ["req-abc-123"] * 2
    assert {line["request_id"] for line in captured.logs} == {"req-abc-123"}
    assert {line["trace_id"] for line in captured.logs} == {run.trace_id}
    tags = captured.tags("workflow.run")
    assert (tags["outcome"], tags["session.id"], tags["user.id"]) == ("success", "s", "u")


def test_fail_without_exception(captured: Captured) -> None:
    """run.fail() makes the run an error and says why."""
    with tp.workflow("triage") as run:
        run.fail("no plan")
    span = captured.span("workflow.run")
    assert span.attributes["outcome"] == "error"
    assert (span.status.is_ok, span.status.description) == (False, "no plan")
    assert captured.metrics.get_counter("workflow.runs") == 1
    assert captured.metrics.get_counter("workflow.success") == 0


def test_blocked(captured: Captured) -> None:
    """run.block() and a BlockedError that leaves the block both give the outcome blocked."""
    with tp.workflow("a") as run:
        run.block("budget")
    with pytest.raises(tp.BlockedError), tp.workflow("b"):
        raise tp.BlockedError("policy")
    assert [span.attributes["outcome"] for span in captured.spans] == ["blocked", "blocked"]


async def test_async_workflow_cancelled(captured: Captured) -> None:
    """Cancelling the task around an async workflow ends the run as cancelled."""

    async def work() -> None:
        async with tp.workflow("slow"):
            await asyncio.sleep(10)

    task = asyncio.create_task(work())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert captured.tags("workflow.run")["outcome"] == "cancelled"


def test_agent_without_workflow_opens_one(captured: Captured) -> None:
    """An outermost agent opens a workflow of its name, with one request id; a nested one does not."""

    @tp.observed_agent
    def inner() -> None: ...

    @tp.observed_agent
    def outer() -> None:
        inner()

    outer()
    assert captured.tree() == ["workflow.run", "  outer.execute", "    inner.execute"]
    assert captured.tags("workflow.run")["workflow"] == "outer"
    assert {span.attributes["request_id"] for span in captured.spans} == {"req-1"}


def test_failed_agent_in_a_workflow_that_recovers(captured: Captured) -> None:
    """An exception that the workflow's block handles is the agent's failure, not the workflow's."""

    @tp.observed_agent
    def agent() -> None:
        raise ValueError("x")

    with tp.workflow("w"):
        try:
            agent()
        except ValueError:
            pass
    assert captured.tags("agent.execute")["outcome"] == "error"
    assert captured.tags("workflow.run")["outcome"] == "success"


def test_nested_workflows(captured: Captured) -> None:
    """A workflow in a workflow is a run of its own beneath it, with the same request id unless given one."""
    with tp.workflow("outer", request_id="r1"), tp.workflow("inner"), tp.workflow("third", request_id="r3"):
        pass
    assert captured.tree() == ["workflow.run", "  workflow.run", "    workflow.run"]
    assert [(s.attributes["workflow"], s.attributes["request_id"]) for s in captured.spans] == [
        ("third", "r3"),
        ("inner", "r1"),
        ("outer", "r1"),
    ]


def test_request_id_bound_in_structlog(captured: Captured) -> None:
    """A request id that the application bound in structlog's contextvars is used."""
    with structlog.contextvars.bound_contextvars(request_id="req-web-7"), tp.workflow("w") as run:
        pass
    assert run.request_id == "req-web-7"


def test_without_instrumentation() -> None:
    """Before instrument() a workflow block runs, and still has a request id."""
    with tp.workflow("w") as run:
        run.fail("nobody hears")
    assert run.request_id.startswith("req-")
    assert run.trace_id is None


def test_a_run_is_one_run(captured: Captured) -> None:
    """Entering the same run twice is refused with a hint."""
    run = tp.workflow("w")
    with run:
        pass
    with pytest.raises(tp.ConfigurationError, match="again"), run:
        pass
    assert len(captured.spans) == 1


@pytest.mark.parametrize("arguments", [{"name": ""}, {"name": None}, {"name": "w", "request_id": []}])
def test_bad_arguments(arguments: dict[str, object]) -> None:
    """A name that is none, and an id that cannot be one, are refused with a message that names them."""
    with pytest.raises(tp.ConfigurationError, match=r"workflow\((name|request_id)=…\) takes"):
        tp.workflow(**arguments)  # type: ignore[arg-type]


async def test_exit_in_another_task(captured: Captured, caplog: pytest.LogCaptureFixture) -> None:
    """Leaving a workflow in a task other than the one that entered it is quiet and finishes it once."""
    run = tp.workflow("w")
    await asyncio.create_task(run.__aenter__())
    await asyncio.create_task(run.__aexit__(None, None, None))
    assert captured.names() == ["workflow.run"]
    assert caplog.records == []


def test_ids_of_other_types(captured: Captured) -> None:
    """A UUID or a number is an id too, and an empty one counts as not given: a request must not fail for it."""
    unique = UUID(int=5)
    with tp.workflow("w", request_id=unique, user_id=7) as run:
        pass
    assert run.request_id == str(unique)
    assert captured.tags("workflow.run")["user.id"] == "7"
    with tp.workflow("w", request_id="") as run:
        assert run.request_id.startswith("req-")


def test_judged_before_the_block(captured: Captured) -> None:
    """A verdict given before the block counts as one given inside it."""
    run = tp.workflow("w")
    run.fail("known beforehand")
    with run:
        pass
    assert captured.tags("workflow.run")["outcome"] == "error"


def test_a_crash_after_block_is_an_error(captured: Captured) -> None:
    """An exception after run.block() is what ended the run."""
    with pytest.raises(KeyError), tp.workflow("w") as run:
        run.block("budget")
        raise KeyError("x")
    assert captured.tags("workflow.run")["outcome"] == "error"
