"""Budgets: how much may be spent, asked before each LLM call is sent and told what it cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from decimal import Decimal, InvalidOperation
from functools import cached_property
from hashlib import blake2s
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, get_args
from zoneinfo import ZoneInfo

from taskpilot_instrument import semconv
from taskpilot_instrument._budget_windows import WINDOWS, Window, WindowName, window_at
from taskpilot_instrument._forms import did_you_mean
from taskpilot_instrument.errors import ConfigurationError
from taskpilot_instrument.sinks.ledger import to_pico

OnExceed = Literal["warn", "block"]
OnUnpriced = Literal["allow", "block"]

USER: Final = "user"
#: What a budget can be narrowed to.
SCOPES: Final = (semconv.AGENT, semconv.MODEL, semconv.WORKFLOW, USER, semconv.EXPERIMENT, semconv.VARIANT)
_EACH: Final = "*"
_LONGEST_NAME: Final = 100
#: Between the parts of an account's name.
_BETWEEN: Final = "|"
#: Longer values are cut; what is cut off goes into a check sum, so that they stay apart.
_LONGEST_VALUE: Final = 120
#: Above this, pico-dollars would not fit into the integers of SQLite and Redis.
_MOST_USD: Final = 9_000_000


@dataclass(frozen=True)
class Budget:
    """Say how much may be spent in each window of time.

    :param name: unique; a label of the metrics.
    :param limit_usd: USD in one window; a float means the decimal that it prints as.
    :param window: ``hour``, ``day``, ``week``, ``month`` (of the calendar, in ``timezone``) or ``total``.
    :param timezone: IANA name, such as ``Europe/Berlin``; windows begin at its midnight.
    :param scope: which calls count: any of ``agent`` (the innermost around the call), ``model`` (as asked for),
        ``workflow``, ``user``, ``experiment``, ``variant``, each a value, or ``*`` for an account of its own for each
        value. A call that has no such value, as one without a user, does not count. Without a scope all calls do.
    :param soft_ratio: share of the limit at which a warning is due, above 0 and at most 1.
    :param on_exceed: ``warn`` lets the call go, ``block`` raises :class:`BudgetExceededError` before it is sent.
    :param on_unpriced: whether a call whose model has no price goes; with ``block`` it is refused.
    :param assumed_output_tokens: output tokens that are reserved for a call which sets no limit of its own.
    :raises ConfigurationError: for a value that is not valid, naming the field.
    """

    name: str
    limit_usd: Decimal | float | str
    window: WindowName = "day"
    timezone: str = "UTC"
    scope: Mapping[str, str] = field(default_factory=dict, hash=False)
    soft_ratio: float = 0.8
    on_exceed: OnExceed = "warn"
    on_unpriced: OnUnpriced = "allow"
    assumed_output_tokens: int = 4096

    def __post_init__(self) -> None:
        name = self.name
        if not _is_name(name):
            raise ConfigurationError(
                f"Budget(name=…) takes 1 to {_LONGEST_NAME} characters without {_BETWEEN!r}, not {name!r:.120}"
            )
        object.__setattr__(self, "limit_usd", self._amount(self.limit_usd))
        self._one_of("window", self.window, WINDOWS)
        self._one_of("on_exceed", self.on_exceed, get_args(OnExceed))
        self._one_of("on_unpriced", self.on_unpriced, get_args(OnUnpriced))
        object.__setattr__(self, "scope", self._scope(self.scope))
        try:
            self.zone  # noqa: B018 - looked up now, so that a wrong name is told at the start
        except (KeyError, ValueError, OSError, TypeError):
            raise self._wrong("timezone", self.timezone, "an IANA name such as 'UTC' or 'Europe/Berlin'") from None
        ratio = self.soft_ratio
        if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio <= 1:
            raise self._wrong("soft_ratio", ratio, "a share above 0 and at most 1, such as 0.8")
        tokens = self.assumed_output_tokens
        if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
            raise self._wrong("assumed_output_tokens", tokens, "a number of tokens, 1 or more")

    def _wrong(self, name: str, value: object, expected: str) -> ConfigurationError:
        return ConfigurationError(f"Budget({self.name!r}): {name}={value!r}: expected {expected}")

    def _one_of(self, name: str, value: object, words: tuple[str, ...]) -> None:
        if value not in words:
            raise self._wrong(name, value, f"one of {', '.join(words)}{did_you_mean(value, words)}")

    def _amount(self, value: object) -> Decimal:
        expected = f"USD above 0 and at most {_MOST_USD:,}, such as 25 or '0.50'"
        is_number = isinstance(value, int | float | str | Decimal) and not isinstance(value, bool)
        try:
            amount = Decimal(str(value) if is_number else "NaN")
        except InvalidOperation:
            raise self._wrong("limit_usd", value, expected) from None
        if not amount.is_finite() or not 0 < amount <= _MOST_USD:
            raise self._wrong("limit_usd", value, expected)
        return amount

    def _scope(self, scope: object) -> Mapping[str, str]:
        if not isinstance(scope, Mapping):
            raise self._wrong("scope", scope, 'a mapping such as {"agent": "PlannerAgent"} or {"user": "*"}')
        for name, value in scope.items():
            if name not in SCOPES:
                raise self._wrong("scope", name, f"any of {', '.join(SCOPES)} as its keys{did_you_mean(name, SCOPES)}")
            if not isinstance(value, str) or not value:
                raise self._wrong("scope", value, f"text for {name!r}: a value, or '*' for each value by itself")
        return MappingProxyType({name: scope[name] for name in SCOPES if name in scope})

    def __reduce__(self) -> tuple[type["Budget"], tuple[Any, ...]]:
        values = {each.name: getattr(self, each.name) for each in fields(self)} | {"scope": dict(self.scope)}
        return Budget, tuple(values.values())

    @cached_property
    def zone(self) -> ZoneInfo:
        """The time zone."""
        return ZoneInfo(self.timezone)

    @cached_property
    def limit_pico(self) -> int:
        """The limit in pico-dollars."""
        return to_pico(Decimal(self.limit_usd))

    @cached_property
    def soft_pico(self) -> int:
        """What a warning is due at, in pico-dollars."""
        return min(self.limit_pico, to_pico(Decimal(self.limit_usd) * Decimal(str(self.soft_ratio))))

    @cached_property
    def blocks(self) -> bool:
        """True where it refuses calls, and so has to hold what they may cost."""
        return self.on_exceed == "block"

    @cached_property
    def prefix(self) -> str:
        """What the names of its accounts begin with."""
        return self.name + _BETWEEN

    @cached_property
    def rest(self) -> str:
        """The account of the values beyond those that have accounts of their own."""
        return self.prefix + _EACH

    @cached_property
    def is_open(self) -> bool:
        """True where values that nobody knows beforehand get accounts of their own."""
        return _EACH in self.scope.values()

    def window_at(self, at_s: float) -> Window:
        """Return the window that an instant, in seconds since 1970, falls into."""
        return window_at(self.window, self.zone, at_s)

    def accounts_of(self, values: Mapping[str, str | None], variants: Sequence[tuple[str, str]]) -> tuple[str, ...]:
        """Return the accounts that a call is charged to: none where the budget does not speak of it.

        Without a scope that is the one named by the prefix.

        :param values: what the call is, by the names of :data:`SCOPES`.
        :param variants: the experiments that it takes part in, each with its variant.
        """
        if semconv.EXPERIMENT not in self.scope and semconv.VARIANT not in self.scope:
            account = self._account_of(values)
            return () if account is None else (account,)
        found = [
            self._account_of({**values, semconv.EXPERIMENT: experiment, semconv.VARIANT: variant})
            for experiment, variant in variants
        ]
        return tuple(dict.fromkeys(account for account in found if account is not None))

    def _account_of(self, values: Mapping[str, str | None]) -> str | None:
        parts = []
        for name, wanted in self.scope.items():
            value = values.get(name)
            if value is None or (wanted != _EACH and wanted != value):  # noqa: PLR1714 - a set costs as much as all this
                return None
            parts.append(f"{name}={_plain(value)}")
        return self.prefix + _BETWEEN.join(parts)


def _is_name(name: object) -> bool:
    if not isinstance(name, str) or not name.strip() or len(name) > _LONGEST_NAME or _BETWEEN in name:
        return False
    return not any("\ud800" <= character <= "\udfff" for character in name)  # what no label of a metric can hold


def _plain(value: str) -> str:
    """Return a value as it stands in an account's name: short, and without what separates its parts."""
    if len(value) > _LONGEST_VALUE:
        value = f"{value[:_LONGEST_VALUE]}…{blake2s(value.encode('utf-8', 'replace'), digest_size=8).hexdigest()}"
    return value.replace("%", "%25").replace(_BETWEEN, "%7C") if "%" in value or _BETWEEN in value else value


class BudgetStatus(NamedTuple):
    """How one account of a budget stands in its current window; money is exact USD.

    :param account: the values of its scope, such as ``user=u-1``; empty without a scope.
    :param ratio: spent and reserved, as a share of the limit.
    :param resets_at: when the window ends; None where it never does.
    :param soft_ratio: share of the limit at which a warning is due.
    :param refused_calls: calls that it refused in this window, of all processes that share the ledger.
    """

    name: str
    window: str
    account: str
    spent_usd: Decimal
    reserved_usd: Decimal
    limit_usd: Decimal
    ratio: float
    resets_at: datetime | None
    on_exceed: str
    soft_ratio: float = 0.8
    refused_calls: int = 0
