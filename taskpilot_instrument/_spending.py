"""Hold every LLM call against the budgets: reserve its worst case before it is sent, settle its cost afterwards."""

import logging
from collections.abc import Iterable, Iterator
from decimal import Decimal
from itertools import count
from typing import Final, NoReturn
from uuid import uuid4

from taskpilot_instrument import _forks
from taskpilot_instrument._backlog import Backlog, Settlement
from taskpilot_instrument._budget_accounts import Charged, Kept, accounts_of
from taskpilot_instrument._budget_words import crossing, note_refusal, refuse, shortage
from taskpilot_instrument._operation import Operation
from taskpilot_instrument._recorder import active
from taskpilot_instrument._records import Event, Finished, LLMCall
from taskpilot_instrument._refusals import Refusals
from taskpilot_instrument._worst_case import WorstCase
from taskpilot_instrument.budgets import Budget, BudgetStatus
from taskpilot_instrument.errors import BlockedError, ConfigurationError, LedgerError
from taskpilot_instrument.settings import LedgerUnavailable
from taskpilot_instrument.sinks.ledger import Claim, Ledger, Standing, to_pico, to_usd
from taskpilot_instrument.typing import Clock, PriceSource

_log = logging.getLogger("taskpilot_instrument")

#: A reservation whose holder died counts no longer than this; a call that takes longer is still settled.
LEASE_S: Final = 600.0
_MOST_BUDGETS: Final = 1_000
#: Settlements that one call makes up for when the ledger is back.
_AT_ONCE: Final = 20
_AWAY: Final = "the ledger cannot be reached, and ledger_unavailable is 'deny'"


