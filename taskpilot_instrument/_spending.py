"""Hold every LLM call against the budgets: reserve its worst case before it is sent, settle its cost afterwards."""

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from random import getrandbits
from typing import Any, Final, NamedTuple

from taskpilot_instrument import semconv
from taskpilot_instrument._budget_windows import Window
from taskpilot_instrument._operation import Operation
from taskpilot_instrument._records import Event, Finished, LLMCall
from taskpilot_instrument.budgets import USER, Budget, BudgetStatus
from taskpilot_instrument.context import Ids
from taskpilot_instrument.errors import BlockedError, BudgetExceededError, ConfigurationError, LedgerError
from taskpilot_instrument.settings import LedgerUnavailable
from taskpilot_instrument.sinks.ledger import Claim, Ledger, Standing, to_pico, to_usd
from taskpilot_instrument.typing import Clock, PriceSource
from taskpilot_instrument.usage import TokenUsage

_log = logging.getLogger("taskpilot_instrument")

#: A reservation whose holder died counts no longer than this; a call that takes longer is still settled.
LEASE_S: Final = 600.0
_MOST_BUDGETS: Final = 1_000
#: Settlements kept while the ledger is away; money beyond that is lost to the budgets, and said so.
_MOST_WAITING: Final = 100_000
_MOST_SAID: Final = 10_000
_BLOCK: Final = "block"


class _Account(NamedTuple):
    """What a call is charged to, and how much of it is held."""

    budget: Budget
    name: str
    window: Window
    worst: int


class _Held(NamedTuple):
    """What is held for one call."""

    reservation: str
    accounts: tuple[_Account, ...]


