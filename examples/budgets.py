"""Budgets: a call that might overspend is refused before it is sent.

    python examples/budgets.py

It runs offline, against an embedded server, at no cost; the ledger is in memory. Log lines go to stderr.
"""

import openai

import taskpilot_instrument as tp
from taskpilot_instrument.embedded import EmbeddedServer

BUDGETS = [
    # A little for each user and day; whose next call might go beyond it is refused until midnight in Berlin.
    tp.Budget("per-user", "0.00006", window="day", timezone="Europe/Berlin", scope={"user": "*"}, on_exceed="block"),
    # What the planner spends in an hour is only warned about, from half of it on.
    tp.Budget("planner", "0.00006", window="hour", scope={"agent": "PlannerAgent"}, soft_ratio=0.5),
]


@tp.observed_agent
class PlannerAgent:
    """Ask a model for a plan."""

    def __init__(self, client: openai.OpenAI) -> None:
        self.client = client

    def run(self, goal: str) -> str:
        """Run."""
        reply = self.client.chat.completions.create(
            model="gpt-4o-mini", max_tokens=20, messages=[{"role": "user", "content": f"Make a plan: {goal}"}]
        )
        return reply.choices[0].message.content or ""


def main() -> None:
    """Let two users ask until one of them has no money left."""
    with (
        EmbeddedServer() as server,
        openai.OpenAI(api_key="none", base_url=server.url) as client,
        tp.instrument(budgets=BUDGETS, ledger="memory") as observed,
    ):
        planner = PlannerAgent(client)
        for user, goals in (("ann", 10), ("bob", 3)):
            try:
                for number in range(goals):
                    with tp.workflow("planning", user_id=user):
                        planner.run(f"release {number}")
            except tp.BudgetExceededError as refused:
                print(f"{user}: {refused}")
            else:
                print(f"{user}: all {goals} plans made")
        for status in observed.budgets():
            whose = f" of {status.account}" if status.account else ""
            print(f"{status.name}{whose}: ${status.spent_usd:.6f} of ${status.limit_usd:f} ({status.ratio:.0%})")
        print(f"requests that reached the provider: {len(server.requests)}")


if __name__ == "__main__":
    main()
