"""Measure what policies cost an agent run with one tool call.

    python tests/benchmarks/policies.py [--rounds 60] [--calls 300]

Each round runs every case once, in turn, and takes CPU time for an agent run with its tool call; the figure is the
median over the rounds. "no policy" is the same agent observed without any, and with a policy that speaks of another
agent.
"""

import argparse
import gc
import statistics
from collections.abc import Callable
from typing import Any

from overhead import AGENT, cpu_us, instrumented

import taskpilot_instrument as tp

TEXT = "prepare the release notes and tell the team in the usual channel that they are there "


def silent(_: tp.Subject) -> None:
    """Allow."""


CASES: dict[str, dict[str, Any]] = {
    "no policy": {},
    "a policy of another agent": {"policies": [tp.Policy(silent, agents=["Other"])]},
    "one function": {"policies": [silent]},
    "three functions": {"policies": [silent, tp.Policy(silent, "b"), tp.Policy(silent, "c")]},
    "one guardrail without a limit": {"guardrails": [tp.Guardrail("g", check_input=str.isascii, timeout_s=None)]},
    "keywords, arguments, max calls": {
        "policies": [
            tp.Policy(tp.Keywords(["delete", "drop table", "shutdown"]), moments=["agent_input"]),
            tp.ArgumentRule("tool", "text", pattern=r"[a-z ]+"),
            tp.MaxToolCalls(1_000_000_000),
        ]
    },
    "the same with the allow-list, which logs": {
        "policies": [
            tp.Policy(tp.Keywords(["delete", "drop table", "shutdown"]), moments=["agent_input"]),
            tp.ToolAllowList({"Agent": ["tool"]}),
            tp.MaxToolCalls(1_000_000_000),
        ]
    },
}  # fmt: skip


def measure(rounds: int, calls: int) -> dict[str, float]:
    """Return the median of each case, in microseconds."""
    found: dict[str, list[float]] = {name: [] for name in CASES}
    call: Callable[[], object] = lambda: AGENT.run(TEXT)  # noqa: E731 - one line, like those of overhead.py
    gc.collect()
    gc.freeze()
    for _ in range(rounds):
        for name, settings in CASES.items():
            with instrumented(**settings):
                cpu_us(call, 20)
                found[name].append(cpu_us(call, calls))
    return {name: statistics.median(values) for name, values in found.items()}


def main() -> None:
    """Print what each case takes on top of none."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=60)
    options.add_argument("--calls", type=int, default=300)
    args = options.parse_args()
    found = measure(args.rounds, args.calls)
    bare = found["no policy"]
    for name, cost in found.items():
        print(f"{name:42} {cost:8.2f} µs   {cost - bare:+8.2f} µs")


if __name__ == "__main__":
    main()
