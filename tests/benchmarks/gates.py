"""Measure what asking before a call costs: budgets on each kind of ledger, policies, and both.

    python tests/benchmarks/gates.py [--rounds 30] [--calls 200] [--redis redis://127.0.0.1:6379/0]

Two tables. In the first, what is asked stands alone: the estimate of a request, reserving and settling for it, the
policies around an agent's input, again and again with nothing in between. In the second it is part of what it belongs
to: an observed agent run that makes one LLM call which is let go; the client's transport answers at once, so that what
is left is what we add. There the same code takes about twice as long, because everything else in a run wants the
processor's caches too. The bare hand-written span of the same run, which stands beside both because machines differ,
is of the first kind: a loop of nothing else.

Figures are time on the clock, and CPU time of the process; of the rounds the first quartile, because other work on the
machine only ever adds. Without ``--redis`` a server is started for it where one is installed.
"""

import argparse
import gc
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from openai._base_client import SyncAPIClient
from overhead import BODY, answer_at_once, bare_span, instrumented, llm_call

import taskpilot_instrument as tp
from taskpilot_instrument import semconv
from taskpilot_instrument._operation import Operation
from taskpilot_instrument._recorder import Recorder, active
from taskpilot_instrument._records import Event, Finished, LLMCall
from taskpilot_instrument.patches._openai_most import most_of
from taskpilot_instrument.usage import TokenUsage

POLICIES: list[Any] = [
    tp.Policy(tp.Keywords(["delete", "drop table", "shutdown"]), moments=["agent_input"]),
    tp.ArgumentRule("tool", "text", pattern=r"[a-z ]+"),
    tp.MaxToolCalls(1_000_000_000),
]

TEXT = "prepare the release notes and tell the team in the usual channel that they are there"


@tp.observed_agent
class Agent:
    """An agent that makes one call."""

    def run(self, _text: str) -> None:
        """Make the call."""
        llm_call()


AGENT = Agent()


def run() -> None:
    """Run the agent."""
    AGENT.run(TEXT)


def budget() -> list[tp.Budget]:
    """Return one budget that blocks, and whose accounts nobody had before."""
    return [tp.Budget(f"b{time.time_ns()}", 1_000, on_exceed="block")]


def taken_us(call: Callable[[], object], calls: int) -> tuple[float, float]:
    """Return microseconds for one call: on the clock, and of CPU time."""
    began, worked = time.perf_counter_ns(), time.process_time_ns()
    for _ in range(calls):
        call()
    return (time.perf_counter_ns() - began) / calls / 1000, (time.process_time_ns() - worked) / calls / 1000


@contextmanager
def redis_server(folder: Path) -> Iterator[str | None]:
    """Run a server until the block is left; yield its address, or None where none is installed."""
    program = shutil.which("redis-server")
    if program is None:
        yield None
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    with subprocess.Popen([program, *options], stdout=subprocess.DEVNULL) as process:
        try:
            for _ in range(100):
                time.sleep(0.05)
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.terminate()


# --- alone --------------------------------------------------------------------------------------


class Last:
    """A sink that keeps the latest record."""

    where = "last"
    record: Finished

    def finished(self, record: Finished, /) -> None:
        """Keep it."""
        self.record = record

    def noted(self, event: Event, /) -> None:
        """Do nothing."""


def ask_budgets() -> Callable[[], object]:
    """Return what asks the budgets in force about one call, and tells them what it cost."""
    recorder, last = in_force(), Last()
    llm = LLMCall(semconv.OPERATION_CHAT, "gpt-4o-mini", base_url="https://api.openai.com/v1")
    llm.usage, llm.billable = TokenUsage(150, 50), True
    operation = Operation(replace(recorder, sinks=(last,)), semconv.Kind.LLM, "chat gpt-4o-mini", llm=llm)
    operation.finish()
    record, spending = last.record, next(sink for sink in recorder.sinks if sink.where == "budget")

    def ask() -> None:
        llm.most = most_of(BODY, llm.operation, "/chat/completions")
        operation.admit()
        spending.finished(record)

    return ask


def ask_policies() -> Callable[[], object]:
    """Return what asks the policies in force about one agent run."""
    recorder = in_force()
    controls = recorder.controls
    operation = Operation(recorder, semconv.Kind.AGENT, "Agent")

    def plain(_text: str) -> None:
        """Stand in for the agent."""

    def ask() -> None:
        body = controls.around(operation, plain, lambda: {"_text": TEXT}) if controls is not None else None
        if body is not None:
            body(TEXT)

    return ask


