"""The current run is carried into threads and tasks."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

import taskpilot_instrument as tp
from taskpilot_instrument.testing import capture


@tp.observed_tool
def create_task(title: str) -> str:
    """Make a task."""
    return title


@tp.observed_agent
class PlannerAgent:
    """Calls its tool in whatever way it is told."""

    def run(self, call: Callable[[Callable[[], str]], None]) -> None:
        """Run."""
        call(lambda: create_task("x"))


def in_a_thread(work: Callable[[], object]) -> None:
    """Run work in a thread of its own."""
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


class OwnRun(threading.Thread):
    """A thread that overrides ``run``, as many do."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__()
        self.work = work

    def run(self) -> None:
        """Work."""
        self.work()


def in_a_subclass(work: Callable[[], object]) -> None:
    """Run work in a thread whose class has its own ``run``."""
    thread = OwnRun(work)
    thread.start()
    thread.join()
    assert "run" not in vars(thread)


def in_a_timer(work: Callable[[], object]) -> None:
    """Run work in a timer."""
    timer = threading.Timer(0, work)
    timer.start()
    timer.join()


def in_a_pool(work: Callable[[], object]) -> None:
    """Run work in a thread pool."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(work).result()
        list(pool.map(lambda _: None, range(2)))


def with_to_thread(work: Callable[[], object]) -> None:
    """Run work through asyncio's own way into threads."""
    asyncio.run(asyncio.to_thread(work))


def in_a_task_group(work: Callable[[], object]) -> None:
    """Run work in a task of a task group."""

    async def task() -> None:
        work()

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(task())

    asyncio.run(main())


def in_a_callback(work: Callable[[], object]) -> None:
    """Run work in a callback of the event loop."""

    async def main() -> None:
        asyncio.get_running_loop().call_soon(work)
        await asyncio.sleep(0.01)

    asyncio.run(main())


NATIVE = [with_to_thread, in_a_task_group, in_a_callback]
THREADS = [in_a_thread, in_a_subclass, in_a_timer, in_a_pool]


@pytest.mark.parametrize("way", NATIVE)
def test_asyncio_carries_the_run(way: Callable[[Callable[[], str]], None]) -> None:
    """Tasks, callbacks and ``to_thread`` carry the run without any setting."""
    with capture() as captured:
        PlannerAgent().run(way)
    assert captured.span("PlannerAgent.execute").context.span_id == captured.span("create_task").parent.span_id


@pytest.mark.parametrize("way", THREADS)
def test_threads_carry_the_run_where_asked(way: Callable[[Callable[[], str]], None]) -> None:
    """With ``propagate_threads`` a tool called in a thread or pool belongs to the agent that started it."""
    with capture(propagate_threads=True) as captured:
        PlannerAgent().run(way)
    assert captured.span("PlannerAgent.execute").context.span_id == captured.span("create_task").parent.span_id


@pytest.mark.parametrize("way", THREADS)
def test_threads_are_left_alone_by_default(way: Callable[[Callable[[], str]], None]) -> None:
    """Without the setting a thread begins with an empty context, as Python has it."""
    with capture() as captured:
        PlannerAgent().run(way)
    assert captured.span("create_task").parent is None


def test_threads_outside_of_a_run_are_not_touched() -> None:
    """Where nothing is current a thread is started as it is, and results and errors stay."""
    with capture(propagate_threads=True), ThreadPoolExecutor(1) as pool:
        in_a_thread(lambda: None)
        assert pool.submit(divmod, 7, 2).result() == (3, 1)
        with tp.workflow("w"), pytest.raises(ZeroDivisionError):
            pool.submit(divmod, 7, 0).result()
        with tp.workflow("w"), pytest.raises(TypeError):
            pool.submit()  # type: ignore[call-arg]


def test_a_pools_thread_is_of_no_run() -> None:
    """What is given to a pool outside of a run is outside, though its thread was started by what was given inside."""
    with capture(propagate_threads=True) as captured, ThreadPoolExecutor(1) as pool:
        with tp.workflow("triage"):
            pool.submit(create_task, "inside").result()
        pool.submit(create_task, "outside").result()
    assert ["workflow.run", "  create_task", "create_task"] == captured.tree()


def test_uninstrument_gives_the_standard_library_back() -> None:
    """The patches on threads and pools go with the instrumentation."""
    before = [vars(threading.Thread)["start"], vars(ThreadPoolExecutor)["submit"]]
    with capture(propagate_threads=True):
        assert before[0] is not vars(threading.Thread)["start"]
    assert before == [vars(threading.Thread)["start"], vars(ThreadPoolExecutor)["submit"]]
