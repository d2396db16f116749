"""Hold every LLM call against the budgets: reserve its worst case before it is sent, settle its cost afterwards."""

import logging
from collections.abc import Iterable, Iterator
from decimal import Decimal
from random import getrandbits
from typing import Final

from taskpilot_instrument import _forks, semconv
from taskpilot_instrument._backlog import Backlog, Settlement
from taskpilot_instrument._budget_windows import Window
from taskpilot_instrument._budget_words import crossing, note_refusal, refuse, shortage
from taskpilot_instrument._operation import Operation, active
from taskpilot_instrument._records import Event, Finished, LLMCall
from taskpilot_instrument._worst_case import WorstCase
from taskpilot_instrument.budgets import USER, Budget, BudgetStatus
from taskpilot_instrument.context import Ids
from taskpilot_instrument.errors import BlockedError, ConfigurationError, LedgerError
from taskpilot_instrument.settings import LedgerUnavailable
from taskpilot_instrument.sinks.ledger import Claim, Ledger, Standing, to_pico, to_usd
from taskpilot_instrument.typing import Clock, PriceSource

_log = logging.getLogger("taskpilot_instrument")

#: A reservation whose holder died counts no longer than this; a call that takes longer is still settled.
LEASE_S: Final = 600.0
_MOST_BUDGETS: Final = 1_000
#: Values of one budget that get accounts of their own in one window; the others share one.
_MOST_ACCOUNTS: Final = 100_000
#: Settlements that one call makes up for when the ledger is back.
_AT_ONCE: Final = 20
_AWAY: Final = "the ledger cannot be reached, and ledger_unavailable is 'deny'"


#: What a call is charged to: budget, window, account with the most that the call may cost, and whether its price is
#: known. Plain tuples, because they are made for each call.
_Account = tuple[Budget, Window, Claim, bool]
#: What is held for one call: the reservation's id, and whom it is charged to.
_Held = tuple[str, tuple[_Account, ...]]


class _Kept:
    """A budget, and what is known of its current window."""

    __slots__ = ("budget", "seen", "span", "whole")

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        #: Its one account, where it has no scope.
        self.whole = (budget.prefix,)
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


