"""Planner → Reviewer → Executor: an agent workflow, observed by two decorators and one call.

    python examples/taskpilot_workflow.py

It talks to an embedded server, at no cost, unless OPENAI_API_KEY is set: then to the real API.

Of ten goals one meets a rate limit and is retried, one fails in a tool, one is refused by policy.
"""

import asyncio
import json
import os
from collections.abc import Callable, Iterable
from itertools import count
from typing import Any
from uuid import uuid4

import openai

import taskpilot_instrument as tp
from taskpilot_instrument.embedded import EmbeddedServer, Received, Reply, ToolCall
from taskpilot_instrument.usage import TokenUsage

MODEL = "gpt-4o-mini"
#: Whose goals these are; an application knows it from its session.
USER = "user-1"
PLANNER = "You plan. Answer with numbered steps."
REVIEWER = "You review plans. Answer OK, or REJECT and why, where personal data would leave the company."
EXECUTOR = "You carry plans out with the tools that you have."

GOALS = (
    "Prepare the release notes",
    "Order tea for the office",
    "Ask the supplier for a quote",
    "Book a room for the retrospective",
    "Send the customer list to my private address",
    "Collect last week's incidents",
    "Page the engineer on call",
    "Invite the new colleague to the tour",
    "Archive the finished projects",
    "Update the holiday calendar",
)

# --- the application: agents and tools, each with one decorator -----------------------------------

_task_numbers = count(1)


@tp.observed_tool
def create_task(title: str) -> str:
    """Create a task and return its id."""
    return f"TASK-{next(_task_numbers)} {title}"


@tp.observed_tool
async def notify_external_system(channel: str, message: str) -> str:
    """Send a message to the chat or to the pager."""
    await asyncio.sleep(0.01)
    if channel == "pager":
        raise ConnectionError("the pager gateway does not answer")
    return f"sent to {channel}: {message}"


@tp.observed_agent
class PlannerAgent:
    """Turn a goal into steps."""

    def __init__(self, client: openai.AsyncOpenAI) -> None:
        self.client = client

    async def run(self, goal: str) -> str:
        """Return the plan."""
        reply = await self.client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "system", "content": PLANNER}, {"role": "user", "content": goal}],
        )
        return reply.choices[0].message.content or ""


@tp.observed_agent
class ReviewerAgent:
    """Let a plan pass, or refuse it."""

    def __init__(self, client: openai.AsyncOpenAI, metrics: tp.MetricsBackend) -> None:
        self.client = client
        self.metrics = metrics

    async def run(self, plan: str) -> str:
        """Return the verdict, read from a stream.

        :raises BlockedError: where the plan breaks the policy; that is no failure, and counted apart.
        """
        stream = await self.client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "system", "content": REVIEWER}, {"role": "user", "content": plan}],
            stream=True,
            stream_options={"include_usage": True},
        )
        verdict = ""
        async for chunk in stream:
            for choice in chunk.choices:
                verdict += choice.delta.content or ""
        if verdict.startswith("REJECT"):
            self.metrics.increment_counter("agent.ReviewerAgent.policy.violations")
            raise tp.BlockedError(verdict)
        return verdict


@tp.observed_agent
class ExecutorAgent:
    """Carry a plan out."""

    def __init__(self, client: openai.AsyncOpenAI) -> None:
        self.client = client

    async def run(self, plan: str) -> list[str]:
        """Call the tools that the model asks for, and return their results."""
        reply = await self.client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "system", "content": EXECUTOR}, {"role": "user", "content": plan}],
            tools=[_tool("create_task", "title"), _tool("notify_external_system", "channel", "message")],
        )
        results = []
        for call in reply.choices[0].message.tool_calls or ():
            if call.type == "function":
                arguments = json.loads(call.function.arguments)
                if call.function.name == "create_task":
                    results.append(create_task(**arguments))
                else:
                    results.append(await notify_external_system(**arguments))
        return results


def _tool(name: str, *parameters: str) -> Any:
    properties = {parameter: {"type": "string"} for parameter in parameters}
    schema = {"type": "object", "properties": properties, "required": list(parameters)}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


async def triage(goal: str, request_id: str, client: openai.AsyncOpenAI, metrics: tp.MetricsBackend) -> list[str]:
    """Plan, review and carry out one goal, as one workflow run."""
    with tp.workflow("triage", request_id=request_id, user_id=USER):
        plan = await PlannerAgent(client).run(goal)
        await ReviewerAgent(client, metrics).run(plan)
        return await ExecutorAgent(client).run(plan)


def ask_user(goal: str) -> bool:
    """Stand in for the user, who looks at each result and finds one wrong."""
    return "holiday" not in goal


async def work_off(
    goals: Iterable[str],
    client: openai.AsyncOpenAI,
    metrics: tp.MetricsBackend,
    tell: Callable[[str, str], None] = lambda _goal, _result: None,
) -> None:
    """Work off goals one after the other, and go on where one fails.

    :param tell: hears each goal and what became of it.
    """
    for goal in goals:
        request_id = f"req-{uuid4().hex[:12]}"  # an application has one of its own, that of the HTTP request perhaps
        try:
            results = await triage(goal, request_id, client, metrics)
        except tp.BlockedError as refusal:
            tell(goal, f"blocked: {refusal}")
        except (ConnectionError, openai.OpenAIError) as error:
            tell(goal, f"failed: {error}")
        else:
            tp.record_feedback(correct=ask_user(goal), request_id=request_id, user=USER)
            tell(goal, "; ".join(results) or "nothing to do")


# --- the model's part, where no key is at hand ----------------------------------------------------


def answer(request: Received) -> Reply:
    """Say what a model might say, with token numbers that are the same each time."""
    system, said = (message["content"] for message in request.payload["messages"])
    if system == PLANNER:
        if "supplier" in said and request.headers["x-stainless-retry-count"] == "0":
            return Reply.error(429, "Rate limit reached.", headers={"retry-after-ms": "20"})
        return Reply(f"1. {said}\n2. Tell the team", usage=TokenUsage(150, 50), delay=0.04)
    if system == REVIEWER:
        verdict = "REJECT: personal data would leave the company" if "private" in said else "OK, nothing against it"
        return Reply(verdict, usage=TokenUsage(1240, 12, cached_tokens=1024), delay=0.02, part_delay=0.004)
    channel = "pager" if "Page the" in said else "chat"
    title = said.partition("\n")[0].removeprefix("1. ")
    calls = (
        ToolCall("create_task", {"title": title}),
        ToolCall("notify_external_system", {"channel": channel, "message": title}),
    )
    return Reply(tool_calls=calls, usage=TokenUsage(310, 64), delay=0.05)


async def main(*, live: bool = False) -> None:
    """Observe, work off the goals, and print the golden signals."""
    with tp.instrument(service_name="taskpilot") as observed, EmbeddedServer(answer) as server:
        to_model = openai.AsyncOpenAI() if live else openai.AsyncOpenAI(api_key="none", base_url=server.url)
        async with to_model as client:
            await work_off(GOALS, client, observed.metrics, lambda goal, result: print(f"{goal}: {result}"))
        print(observed.golden_signals())


if __name__ == "__main__":
    asyncio.run(main(live=bool(os.environ.get("OPENAI_API_KEY"))))
