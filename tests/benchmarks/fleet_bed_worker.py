"""One worker of the fleet bed: runs at a steady rate, first unobserved, then observed, and tells what it came to.

It is started by fleet.py with what to do as JSON in its one argument, and stays to be scraped until stdin ends.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import openai

import taskpilot_instrument as tp

MESSAGES: Any = [{"role": "system", "content": "You plan."}, {"role": "user", "content": "Prepare the release notes"}]


@tp.observed_tool
def create_task(title: str) -> str:
    """Stand in for a tool."""
    return f"TASK-1 {title}"


@tp.observed_agent(name="PlannerAgent")
def plan(client: openai.OpenAI, latencies: list[float]) -> str:
    """Ask the model, then call the tool."""
    begun = time.perf_counter()
    reply = client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, temperature=0.2, max_tokens=200)
    latencies.append(time.perf_counter() - begun)
    return create_task(str(reply.choices[0].message.content))


def one_run(client: openai.OpenAI, latencies: list[float]) -> None:
    """Do one workflow run; now and then the server refuses."""
    with suppress(openai.APIStatusError), tp.workflow("triage", user_id="u-1"):
        plan(client, latencies)


class Stretch(NamedTuple):
    """What a stretch of work came to.

    :param late_s: how far behind its rate it was at the end.
    """

    runs: int
    cpu_s: float
    median_s: float
    late_s: float

    @classmethod
    def of(cls, work: Callable[[list[float]], None], rate: float, seconds: float) -> "Stretch":
        """Do so many runs a second for so long."""
        latencies: list[float] = []
        begun, cpu, late = time.perf_counter(), time.process_time(), 0.0
        runs = max(1, round(rate * seconds))
        for number in range(runs):
            late = time.perf_counter() - begun - number / rate
            if late < 0:
                time.sleep(-late)
            work(latencies)
        return cls(runs, time.process_time() - cpu, statistics.median(latencies or [0.0]), max(0.0, late))


def main(given: dict[str, Any]) -> None:
    """Work, tell, and wait to be scraped."""
    with openai.OpenAI(api_key="none", base_url=given["openai"], max_retries=0) as client:

        def work(latencies: list[float]) -> None:
            one_run(client, latencies)

        Stretch.of(work, given["rate"], 1)  # what is imported and connected at first
        bare = Stretch.of(work, given["rate"], given["bare_s"])
        budget = tp.Budget("fleet", 1_000_000, window="total", on_exceed="block")
        handle = tp.instrument(
            metrics_port=given["port"], otlp_endpoint=given["otlp"], logs=given["logs"], ledger=given["redis"],
            budgets=[budget],
        )  # fmt: skip
        say({"observed": True})
        observed = Stretch.of(work, given["rate"], given["seconds"])
        flushed = handle.force_flush()
        sample, health = handle.golden_signals().sample, handle.health()
        say({
            "runs": sample.runs, "successes": sample.successes, "calls": sample.calls, "spent": str(sample.spent_usd),
            "flushed": flushed, "dropped": health.spans_dropped, "ok": health.ok, "health": str(health),
            "bare": bare._asdict(), "observed": observed._asdict(),
        })  # fmt: skip
        sys.stdin.read()


def say(what: dict[str, Any]) -> None:
    """Tell fleet.py."""
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
