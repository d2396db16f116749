"""Names and keys of the hourly figures that the ledger keeps for reports.

Runs and calls stand under keys of their own, so that figures of the same name never mix. What a key or name is made
from may come from users or providers: it is cut to a length, and what would make it ambiguous is escaped.
"""

from functools import lru_cache
from typing import Final
from urllib.parse import unquote

from taskpilot_instrument.semconv import AGENT, MODEL, NONE, OTHER, WORKFLOW

HOUR_S: Final = 3600

# Money is in pico-dollars, time in microseconds. Under a workflow:
RUNS: Final = "runs"
CHECKED: Final = "checked"
CHECK_FAILED: Final = "check_failed"
VIOLATIONS: Final = "violations"
GUARDRAIL_BLOCKS: Final = "guardrail_blocks"
# Under an agent and a model:
#: All of them: those that were refused before they were sent have an outcome of their own.
CALLS: Final = "calls"
#: Calls that were sent, and of which it is known how long they took.
TIMED: Final = "timed"
COST: Final = "cost"
#: Of calls that may be billed: those whose cost is wholly known, and those of which it is not.
PRICED: Final = "priced"
UNPRICED: Final = "unpriced"
INPUT: Final = "input_tokens"
OUTPUT: Final = "output_tokens"
#: Of LLM calls that did not succeed; attempts also of those that did, where the client made some again.
WASTED: Final = "wasted"
WASTED_TOKENS: Final = "wasted_tokens"
WASTED_CALLS: Final = "wasted_calls"
WASTED_UNPRICED: Final = "wasted_unpriced"
WASTED_ATTEMPTS: Final = "wasted_attempts"
RETRIES: Final = "retries"
# Under both; after a colon comes which.
MICROSECONDS: Final = "us"
OUTCOME: Final = "outcome:"
#: Of runs, the upper bound of the bucket of their duration, in seconds; each run is in one.
BUCKET: Final = "le:"
#: Of calls that were sent, the type of an error.
ERROR: Final = "error:"
#: What runs that did not succeed came to, by outcome: their cost, and how many have one that is not wholly known.
LOST: Final = "lost:"
LOST_UNPRICED: Final = "lost_unpriced:"
#: Of violations, the policy.
POLICY: Final = "policy:"

#: What the keys of runs begin with.
OF_RUNS: Final = f"{WORKFLOW}="
_LONGEST: Final = 200
#: What keys are cut apart by, what Redis's fields are, and what escapes begin with.
_ESCAPED: Final = {ord(char): f"%{ord(char):02X}" for char in "%|\x1f"}


@lru_cache(maxsize=4096)
def of_run(workflow: str | None) -> str:
    """Return the key of a workflow's runs."""
    return f"{OF_RUNS}{plain(workflow)}"


@lru_cache(maxsize=4096)
def of_call(agent: str | None, model: str | None) -> str:
    """Return the key of the calls of a model in an agent."""
    return f"{AGENT}={plain(agent)}|{MODEL}={plain(model)}"


OTHER_RUNS: Final = f"{OF_RUNS}{OTHER}"
OTHER_CALLS: Final = f"{AGENT}={OTHER}|{MODEL}={OTHER}"


@lru_cache(maxsize=4096)
def plain(value: str | None) -> str:
    """Return a name as it may stand in a key or figure."""
    return (value or NONE)[:_LONGEST].encode("utf-8", "backslashreplace").decode().translate(_ESCAPED)


def named(value: str) -> str:
    """Return the name behind :func:`plain`."""
    return unquote(value)


def dimensions(key: str) -> dict[str, str]:
    """Return what a key was made from, by dimension."""
    return {name: unquote(value) for name, _, value in (part.partition("=") for part in key.split("|"))}