class Spending:
    """Ask the budgets before each LLM call, and tell them what it cost.

    A billable call whose cost is unknown is charged what was reserved for it: unknown is not nothing. One that was
    refused, or never arrived, is charged nothing.

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
        self._prices = prices
        self._clock = clock
        self._deny = unavailable == "deny"
        self._lock = threading.Lock()
        self._budgets: tuple[Budget, ...] = ()
        self._windows: dict[str, tuple[float, Window, float]] = {}
        self._waiting: deque[tuple[str, tuple[Claim, ...]]] = deque()
        self._said: OrderedDict[tuple[str, str, str], None] = OrderedDict()
        for budget in budgets:
            self.add(budget)

    def add(self, budget: Budget) -> None:
        """Hold further calls against one more budget.

        :raises ConfigurationError: where it is none, or its name is taken.
        """
        if not isinstance(budget, Budget):
            raise ConfigurationError(f"budgets= takes a list of Budget(…), not {budget!r}")
        with self._lock:
            if any(budget.name == known.name for known in self._budgets):
                raise ConfigurationError(f"there are two budgets named {budget.name!r}: names have to differ")
            if len(self._budgets) >= _MOST_BUDGETS:
                raise ConfigurationError(f"there are {_MOST_BUDGETS} budgets already: use scopes such as user='*'")
            self._budgets = (*self._budgets, budget)

    def status(self) -> tuple[BudgetStatus, ...]:
        """Return how every account stands in its current window; of a budget with ``*`` those that were charged.

        :raises LedgerError: where the ledger cannot be reached.
        """
        now_s = self._now_s()
        return tuple(status for budget in self._budgets for status in self._status_of(budget, now_s))

    def limits(self) -> tuple[Budget, ...]:
        """Return the budgets in force."""
        return self._budgets

    def _status_of(self, budget: Budget, now_s: float) -> Iterator[BudgetStatus]:
        window = self._window(budget, now_s)
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
        """Reserve the worst case of a call in every budget that speaks of it.

        :raises BudgetExceededError: where one that blocks has not enough left.
        """
        llm = operation.llm
        if llm is None:
            return
        now_s = self._now_s()
        values = _values(operation.agent_name, operation.workflow_name, llm.model, operation.ids)
        accounts = tuple(self._accounts(llm, values, now_s))
        if not accounts:
            return
        unpriced = next((account for account in accounts if account.worst < 0), None)
        if unpriced is not None and unpriced.budget.on_unpriced == _BLOCK:
            raise self._refused(
                operation, unpriced, None, f"no price is known for model {llm.model!r}, and on_unpriced is 'block'"
            )
        held = _Held(f"{getrandbits(128):032x}", accounts)
        claims = [
            Claim(
                account.name,
                account.window.key,
                max(0, account.worst),
                account.budget.limit_pico if account.budget.on_exceed == _BLOCK else None,
            )
            for account in accounts
        ]
        try:
            short = self.ledger.reserve(held.reservation, claims, LEASE_S, now_s)
        except LedgerError as error:
            self._go_without(operation, accounts, error)
            short = None
        if short is not None:
            account = next(each for each in accounts if (each.name, each.window.key) == short[:2])
            raise self._refused(operation, account, short, _shortage(account, short))
        llm.reserved = held

    def _accounts(self, llm: LLMCall, values: Mapping[str, str | None], now_s: float) -> Iterator[_Account]:
        worst: dict[int, int] = {}
        for budget in self._budgets:
            name = budget.account_of(values)
            if name is None:
                continue
            assumed = budget.assumed_output_tokens
            if assumed not in worst:
                worst[assumed] = self._worst_case(llm, assumed)
            yield _Account(budget, name, self._window(budget, now_s), worst[assumed])

    def _worst_case(self, llm: LLMCall, assumed_output_tokens: int) -> int:
        """Return the most that a call may cost, in pico-dollars; -1 where its model has no price."""
        probe = LLMCall(llm.operation, llm.model, provider=llm.provider, base_url=llm.base_url)
        probe.service_tier = llm.request.get(semconv.OPENAI_REQUEST_SERVICE_TIER)
        most = llm.most_output_tokens
        probe.usage = TokenUsage(llm.most_input_tokens or 0, assumed_output_tokens if most is None else most)
        price = self._prices.price_call(probe)
        return -1 if price is None else to_pico(price.usd)

    def _go_without(self, operation: Operation, accounts: tuple[_Account, ...], error: LedgerError) -> None:
        if not self._deny:
            return
        blocking = next((account for account in accounts if account.budget.on_exceed == _BLOCK), None)
        if blocking is not None:
            reason = "the ledger cannot be reached, and ledger_unavailable is 'deny'"
            self._note_refusal(operation, blocking, reason)
            raise BlockedError(f"budget {blocking.budget.name!r} cannot be checked: {reason}") from error

    def _refused(
        self, operation: Operation, account: _Account, short: Standing | None, reason: str
    ) -> BudgetExceededError:
        self._note_refusal(operation, account, reason)
        budget, resets = account.budget, account.window.ends_at
        spent = to_usd(short.spent + short.reserved) if short is not None else Decimal(0)
        when = f"; it resets at {resets.isoformat()}" if resets is not None else ""
        return BudgetExceededError(
            f"budget {budget.name!r} refused the call: {reason}{when}",
            budget=budget.name,
            spent_usd=spent,
            limit_usd=Decimal(budget.limit_usd),
            resets_at=resets,
        )

    def _note_refusal(self, operation: Operation, account: _Account, reason: str) -> None:
        budget = account.budget
        operation.recorder.note(
            Event(
                semconv.E_BUDGET_BLOCKED,
                semconv.CATEGORY_DECISION,
                "WARNING",
                f"budget {budget.name} refused {operation.name}",
                operation,
                budget.name,
                _BLOCK,
                reason,
                {semconv.L_WINDOW: budget.window},
            )
        )

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
        held = llm.reserved
        if held is None:
            if not record.cost or not self._budgets:
                return
            # Nobody asked before this call: it was told afterwards, or the budget is younger than the call.
            values = _values(record.agent, record.workflow, llm.model, record.ids)
            held = _Held(f"{getrandbits(128):032x}", tuple(self._accounts(llm, values, self._now_s())))
            if not held.accounts:
                return
        llm.reserved = None
        charges = tuple(
            Claim(account.name, account.window.key, _charge(record, llm, account)) for account in held.accounts
        )
        try:
            standings = self.ledger.settle(held.reservation, charges, self._now_s())
        except LedgerError:
            self._wait(held.reservation, charges)
            return
        if self._waiting:
            self._catch_up()
        for account, standing in zip(held.accounts, standings, strict=True):
            self._watch(account, standing, record)

    def _wait(self, reservation: str, charges: tuple[Claim, ...]) -> None:
        if len(self._waiting) >= _MOST_WAITING:
            _log.error("taskpilot_instrument: the ledger is away for too long; what calls cost now is in no budget")
            return
        self._waiting.append((reservation, charges))

    def _catch_up(self) -> None:
        """Settle what waited for the ledger; a settlement that was made already changes nothing."""
        while self._waiting:
            try:
                waiting = self._waiting.popleft()
            except IndexError:  # another thread took it
                return
            try:
                self.ledger.settle(*waiting, self._now_s())
            except LedgerError:
                self._waiting.appendleft(waiting)
                return

    def close(self) -> None:
        """Settle what still waits."""
        self._catch_up()

    def _watch(self, account: _Account, standing: Standing, record: Finished) -> None:
        """Tell once per account and window that the soft share, or the limit, is spent."""
        budget = account.budget
        share = standing.spent / budget.limit_pico
        if share < budget.soft_ratio:
            return
        threshold = "limit" if share >= 1 else f"{budget.soft_ratio:.0%}"
        key = (account.name, account.window.key, threshold)
        with self._lock:
            if key in self._said:
                return
            self._said[key] = None
            if len(self._said) > _MOST_SAID:
                self._said.popitem(last=False)
        spent, limit = usd(to_usd(standing.spent)), usd(Decimal(budget.limit_usd))
        scope = account.name.removeprefix(budget.prefix)
        details: dict[str, Any] = {semconv.MODEL: record.model, semconv.L_WINDOW: budget.window}
        event = Event(
            semconv.E_COST_THRESHOLD_EXCEEDED,
            semconv.CATEGORY_ERROR,
            "WARNING",
            f"budget {budget.name}{f' ({scope})' if scope else ''}: {spent} of {limit} spent",
            record.operation,
            budget.name,
            "warn",
            f"{threshold} of the {budget.window}'s {limit} is spent"
            if share < 1
            else f"the {budget.window}'s {limit} is spent",
            details,
        )
        if record.operation is not None:
            record.operation.recorder.note(event)

    # --- inside -----------------------------------------------------------------------------------

    def _now_s(self) -> float:
        return self._clock.epoch_ns() / 1e9

    def _window(self, budget: Budget, now_s: float) -> Window:
        since, window, until = self._windows.get(budget.name, (now_s, None, now_s))
        if window is None or not since <= now_s < until:
            window = budget.window_at(now_s)
            until = window.ends_at.timestamp() if window.ends_at is not None else float("inf")
            self._windows[budget.name] = (now_s, window, until)
        return window


def _values(agent: str | None, workflow: str | None, model: str | None, ids: Ids) -> dict[str, str | None]:
    """Return what a call's scope is; of several experiments at once the first one counts."""
    experiment, variant = ids.variants[0] if ids.variants else (None, None)
    return {
        semconv.AGENT: agent,
        semconv.MODEL: model,
        semconv.WORKFLOW: workflow,
        USER: ids.user_id,
        semconv.EXPERIMENT: experiment,
        semconv.VARIANT: variant,
    }


def usd(amount: Decimal) -> str:
    """Return exact money for people."""
    return f"${amount.normalize():f}"


def _charge(record: Finished, llm: LLMCall, account: _Account) -> int:
    if record.cost is not None:
        return to_pico(record.cost)
    return max(0, account.worst) if llm.billable or record.usage is not None else 0


def _shortage(account: _Account, short: Standing) -> str:
    budget = account.budget
    scope = account.name.removeprefix(budget.prefix)
    spent, reserved, worst = (usd(to_usd(pico)) for pico in (short.spent, short.reserved, account.worst))
    whose = f"{budget.window}{f' by {scope}' if scope else ''}"
    return (
        f"{spent} spent and {reserved} reserved of {usd(Decimal(budget.limit_usd))} for the {whose}; "
        f"the call may cost up to {worst}"
    )
