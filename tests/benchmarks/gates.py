"""Measure what a budget costs an LLM call, for each kind of ledger.

    python tests/benchmarks/gates.py [--calls 2000] [--redis redis://127.0.0.1:6379/0]

Reserve and settle are timed as a call makes them, without the call: what a budget adds to it, in microseconds. The
figure is the median of five rounds.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import taskpilot_instrument as tp
from taskpilot_instrument import semconv
from taskpilot_instrument._operation import Operation, active
from taskpilot_instrument._records import LLMCall
from taskpilot_instrument.testing import capture
from taskpilot_instrument.usage import TokenUsage


def call(*, budget: bool) -> None:
    """Make one observed LLM call without a provider."""
    recorder: Any = active()
    llm = LLMCall("chat", "gpt-4o-mini")
    llm.most_input_tokens, llm.most_output_tokens = 150, 100
    with Operation(recorder, semconv.Kind.LLM, "chat", llm=llm) as operation:
        if budget:
            operation.admit()
        llm.usage, llm.billable = TokenUsage(150, 50), True


def microseconds(calls: int, *, budget: bool, **settings: Any) -> float:
    """Return what one call takes."""
    rounds = []
    with capture(logs="off", **settings):
        for _ in range(5):
            began = time.process_time()
            for _ in range(calls):
                call(budget=budget)
            rounds.append((time.process_time() - began) / calls * 1e6)
    return statistics.median(rounds)


def main() -> None:
    """Print what a budget adds with each ledger."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--calls", type=int, default=2000)
    options.add_argument("--redis", default=None)
    args = options.parse_args()
    bare = microseconds(args.calls, budget=False)
    print(f"{'no budget':20} {bare:8.1f} µs")
    with tempfile.TemporaryDirectory() as folder:
        ledgers = {"memory": "memory", "SQLite": str(Path(folder) / "ledger.db"), "Redis": args.redis}
        for name, where in ledgers.items():
            if where is None:
                continue
            budgets = [tp.Budget(f"b{time.time_ns()}", 1_000, on_exceed="block")]
            cost = microseconds(args.calls, budget=True, budgets=budgets, ledger=where)
            print(f"{name:20} {cost:8.1f} µs   {cost - bare:+8.1f} µs")


if __name__ == "__main__":
    main()
