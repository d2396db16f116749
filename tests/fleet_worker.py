"""A worker of a fleet: a process of its own that works off what it is told to, and says what it did.

    python fleet_worker.py METRICS_PORT OPENAI_URL

It reads a number of runs a line from stdin and answers each with a line of JSON: what this life of it has come to.
"""

import json
import sys
from contextlib import suppress
from typing import Any

import openai

import taskpilot_instrument as tp
from taskpilot_instrument.semconv import M_WORKFLOW_DURATION

#: Every third run fails, every fifth breaks a policy, every second is judged; one model of three has no price. Every
#: fourth makes a call besides that is sent twice, and fails once the model has worked for it; every sixth asks for more
#: tokens than a limit allows, and is refused.
MODELS = ("gpt-4o-mini", "gpt-4o", "nobody-knows-its-price")

MOST_TOKENS = 1_000_000


@tp.observed_agent(name="PlannerAgent")
def plan(client: openai.OpenAI, number: int) -> None:
    """Ask a model, and fail now and then."""
    message: Any = {"role": "user", "content": "plan"}
    client.chat.completions.create(model=MODELS[number % len(MODELS)], messages=[message])
    if number % 4 == 0:
        client.responses.create(model=MODELS[number % 8 // 4], input="plan")
    if number % 6 == 1:
        with suppress(tp.TokenLimitError):
            client.chat.completions.create(model="gpt-4o", messages=[message], max_tokens=10 * MOST_TOKENS)
    if number % 3 == 2:
        raise ValueError("no plan")


def work(client: openai.OpenAI, handle: tp.Instrumentation, number: int) -> None:
    """Do one run, and what users and policies say of it."""
    with suppress(ValueError), tp.workflow("triage"):
        plan(client, number)
    if number % 5 == 0:
        handle.metrics.record_policy_violation("PlannerAgent", "no_pii")
    if number % 2 == 0:
        handle.metrics.record_feedback(number % 4 == 0, "PlannerAgent")


def told(handle: tp.Instrumentation) -> dict[str, Any]:
    """Return what this life has come to, as the process itself counts."""
    buckets = {
        each.labels["le"]: each.value
        for family in handle.metrics.registry.collect()
        for each in family.samples
        if each.name == f"{M_WORKFLOW_DURATION}_bucket"
    }
    asked: dict[str, dict[str, Any]] = {
        "all": {}, "agent": {"agent": "PlannerAgent"}, "model": {"model": "gpt-4o"}, "workflow": {"workflow": "triage"},
    }  # fmt: skip
    samples = {name: handle.golden_signals(**filters).sample._asdict() for name, filters in asked.items()}
    return {"buckets": buckets, "samples": samples}


def main(port: int, url: str) -> None:
    """Work until stdin ends."""
    handle = tp.instrument(metrics_port=port, logs="off", token_limits=[tp.TokenLimit(MOST_TOKENS, on_exceed="block")])
    done = 0
    with openai.OpenAI(api_key="none", base_url=url) as client:
        for line in sys.stdin:
            for _ in range(int(line)):
                work(client, handle, done)
                done += 1
            sys.stdout.write(f"{json.dumps(told(handle), default=str)}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
