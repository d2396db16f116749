"""Run by hand or by CI where nothing but the core is installed: import, decorate, run, ask for the golden signals.

It is no pytest module, because pytest is not there.
"""

import asyncio
import importlib.util

import taskpilot_instrument as tp

OPTIONAL = ("openai", "rich", "starlette", "uvicorn", "redis", "scipy")


@tp.observed_tool
def create_task(title: str) -> str:
    """Stand for any tool."""
    return f"created {title}"


@tp.observed_agent
class PlannerAgent:
    """Stand for any agent."""

    async def run(self, goal: str) -> str:
        """Call the tool."""
        if not goal:
            raise ValueError("no goal")
        return create_task(goal)


async def main() -> None:
    """Run the agent three times, once in vain."""
    assert [] == [name for name in OPTIONAL if importlib.util.find_spec(name)], "only the core belongs here"
    with tp.instrument(logs="off") as instrumentation:
        for goal in ("one", "two"):
            assert f"created {goal}" == await PlannerAgent().run(goal)
        try:
            await PlannerAgent().run("")
        except ValueError:
            pass
        else:
            raise AssertionError("the agent's own exception was lost")
        signals = tp.golden_signals()
        figures = instrumentation.metrics.get_golden_signals()
    assert 66.67 == figures["success_rate"], figures
    print(signals)


asyncio.run(main())
