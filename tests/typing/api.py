"""How the public API looks to a type checker; read by mypy --strict and pyright, never run.

A ``type: ignore`` marks what has to be an error: both checkers complain of one that is not needed.
"""

import asyncio
import dataclasses
import logging
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import date
from decimal import Decimal
from typing import assert_type

import taskpilot_instrument as tp

# --- functions keep their signatures, with and without parentheses --------------------------------


@tp.observed_tool
def create_task(title: str, *, urgent: bool = False) -> str:
    return f"{title}{'!' if urgent else ''}"


@tp.observed_tool(name="notify")
async def notify_external_system(task: str) -> int:
    await asyncio.sleep(0)
    return len(task)


@tp.observed_agent
def count_down(start: int) -> Iterator[int]:
    yield from range(start, 0, -1)


@tp.observed_workflow
async def triage(goal: str) -> AsyncIterator[str]:
    yield goal


async def functions() -> None:
    assert_type(create_task("a", urgent=True), str)
    create_task(1)  # type: ignore[arg-type]
    create_task("a", True)  # type: ignore[call-arg]
    assert_type(await notify_external_system("a"), int)
    assert_type(count_down(3), Iterator[int])
    assert_type(triage("a"), AsyncIterator[str])


# --- classes stay the classes that they are -------------------------------------------------------


@tp.observed_agent
class PlannerAgent:
    def __init__(self, model: str) -> None:
        self.model = model

    async def run(self, goal: str) -> list[str]:
        return [goal, self.model]


@tp.observed_agent(name="reviewer", methods=["review"])
@dataclasses.dataclass(slots=True)
class ReviewerAgent:
    strict: bool

    def review(self, plan: str) -> bool:
        return self.strict and bool(plan)


class CarefulPlanner(PlannerAgent):
    pass


async def classes() -> None:
    assert_type(PlannerAgent("gpt-4o-mini"), PlannerAgent)
    assert_type(PlannerAgent("gpt-4o-mini").model, str)
    assert_type(await PlannerAgent("gpt-4o-mini").run("a"), list[str])
    assert_type(await CarefulPlanner("gpt-4o-mini").run("a"), list[str])
    assert_type(ReviewerAgent(strict=True).review("a"), bool)
    PlannerAgent()  # type: ignore[call-arg]
    await PlannerAgent("gpt-4o-mini").run(goal=1)  # type: ignore[arg-type]


# --- methods of every kind, in both orders --------------------------------------------------------


class Toolbox:
    @tp.observed_tool
    def method(self, number: int) -> int:
        return number

    @tp.observed_tool
    @classmethod
    def outside_classmethod(cls, number: int) -> int:
        return number

    @classmethod
    @tp.observed_tool
    def inside_classmethod(cls, number: int) -> int:
        return number

    @tp.observed_tool
    @staticmethod
    def outside_staticmethod(number: int) -> int:
        return number

    @staticmethod
    @tp.observed_tool(name="static")
    def inside_staticmethod(number: int) -> int:
        return number


def methods() -> None:
    assert_type(Toolbox().method(1), int)
    assert_type(Toolbox.outside_classmethod(1), int)
    assert_type(Toolbox.inside_classmethod(1), int)
    assert_type(Toolbox.outside_staticmethod(1), int)
    assert_type(Toolbox.inside_staticmethod(1), int)
    Toolbox().method("a")  # type: ignore[arg-type]


# --- what takes no part in observation ------------------------------------------------------------


def misuse() -> None:
    tp.observed_agent(42)  # type: ignore[call-overload]
    tp.observed_tool(name=42)  # type: ignore[call-overload]


# --- the call, the block, the answers -------------------------------------------------------------


async def setup_and_answers() -> None:
    assert_type(tp.instrument(), tp.Instrumentation)
    tp.instrument("taskpilot")  # type: ignore[call-arg]
    tp.instrument(service_name="taskpilot", capture_content="span_only", metrics_port=9464, logs="off", label_cap=50)
    tp.instrument(settings=tp.Settings(label_cap=50, log_profile="ecs"), capture_content=True, logs=sys.stderr)
    tp.instrument(logs=logging.getLogger("app"))
    tp.instrument(capture_content="everywhere")  # type: ignore[arg-type]
    tp.Settings(log_profile="esc")  # type: ignore[arg-type]
    tp.Settings().label_cap = 1  # type: ignore[misc]
    assert_type(tp.Settings().otlp_endpoint, str | None)

    with tp.workflow("triage", request_id="req-abc-123") as run:
        assert_type(run, tp.WorkflowRun)
        assert_type(run.request_id, str)
        run.fail("no plan")
    async with tp.workflow("triage") as run:
        assert_type(run, tp.WorkflowRun)

    with tp.instrument() as instrumentation:
        assert_type(instrumentation.metrics, tp.MetricsBackend)
        assert_type(instrumentation.golden_signals(window="1h"), tp.GoldenSignals)
        assert_type(instrumentation.force_flush(), bool)
        instrumentation.metrics.increment_counter("workflow.runs")
        instrumentation.metrics.record_histogram("workflow.latency_ms", 12.5)
    assert_type(tp.golden_signals(workflow="triage"), tp.GoldenSignals)
    assert_type(tp.golden_signals(source="http://prometheus:9090", window="1h"), tp.GoldenSignals)
    assert_type(tp.health(), tp.Health)
    made = tp.report("week", end=date(2026, 11, 25), timezone="Europe/Berlin", ledger="ledger.db")
    assert_type(made.figures["runs"].value, float | Decimal | None)
    assert_type(made.html(), str)
    assert_type(tp.calculate_cost(150, 50, "gpt-4o-mini", cached_tokens=10), float | None)
    tp.MODEL_PRICING["my-model"] = {"input": 2.50, "output": 10.00}
    tp.uninstrument()
