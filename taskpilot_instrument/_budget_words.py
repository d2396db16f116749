"""What budgets say: events, errors and reasons."""

from decimal import Decimal
from typing import NoReturn

from taskpilot_instrument import semconv
from taskpilot_instrument._budget_windows import Window
from taskpilot_instrument._operation import Operation
from taskpilot_instrument._records import Event
from taskpilot_instrument.budgets import Budget
from taskpilot_instrument.errors import BudgetExceededError
from taskpilot_instrument.sinks.ledger import Claim, Standing, to_usd


def usd(pico: int) -> str:
    """Return exact money for people."""
    return f"${to_usd(pico).normalize():f}"


def refuse(operation: Operation, budget: Budget, window: Window, reason: str, standing: Standing | None) -> NoReturn:
    """Note that a budget refused a call, and refuse it.

    :param standing: how the account stood; None where nobody knows.
    :raises BudgetExceededError: always.
    """
    note_refusal(operation, budget, reason)
    resets = window.ends_at
    when = f"; it resets at {resets.isoformat()}" if resets is not None else ""
    raise BudgetExceededError(
        f"budget {budget.name!r} refused the call: {reason}{when}",
        budget=budget.name,
        spent_usd=to_usd(standing.spent + standing.reserved) if standing is not None else None,
        limit_usd=Decimal(budget.limit_usd),
        resets_at=resets,
    )


def note_refusal(operation: Operation, budget: Budget, reason: str) -> None:
    """Note that a budget refused a call."""
    operation.recorder.note(
        Event(
            semconv.E_BUDGET_BLOCKED,
            semconv.CATEGORY_DECISION,
            "WARNING",
            f"budget {budget.name} refused {operation.name}",
            operation,
            budget.name,
            "block",
            reason,
            {semconv.L_WINDOW: budget.window},
        )
    )


def shortage(budget: Budget, claim: Claim, standing: Standing, *, is_assumed: bool) -> str:
    """Say what a budget has not enough left for.

    :param is_assumed: whether the call set no limit to its output.
    """
    assumed = f" ({budget.assumed_output_tokens} output tokens assumed, as it sets no max_tokens)" if is_assumed else ""
    scope = claim.account.removeprefix(budget.prefix)
    return (
        f"{usd(standing.spent)} spent and {usd(standing.reserved)} reserved of {usd(budget.limit_pico)} for the "
        f"{budget.window}{f' by {scope}' if scope else ''}; the call may cost up to {usd(claim.amount)}"
        f"{assumed}"
    )


def crossing(budget: Budget, charge: Claim, standing: Standing, operation: Operation | None) -> Event | None:
    """Return the event of a charge that went over the soft share, or over the limit; None where it did neither.

    The ledger counts charges one after the other, so of all processes exactly one has the charge that went over.
    """
    before, spent = standing.spent - charge.amount, standing.spent
    limit = usd(budget.limit_pico)
    if before < budget.limit_pico <= spent:
        reason = f"the {budget.window}'s {limit} is spent"
    elif before < budget.soft_pico <= spent:
        reason = f"{budget.soft_ratio:.0%} of the {budget.window}'s {limit} is spent"
    else:
        return None
    scope = charge.account.removeprefix(budget.prefix)
    model = operation.llm.model if operation is not None and operation.llm is not None else None
    return Event(
        semconv.E_COST_THRESHOLD_EXCEEDED,
        semconv.CATEGORY_ERROR,
        "WARNING",
        f"budget {budget.name}{f' ({scope})' if scope else ''}: {usd(spent)} of {limit} spent",
        operation,
        budget.name,
        "warn",
        reason,
        {semconv.MODEL: model, semconv.L_WINDOW: budget.window},
    )