class Spending:
    """Ask the budgets before each LLM call, and tell them what it cost.

    A billable call whose cost is unknown is charged what was reserved for it: unknown is not nothing. One that was
    refused, or never arrived, is charged nothing. A cost belongs to the window in which its call began.

    :param ledger: where the money is counted.
    :param prices: what calls cost.
    :param unavailable: what happens to a call that a blocking budget speaks of while the ledger cannot be reached.
    """

    where = "budget"

    def __init__(
        self,
        budgets: Iterable[Budget],
        ledger: Ledger,
        prices: PriceSource,
        clock: Clock,
        *,
        unavailable: LedgerUnavailable = "allow",
    ) -> None:
        self.ledger = ledger
        self._worst_case = WorstCase(prices)
        self._epoch_ns = clock.epoch_ns
        self._deny = unavailable == "deny"
        self._backlog = Backlog(ledger)
        self._lock = _forks.lock()
        self._kept: tuple[_Kept, ...] = ()
        for budget in budgets:
            self.add(budget)
        _forks.tell(self)

    def after_fork(self) -> None:
        """Leave to the parent what it has not settled yet."""
        self._backlog = Backlog(self.ledger)

    def add(self, budget: Budget) -> None:
        """Hold further calls against one more budget.

        :raises ConfigurationError: where it is none, or its name is taken.
        """
        if not isinstance(budget, Budget):
            raise ConfigurationError(f"budgets= takes a list of Budget(…), not {budget!r}")
        with self._lock:
            if any(budget.name == known.budget.name for known in self._kept):
                raise ConfigurationError(f"there are two budgets named {budget.name!r}: names have to differ")
            if len(self._kept) >= _MOST_BUDGETS:
                raise ConfigurationError(f"there are {_MOST_BUDGETS} budgets already: use scopes such as user='*'")
            self._kept = (*self._kept, _Kept(budget))

    def status(self) -> tuple[BudgetStatus, ...]:
        """Return how every account stands in its current window; of a budget with ``*`` those that were charged.

        :raises LedgerError: where the ledger cannot be reached.
        """
        now_s = self._now_s()
        self._catch_up(now_s)
        return tuple(status for kept in self._kept for status in self._status_of(kept, now_s))

    def limits(self) -> tuple[Budget, ...]:
        """Return the budgets in force."""
        return tuple(kept.budget for kept in self._kept)

    def _status_of(self, kept: _Kept, now_s: float) -> Iterator[BudgetStatus]:
        budget, window = kept.budget, kept.window(now_s)
        names = self.ledger.accounts(budget.prefix, window.key) if budget.scope else (budget.prefix,)
        for standing in self.ledger.standings([(name, window.key) for name in names], now_s):
            yield BudgetStatus(
                budget.name,
                budget.window,
                standing.account.removeprefix(budget.prefix),
                to_usd(standing.spent),
                to_usd(standing.reserved),
                Decimal(budget.limit_usd),
                (standing.spent + standing.reserved) / budget.limit_pico,
                window.ends_at,
                budget.on_exceed,
            )

    # --- before the call --------------------------------------------------------------------------

    def admit(self, operation: Operation, /) -> None:
        """Reserve the most that a call may cost in every budget that speaks of it and blocks.

        :raises BudgetExceededError: where one of them has not enough left.
        """
        llm = operation.llm
        if llm is None:
            return
        now_s = self._now_s()
        accounts = self._accounts(llm, operation.agent_name, operation.workflow_name, operation.ids, now_s)
        if not accounts:
            return
        claims = []
        for budget, window, claim, is_priced in accounts:
            if not is_priced and budget.on_unpriced == "block":
                reason = f"no price is known for model {llm.model!r}, and on_unpriced is 'block'"
                refuse(operation, budget, window, reason)
            if budget.blocks:
                claims.append(claim)
        reservation = f"{getrandbits(128):032x}"
        if claims:
            try:
                short = self.ledger.reserve(reservation, claims, LEASE_S, now_s)
            except LedgerError as error:
                self._go_without(operation, accounts, error)
            else:
                if short is not None:
                    budget, window, claim, _ = next(each for each in accounts if each[2][:2] == short[:2])
                    refuse(operation, budget, window, shortage(budget, claim, short), standing=short)
        llm.reserved = reservation, accounts

    def _accounts(
        self, llm: LLMCall, agent: str | None, workflow: str | None, ids: Ids, now_s: float
    ) -> tuple[_Account, ...]:
        values: dict[str, str | None] | None = None
        worst: dict[int, int | None] = {}
        found: list[_Account] = []
        for kept in self._kept:
            budget = kept.budget
            names: tuple[str, ...] = kept.whole
            if budget.scope:
                if values is None:
                    values = {semconv.AGENT: agent, semconv.MODEL: llm.model, semconv.WORKFLOW: workflow}
                    values[USER] = ids.user_id
                names = budget.accounts_of(values, ids.variants)
                if not names:
                    continue
            assumed = budget.assumed_output_tokens
            if assumed not in worst:
                worst[assumed] = self._worst_case.pico(llm, assumed)
            most, window = worst[assumed], kept.window(now_s)
            for name in names:
                account = kept.bounded(name) if budget.is_open else name
                claim = Claim(account, window.key, most or 0, budget.limit_pico)
                found.append((budget, window, claim, most is not None))
        return tuple(found)

    def _go_without(self, operation: Operation, accounts: tuple[_Account, ...], error: LedgerError) -> None:
        if self._deny:
            budget = next(budget for budget, *_ in accounts if budget.blocks)
            note_refusal(operation, budget, _AWAY)
            raise BlockedError(f"budget {budget.name!r} cannot be checked: {_AWAY}") from error

    # --- after the call ---------------------------------------------------------------------------

    def started(self, operation: Operation, /) -> None:
        """Do nothing: calls are asked about by :meth:`admit`."""

    def noted(self, event: Event, /) -> None:
        """Do nothing."""

    def finished(self, record: Finished, /) -> None:
        """Settle what was held for a call with what it cost."""
        llm = record.llm
        if llm is None:
            return
        self._worst_case.note(llm)
        held: _Held | None = llm.reserved
        now_s = self._now_s()
        if held is None:
            if not record.cost:
                return
            # Nobody asked before this call: it was told afterwards, or the budget is younger than the call.
            accounts = self._accounts(llm, record.agent, record.workflow, record.ids, now_s)
            if not accounts:
                return
            held = f"{getrandbits(128):032x}", accounts
        llm.reserved = None
        reservation, accounts = held
        charges = _charges(record, llm, accounts)
        try:
            standings = self.ledger.settle(reservation, charges, now_s)
        except LedgerError:
            self._backlog.add(Settlement(reservation, charges, tuple([budget for budget, *_ in accounts])))
            return
        for (budget, *_), charge, standing in zip(accounts, charges, standings, strict=True):
            if standing.spent >= budget.soft_pico:
                _tell(budget, charge, standing, record.operation)
        if self._backlog:
            self._catch_up(now_s)

    def _catch_up(self, now_s: float) -> None:
        """Settle some of what waited for the ledger."""
        for settlement, standings in self._backlog.settle(now_s, _AT_ONCE):
            for budget, charge, standing in zip(settlement.budgets, settlement.charges, standings, strict=True):
                _tell(budget, charge, standing, None)

    def close(self) -> None:
        """Settle what still waits."""
        self._backlog.close(self._now_s())

    def _now_s(self) -> float:
        return self._epoch_ns() / 1e9


def _charges(record: Finished, llm: LLMCall, accounts: tuple[_Account, ...]) -> tuple[Claim, ...]:
    """Return what a call is charged with: its cost, or what was held for it where that is unknown."""
    if record.cost is not None:
        cost = to_pico(record.cost)
    elif llm.billable or record.usage is not None:
        return tuple([claim for _, _, claim, _ in accounts])
    else:
        cost = 0
    return tuple([Claim(claim.account, claim.period, cost) for _, _, claim, _ in accounts])


def _tell(budget: Budget, charge: Claim, standing: Standing, operation: Operation | None) -> None:
    """Tell where a charge went over a budget's soft share or limit."""
    event = crossing(budget, charge, standing, operation)
    recorder = operation.recorder if operation is not None else active()
    if event is not None and recorder is not None:
        recorder.note(event)
