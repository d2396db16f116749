"""A program that is forked in the midst of its work, run by test_forks.py in a process of its own.

``fork_work.py METHOD CHILDREN`` with METHOD ``os`` or a start method of multiprocessing; settings come from the
environment. Threads record without pause while children are made; each child records some runs itself and tells what
it knows. The last line is what all of it came to, as JSON.
"""

import faulthandler
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import Any, Final

import openai

import taskpilot_instrument as tp
from taskpilot_instrument.runtime import running

#: Runs of each child.
RUNS: Final = 3
#: A child takes a fraction of a second; one that waits for a lock takes for ever.
PATIENCE_S: Final = 60
_THREADS: Final = 4


def observe() -> tp.Instrumentation:
    """Switch everything on that has locks, threads, connections or figures."""
    found = running()
    if found is not None:
        return found
    handle = tp.instrument(
        logs=f"{os.environ['FORK_OUT']}.log",
        metrics_port=0,
        ledger=os.environ["FORK_LEDGER"],
        budgets=[tp.Budget("all", 1_000, "day")],
        token_limits=[tp.TokenLimit(10**9, per="agent_minute"), tp.TokenLimit(10**9, per="run")],
        runaway=tp.Runaway(usd_per_minute=1_000),
        policies=[tp.MaxToolCalls(1_000)],
        alerts=[tp.Alert(print, "success_rate", below=1)],
    )
    handle.ring()
    return handle


@tp.observed_tool(name="look")
def look(number: int) -> int:
    """Look something up."""
    return number


@tp.observed_agent(name="WorkerAgent")
def answer(client: openai.OpenAI, who: str) -> None:
    """Ask once."""
    look(1)
    client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": who}])


def client() -> openai.OpenAI:
    """Return a client with connections of its own."""
    return openai.OpenAI(api_key="sk-test", base_url=os.environ["FORK_SERVER"], max_retries=0)


def settled(handle: tp.Instrumentation) -> list[str]:
    """Return what the budgets have come to; on a busy machine the ledger may be away for a moment."""
    spending, history = handle.parts.spending, handle.parts.history
    assert spending is not None
    assert history is not None
    while True:
        with suppress(tp.LedgerError):
            found = [str(budget.spent_usd) for budget in handle.budgets()]
            if not spending._backlog.waiting and history.flush():
                return found
        time.sleep(0.05)


def child(out: int, *, leave_it: bool = False) -> None:
    """Do some runs, and tell what this process knows of itself.

    :param leave_it: what is to be sent is left to the end of the process.
    """
    handle = observe()
    before = handle.golden_signals().runs, handle.metrics.get_counter("mine"), len(handle.ring().runs())
    handle.metrics.increment_counter("mine")
    with client() as own:
        for _ in range(RUNS):
            answer(own, "child")
    signals = handle.golden_signals(window="5m")
    settled(handle)
    delivered = leave_it or handle.force_flush(20)
    health = handle.health()
    told = {
        "before": before,
        "runs": signals.runs,
        "cost": str(signals.sample.spent_usd.normalize()),
        "mine": handle.metrics.get_counter("mine"),
        "scraped": handle.metrics.registry.get_sample_value(
            "taskpilot_workflow_runs_total", {"workflow": "WorkerAgent", "outcome": "success"}
        ),
        "delivered": delivered,
        "spans": health.spans_exported + health.spans_pending,
        "ring": len(handle.ring().runs()),
        # The ledger may be away on a busy machine, whatever we do.
        "errors": sorted((health.errors_swallowed or {}).keys() - {"ledger"}),
        "open": health.calls_open,
    }
    if not leave_it:
        handle.uninstrument()
    os.write(out, json.dumps(told).encode() + b"\n")


def os_child(out: int) -> int:
    """Fork, and return the child's id."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            child(out)
            code = 0
        finally:
            os._exit(code)
    return pid


def wait(pid: int) -> int:
    """Return the exit code of a child; one that hangs is ended, and says where it was."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGABRT)
            deadline += PATIENCE_S
        time.sleep(0.005)


def mp_child(context: Any, number: int) -> Any:
    """Start a process of multiprocessing that writes to a file."""
    process = context.Process(target=to_file, args=(f"{os.environ['FORK_OUT']}.{number}",))
    process.start()
    return process


def to_file(path: str) -> None:
    """Tell in a file: a spawned process inherits no descriptor."""
    out = os.open(path, os.O_WRONLY | os.O_CREAT)
    child(out, leave_it=True)
    os.close(out)


def main(method: str, children: int) -> None:
    """Record in threads, make children in the midst of it, and print what it came to."""
    faulthandler.enable()
    sys.setswitchinterval(1e-6)  # threads stop anywhere, also where they hold a lock
    handle = observe()
    handle.metrics.increment_counter("mine", 7)
    done = [0] * _THREADS
    stop = threading.Event()

    def record(place: int) -> None:
        with client() as own:
            while not stop.is_set():
                answer(own, "parent")
                done[place] += 1
                handle.golden_signals(window="1m")

    threads = [threading.Thread(target=record, args=(place,)) for place in range(_THREADS)]
    for thread in threads:
        thread.start()
    while not all(done):
        assert all(thread.is_alive() for thread in threads), "a thread of the parent failed"
        time.sleep(0.01)
    codes = []
    if method == "os":
        reading, writing = os.pipe()
        for number in range(children):
            codes.append(wait(os_child(writing)))
            # The next fork comes while something else is going on.
            time.sleep(0.003 * (number % 7))
        os.close(writing)
        with os.fdopen(reading) as lines:
            told = [json.loads(line) for line in lines]
    else:
        context = multiprocessing.get_context(method)
        for number in range(children):
            process = mp_child(context, number)
            process.join(PATIENCE_S)
            if process.exitcode is None:
                os.kill(process.pid, signal.SIGABRT)
                process.join()
            codes.append(process.exitcode)
        told = []
        for number in range(children):
            with open(f"{os.environ['FORK_OUT']}.{number}") as lines:  # noqa: PTH123 - a name, not a path
                told += [json.loads(line) for line in lines]
    stop.set()
    for thread in threads:
        thread.join()
    signals = handle.golden_signals()
    assert running() is handle
    delivered = handle.force_flush(30)
    sys.stdout.write(json.dumps({
        "codes": codes, "children": told, "done": sum(done), "runs": signals.runs, "delivered": delivered,
        "mine": handle.metrics.get_counter("mine"),
        "spent": settled(handle),
        "scraped": sum(
            sample.value for family in handle.metrics.scraped.collect() for sample in family.samples
            if sample.name == "taskpilot_workflow_runs_total"
        ),
    }) + "\n")  # fmt: skip
    handle.uninstrument()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
