"""Measure what asking before a call costs: budgets on each kind of ledger, policies, and both.

    python tests/benchmarks/gates.py [--rounds 30] [--calls 200] [--redis redis://127.0.0.1:6379/0]

Each round runs every case once, in turn: an observed agent run that makes one LLM call which is let go. The client's
transport answers at once, so that what is left is what we add. The figure is wall-clock time, the median over the
rounds; a bare hand-written span of the same run stands beside it, because machines differ. Without ``--redis`` a server
is started for it where one is installed.
"""

import argparse
import gc
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from openai._base_client import SyncAPIClient
from overhead import answer_at_once, bare_span, instrumented, llm_call

import taskpilot_instrument as tp

POLICIES: list[Any] = [
    tp.Policy(tp.Keywords(["delete", "drop table", "shutdown"]), moments=["agent_input"]),
    tp.ArgumentRule("tool", "text", pattern=r"[a-z ]+"),
    tp.MaxToolCalls(1_000_000_000),
]


@tp.observed_agent
class Agent:
    """An agent that makes one call."""

    def run(self, _text: str) -> None:
        """Make the call."""
        llm_call()


AGENT = Agent()


def run() -> None:
    """Run the agent."""
    AGENT.run("prepare the release notes and tell the team in the usual channel that they are there")


def budget() -> list[tp.Budget]:
    """Return one budget that blocks, and whose accounts nobody had before."""
    return [tp.Budget(f"b{time.time_ns()}", 1_000, on_exceed="block")]


def wall_us(call: Callable[[], object], calls: int) -> float:
    """Return microseconds for one call."""
    began = time.perf_counter_ns()
    for _ in range(calls):
        call()
    return (time.perf_counter_ns() - began) / calls / 1000


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


def measure(ledgers: dict[str, str], rounds: int, calls: int) -> dict[str, float]:
    """Return the median of each case, in microseconds."""
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
    found: dict[str, list[float]] = {"bare span": [], **{name: [] for name in cases}}
    gc.collect()
    gc.freeze()
    with mock.patch.object(SyncAPIClient, "request", answer_at_once):
        for _ in range(rounds):
            found["bare span"].append(wall_us(bare_span, calls))
            for name, settings in cases.items():
                with instrumented(**settings()):
                    wall_us(run, 20)
                    found[name].append(wall_us(run, calls))
    return {name: statistics.median(values) for name, values in found.items()}


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
    bare, alone = found.pop("bare span"), found["nothing to ask"]
    print(f"{'bare span with 12 attributes':38} {bare:8.1f} µs")
    for name, cost in found.items():
        more = cost - alone
        print(f"{name:38} {cost:8.1f} µs   {more:+8.1f} µs   {more / bare:+6.2f} × bare")


if __name__ == "__main__":
    main()