#: With the process's own name in front, what reservations are told apart by.
_numbers: Final = count()
#: A named tuple by its name takes twice as long to make.
_new: Final = tuple.__new__


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
        self._refusals = Refusals(ledger)
        self._process = _process()
        self._lock = _forks.lock()
        self._kept: tuple[Kept, ...] = ()
        self._all_block = True
        for budget in budgets:
            self.add(budget)
        _forks.tell(self)

    def after_fork(self) -> None:
        """Leave to the parent what it has not settled yet."""
        self._backlog = Backlog(self.ledger)
        self._refusals = Refusals(self.ledger)
        self._process = _process()

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
            self._kept = (*self._kept, Kept(budget))
            self._all_block = all(kept.blocks for kept in self._kept)

    def status(self) -> tuple[BudgetStatus, ...]:
        """Return how every account stands in its current window; of a budget with ``*`` those that were charged.

        :raises LedgerError: where the ledger cannot be reached.
        """
        now_s = self._now_s()
        self._catch_up(now_s)
        self._refusals.write(now_s)
        return tuple(status for kept in self._kept for status in self._status_of(kept, now_s))

    def limits(self) -> tuple[Budget, ...]:
        """Return the budgets in force."""
        return tuple(kept.budget for kept in self._kept)

    def _status_of(self, kept: Kept, now_s: float) -> Iterator[BudgetStatus]:
        budget, window = kept.budget, kept.window(now_s)
        may_refuse = kept.blocks or kept.refuses_unpriced
        refused = self._refusals.of(budget.prefix, window.key, now_s) if may_refuse else {}
        names = self.ledger.accounts(budget.prefix, window.key) if budget.scope else (budget.prefix,)
        names = tuple(dict.fromkeys([*names, *refused]))  # who was refused from the first call on was charged nothing
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
                budget.soft_ratio,
                refused.get(standing.account, 0),
            )

    # --- before the call --------------------------------------------------------------------------

    def admit(self, operation: Operation, /) -> None:
        """Reserve the most that a call may cost in every budget that speaks of it and blocks.

        :raises BudgetExceededError: where one of them has not enough left.
        """
        llm = operation.llm
        if llm is None:
            return
        now_s = self._epoch_ns() / 1e9
        charged = accounts_of(self._kept, self._worst_case, llm, operation, now_s)
        if charged is None:
            return
        claims, whose, is_priced = charged
        if not is_priced:
            self._refuse_unpriced(operation, charged, now_s)
        reservation = f"{self._process}{next(_numbers)}"
        held = (
            claims
            if self._all_block
            else [claim for claim, (kept, _) in zip(claims, whose, strict=True) if kept.blocks]
        )
        if held:
            try:
                short = self.ledger.reserve(reservation, held, LEASE_S, now_s)
            except LedgerError as error:
                if self._deny:
                    _refuse_unchecked(operation, charged, error)
            else:
                if short is not None:
                    self._refuse_beyond(operation, charged, short, now_s)
        llm.reserved = reservation, charged

    # --- what is refused --------------------------------------------------------------------------

    def _refuse_unpriced(self, operation: Operation, charged: Charged, now_s: float) -> None:
        """Refuse a call of unknown price in the name of the first budget that lets no such call go."""
        for claim, (kept, window) in zip(charged.claims, charged.whose, strict=True):
            if kept.refuses_unpriced:
                try:
                    (standing,) = self.ledger.standings([claim[:2]], now_s)
                except LedgerError:
                    standing = None
                self._refusals.add(claim.account, claim.period, now_s)
                model = operation.llm.model if operation.llm is not None else None
                reason = f"no price is known for model {model!r}, and on_unpriced is 'block'"
                refuse(operation, kept.budget, window, reason, standing)

    def _refuse_beyond(self, operation: Operation, charged: Charged, short: Standing, now_s: float) -> NoReturn:
        """Refuse a call that an account has not enough left for."""
        place = next(place for place, claim in enumerate(charged.claims) if claim[:2] == short[:2])
        kept, window = charged.whose[place]
        self._refusals.add(short.account, short.period, now_s)
        most = operation.llm.most if operation.llm is not None else None
        is_assumed = most is None or most.output_tokens is None
        reason = shortage(kept.budget, charged.claims[place], short, is_assumed=is_assumed)
        refuse(operation, kept.budget, window, reason, short)

    # --- after the call ---------------------------------------------------------------------------

    def noted(self, event: Event, /) -> None:
        """Do nothing."""

    def finished(self, record: Finished, /) -> None:
        """Settle what was held for a call with what it cost."""
        llm = record.llm
        if llm is None:
            return
        self._worst_case.note(llm)
        now_s = self._epoch_ns() / 1e9
        if llm.reserved is not None:
            (reservation, charged), llm.reserved = llm.reserved, None
        elif record.cost:
            # Nobody asked before this call: it was told afterwards, or the budget is younger than the call.
            reservation = f"{self._process}{next(_numbers)}"
            charged = accounts_of(self._kept, self._worst_case, llm, record, now_s)
        else:
            return
        if charged is None:
            return
        charges = _charges(record, llm, charged.claims)
        try:
            standings = self.ledger.settle(reservation, charges, now_s)
        except LedgerError:
            self._backlog.add(Settlement(reservation, charges, tuple([kept.budget for kept, _ in charged.whose])))
            return
        for place, (kept, _) in enumerate(charged.whose):
            if standings[place].spent >= kept.soft_pico:
                _tell(kept.budget, charges[place], standings[place], record.operation)
        if self._backlog.waiting:
            self._catch_up(now_s)

    def _catch_up(self, now_s: float) -> None:
        """Settle some of what waited for the ledger."""
        for settlement, standings in self._backlog.settle(now_s, _AT_ONCE):
            for budget, charge, standing in zip(settlement.budgets, settlement.charges, standings, strict=True):
                _tell(budget, charge, standing, None)

    def close(self) -> None:
        """Settle what still waits."""
        self._backlog.close(self._now_s())
        self._refusals.write(self._now_s())

    def _now_s(self) -> float:
        return self._epoch_ns() / 1e9


def _process() -> str:
    """Return a name that no other process has."""
    return f"{uuid4().hex}-"


# --- what cannot be checked ---------------------------------------------------------------------


def _refuse_unchecked(operation: Operation, charged: Charged, error: LedgerError) -> NoReturn:
    """Refuse a call because nobody can say whether there is enough left."""
    budget = next(kept.budget for kept, _ in charged.whose if kept.blocks)
    note_refusal(operation, budget, _AWAY)
    raise BlockedError(f"budget {budget.name!r} cannot be checked: {_AWAY}") from error


# --- what is charged ----------------------------------------------------------------------------


def _charges(record: Finished, llm: LLMCall, claims: list[Claim]) -> list[Claim]:
    """Return what a call is charged with: its cost, or what was held for it where that is unknown."""
    if record.cost is not None:
        cost = to_pico(record.cost)
    elif llm.billable or record.usage is not None:
        return claims
    else:
        cost = 0
    return [_new(Claim, (claim[0], claim[1], cost, None)) for claim in claims]


def _tell(budget: Budget, charge: Claim, standing: Standing, operation: Operation | None) -> None:
    """Tell where a charge went over a budget's soft share or limit."""
    event = crossing(budget, charge, standing, operation)
    recorder = operation.recorder if operation is not None else active()
    if event is not None and recorder is not None:
        recorder.note(event)
