"""Whom a call is charged to: of every budget that speaks of it, the account and window, and the most it may cost."""

import logging
from typing import Final, NamedTuple

from taskpilot_instrument import semconv
from taskpilot_instrument._budget_windows import Window
from taskpilot_instrument._operation import Operation
from taskpilot_instrument._records import Finished, LLMCall
from taskpilot_instrument._worst_case import WorstCase
from taskpilot_instrument.budgets import USER, Budget
from taskpilot_instrument.sinks.ledger import Claim

_log = logging.getLogger("taskpilot_instrument")

#: Values of one budget that get accounts of their own in one window; the others share one.
_MOST_ACCOUNTS: Final = 100_000
#: A named tuple by its name takes twice as long to make.
_new: Final = tuple.__new__
#: No budget assumes so little.
_NOT_ASKED: Final = -1


class Kept:
    """A budget, and what is known of its current window."""

    __slots__ = (
        "assumed_output_tokens", "blocks", "budget", "is_open", "is_scoped", "limit_pico", "refuses_unpriced", "seen",
        "soft_pico", "span", "whole",
    )  # fmt: skip

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.blocks, self.is_open, self.is_scoped = budget.blocks, budget.is_open, bool(budget.scope)
        self.limit_pico, self.soft_pico = budget.limit_pico, budget.soft_pico
        self.refuses_unpriced = budget.on_unpriced == "block"
        self.assumed_output_tokens = budget.assumed_output_tokens
        #: Its one account, where it has no scope.
        self.whole: tuple[str, ...] = (budget.prefix,)
        #: From when until when the window is known to hold, and which it is; replaced as a whole.
        self.span: tuple[float, float, Window] = (0.0, 0.0, Window("", None))
        self.seen: set[int] = set()

    def window(self, now_s: float) -> Window:
        """Return the window of this moment."""
        since, until, window = self.span
        if not since <= now_s < until:
            window = self.budget.window_at(now_s)
            until = window.ends_at.timestamp() if window.ends_at is not None else float("inf")
            self.span, self.seen = (now_s, until, window), set()
        return window

    def bounded(self, account: str) -> str:
        """Return the account, or the one that the values beyond the bound share."""
        name = hash(account)
        if name in self.seen:
            return account
        if len(self.seen) >= _MOST_ACCOUNTS:
            return self.budget.rest
        self.seen.add(name)
        if len(self.seen) == _MOST_ACCOUNTS:
            _log.warning(
                "taskpilot_instrument: budget %r has %d accounts in this window; further values share one",
                self.budget.name,
                _MOST_ACCOUNTS,
            )
        return account


class Charged(NamedTuple):
    """Whom one call is charged to.

    :param claims: of each account, the most that the call may cost.
    :param whose: of each account, its budget and window.
    :param is_priced: False where the model has no price: then the claims are over nothing.
    """

    claims: list[Claim]
    whose: list[tuple[Kept, Window]]
    is_priced: bool


def accounts_of(
    budgets: tuple[Kept, ...], worst_case: WorstCase, llm: LLMCall, call: Operation | Finished, now_s: float
) -> Charged | None:
    """Return whom a call is charged to; None where no budget speaks of it.

    :param call: says who makes it.
    """
    values: dict[str, str | None] | None = None
    most: int | None = None
    assumed = _NOT_ASKED
    claims: list[Claim] = []
    whose: list[tuple[Kept, Window]] = []
    for kept in budgets:
        since, until, window = kept.span
        if not since <= now_s < until:
            window = kept.window(now_s)  # a new window forgets the accounts of the last
        names = kept.whole
        if kept.is_scoped:
            if values is None:
                values = _values_of(llm, call)
            names = kept.budget.accounts_of(values, call.ids.variants)
            if not names:
                continue
            if kept.is_open:
                names = tuple(dict.fromkeys([kept.bounded(name) for name in names]))
        if kept.assumed_output_tokens != assumed:  # nearly always the same for all
            assumed = kept.assumed_output_tokens
            most = worst_case.pico(llm, assumed)
        for name in names:
            claims.append(_new(Claim, (name, window[0], most or 0, kept.limit_pico)))
            whose.append((kept, window))
    return _new(Charged, (claims, whose, most is not None)) if claims else None


def _values_of(llm: LLMCall, call: Operation | Finished) -> dict[str, str | None]:
    """Return what the scopes of budgets speak of."""
    if isinstance(call, Operation):
        agent, workflow = call.agent_name, call.workflow_name
    else:
        agent, workflow = call.agent, call.workflow
    return {semconv.AGENT: agent, semconv.MODEL: llm.model, semconv.WORKFLOW: workflow, USER: call.ids.user_id}