def in_force() -> Recorder:
    """Return what ``instrument()`` has wired together."""
    recorder = active()
    if recorder is None:
        raise RuntimeError("nothing is observed")
    return recorder


def measure_alone(rounds: int, calls: int) -> dict[str, list[tuple[float, float]]]:
    """Return microseconds of what is asked with nothing in between: on the clock, and of CPU time."""
    found: dict[str, list[tuple[float, float]]] = {"one budget, memory": [], "three policies": []}
    for _ in range(rounds):
        with instrumented(budgets=budget(), ledger="memory", policies=POLICIES):
            for name, asking in zip(found, (ask_budgets(), ask_policies()), strict=True):
                taken_us(asking, 50)
                found[name].append(taken_us(asking, calls))
    return found


# --- in a run -----------------------------------------------------------------------------------


def quartile(values: list[float]) -> float:
    """Return what a fourth of the values are below."""
    return sorted(values)[len(values) // 4]


def measure(ledgers: dict[str, str], rounds: int, calls: int) -> dict[str, tuple[float, float]]:
    """Return microseconds of each case: on the clock, and of CPU time."""
    cases: dict[str, Callable[[], dict[str, Any]]] = {
        "nothing to ask": dict,
        "history in the same ledger": lambda: {"ledger": "memory"},
        "three policies": lambda: {"policies": POLICIES},
        "one budget, memory": lambda: {"budgets": budget(), "ledger": "memory"},
        "one budget, three policies, memory": lambda: {
            "budgets": budget(), "ledger": "memory", "policies": POLICIES,
        },
        "one budget for each user, memory": lambda: {
            "budgets": [tp.Budget("each", 1_000, scope={"agent": "*"}, on_exceed="block")], "ledger": "memory",
        },
        "one budget that warns, memory": lambda: {"budgets": [tp.Budget("w", 1_000)], "ledger": "memory"},
    }  # fmt: skip
    for name, where in ledgers.items():
        cases[f"one budget, {name}"] = lambda where=where: {  # type: ignore[misc]
            "budgets": budget(), "ledger": where,
        }  # fmt: skip
    found: dict[str, list[tuple[float, float]]] = {"bare span": [], **{name: [] for name in cases}}
    gc.collect()
    gc.freeze()
    with mock.patch.object(SyncAPIClient, "request", answer_at_once):
        for _ in range(rounds):
            found["bare span"].append(taken_us(bare_span, calls))
            for name, settings in cases.items():
                with instrumented(**settings()):
                    taken_us(run, 20)
                    found[name].append(taken_us(run, calls))
    return {
        name: (quartile([wall for wall, _ in values]), quartile([cpu for _, cpu in values]))
        for name, values in found.items()
    }


def main() -> None:
    """Print what each case takes on top of the run alone."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=30)
    options.add_argument("--calls", type=int, default=200)
    options.add_argument("--redis", default=None)
    args = options.parse_args()
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        ledgers = {"SQLite": str(folder / "ledger.db")}
        where = args.redis or opened.enter_context(redis_server(folder))
        if where is not None:
            ledgers["Redis"] = where
        found = measure(ledgers, args.rounds, args.calls)
    asked = {
        name: (quartile([wall for wall, _ in values]), quartile([cpu for _, cpu in values]))
        for name, values in measure_alone(args.rounds, args.calls * 5).items()
    }
    bare, unasked = found.pop("bare span"), found.pop("nothing to ask")
    print(f"{'':38} {'clock':>26} {'CPU':>26}")
    print(f"{'bare span with 12 attributes':38} {bare[0]:23.1f} µs {bare[1]:23.1f} µs")
    print("asked alone")
    for name, cost in asked.items():
        show(name, cost, bare)
    both = [sum(costs) for costs in zip(*asked.values(), strict=True)]
    show("one budget, three policies, memory", (both[0], both[1]), bare)
    print("asked in an agent run with one call")
    for name, cost in found.items():
        show(name, (cost[0] - unasked[0], cost[1] - unasked[1]), bare)


def show(name: str, cost: tuple[float, float], bare: tuple[float, float]) -> None:
    """Print what a case takes on the clock and of CPU time, and how many bare spans that is."""
    columns = [f"{more:+9.1f} µs {more / span:+6.2f} × bare" for more, span in zip(cost, bare, strict=True)]
    print(f"  {name:36} {columns[0]:>26} {columns[1]:>26}")


if __name__ == "__main__":
    main()
