"""The demo that goes on and on, with the live page: users ask, one of two models answers each, budgets fill up."""

import asyncio
from collections.abc import Iterator
from itertools import cycle
from time import sleep
from types import ModuleType
from typing import Final

from taskpilot_instrument._demo import load_example, work
from taskpilot_instrument._ending import end_on_signals
from taskpilot_instrument._instrument import instrument
from taskpilot_instrument.budgets import Budget
from taskpilot_instrument.experiments import experiment

_PAUSE_S: Final = 0.5
_TO_COME: Final = """\
Figures are there from the first run on, one run follows another, and this window says no more. After ten runs a budget
comes near its limit; the experiment can be judged after 100 runs of each model, in some three minutes."""
#: The first is the example's own.
_MODELS: Final = ("gpt-4o-mini", "gpt-4.1-mini")
#: Goals of the first user, who then has seen enough.
_TRIAL_RUNS: Final = 10
#: A service in good health costs some two dollars an hour; the trial has cost more than four fifths of what it may.
BUDGETS: Final = (
    Budget("all agents", "4", window="hour"),
    Budget("planner", "1", window="hour", scope={"agent": "PlannerAgent"}),
    Budget("trial", "0.003", window="total", scope={"user": "user-1"}),
)


def demo_with_page(port: int) -> int:
    """Run the example workflow until interrupted, with the page on a port; return the exit status."""
    from taskpilot_instrument.web import serve

    end_on_signals()
    example = load_example()
    try:
        with instrument(logs="off", budgets=list(BUDGETS), ledger="memory") as observed, serve(port) as page:
            print(f"The page is at {page.url} (Ctrl+C stops it)\n{_TO_COME}", flush=True)
            asyncio.run(work(example, goals(example, _PAUSE_S), observed))
    except KeyboardInterrupt:
        print()
    return 0


def goals(example: ModuleType, pause_s: float) -> Iterator[str]:
    """Yield goals on and on, after the first user's each of another one: by lot, one of two models works them off.

    :param pause_s: seconds between them.
    """
    for number, goal in enumerate(cycle(example.GOALS)):
        user = f"user-{max(1, number - _TRIAL_RUNS + 2)}"
        model = str(experiment("which-model", _MODELS, unit=user))
        example.USER, example.MODEL = user, model  # type: ignore[attr-defined]
        yield goal
        sleep(pause_s)
