"""Callbacks with a threshold and a cool-down, for those without an Alertmanager."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, Literal, NamedTuple, get_args

from taskpilot_instrument import _forms
from taskpilot_instrument._definition import check, positive
from taskpilot_instrument.errors import ConfigurationError
from taskpilot_instrument.golden import parse_window

#: Read from the golden signals and metrics of the window, a few seconds after the operations that moved them.
Measured = Literal[
    "success_rate", "p95_latency_ms", "cost_per_successful_task_usd", "user_confirmed_correctness_percent",
    "policy_violation_rate_percent", "spend_usd_per_minute", "tokens_per_minute",
]  # fmt: skip
#: Counted within the window, and looked at as soon as they happen.
Counted = Literal["token_limit", "budget", "policy", "guardrail", "runaway"]

MEASURED: Final[tuple[str, ...]] = get_args(Measured)
COUNTED: Final[tuple[str, ...]] = get_args(Counted)


class AlertFired(NamedTuple):
    """What a callback is given.

    :param name: the alert's name.
    :param signal: what it watches.
    :param value: what that came to: percent, milliseconds, USD, tokens, or how many events.
    :param threshold: what it went beyond.
    :param window: what it was measured over, such as ``5m``.
    :param at: when, with its time zone.
    :param message: one sentence, without user content.
    """

    name: str
    signal: str
    value: float
    threshold: float
    window: str
    at: datetime
    message: str


#: A function, or a coroutine function; what it returns does not matter.
Callback = Callable[[AlertFired], object]


def _callback() -> _forms.Form:
    def accept(value: Any) -> object:
        if not callable(value):
            raise ValueError  # noqa: TRY004 - what accept() raises
        return value

    return _forms.Form("callable", "a function or coroutine function that takes an AlertFired", accept)


def _window() -> _forms.Form:
    def accept(value: Any) -> object:
        parse_window(value)
        return value

    expected = "a number of seconds, minutes or hours from one minute to 24 hours, such as 90s, 5m or 1h"
    return _forms.Form("str", expected, accept)


_FORMS: Final = {
    "callback": _callback(),
    "signal": _forms.choice(MEASURED + COUNTED),
    "above": _forms.optional(positive(zero=True)),
    "below": _forms.optional(positive(zero=True)),
    "window": _window(),
    "cooldown_s": positive(zero=True),
    "min_sample": _forms.whole(1, 10**9),
    "name": _forms.optional(_forms.text()),
}


@dataclass(frozen=True, slots=True)
class Alert:
    """Call a function when a signal is beyond a threshold; given as ``instrument(alerts=[…])`` or to ``on_alert``.

    The function runs in a thread of ours, one after the other, so neither what it does nor what it raises reaches the
    agent. It is called again while the signal is still, or once more, beyond its threshold, but not before the
    cool-down is over. Each process judges what it has seen itself.

    ==========================================  ====================================================================
    signal                                      what it is
    ==========================================  ====================================================================
    ``success_rate``                            percent of the workflow runs of the window
    ``p95_latency_ms``                          95th percentile of their latencies, milliseconds
    ``cost_per_successful_task_usd``            spend ÷ successful runs, USD
    ``user_confirmed_correctness_percent``      percent of the verdicts that users gave
    ``policy_violation_rate_percent``           violations ÷ workflow runs, percent
    ``spend_usd_per_minute``                    known spend ÷ length of the window, USD a minute
    ``tokens_per_minute``                       input and output tokens ÷ length of the window
    ``token_limit``                             token limits that were hit: configured ones, windows, answers cut off
    ``budget``                                  thresholds of budgets that were crossed, calls that budgets refused
    ``policy``                                  what policies flagged or denied, runaway runs included
    ``guardrail``                               inputs and outputs that guardrails blocked
    ``runaway``                                 runs that went in circles
    ==========================================  ====================================================================

    The upper seven are looked at every five seconds; the lower five are counted, and fire only when they happen.

    :param callback: a function or coroutine function that takes an :class:`AlertFired`.
    :param signal: one of these.
    :param above: fires where the signal is more than this; 0 for a counted signal where none is given.
    :param below: fires where it is less; not for counted signals. A measured signal has one of the two.
    :param window: how far back it is measured, such as ``90s``, ``5m`` or ``1h``.
    :param cooldown_s: seconds from one call to the next.
    :param min_sample: runs (verdicts, for user correctness) that the window must have for one of the upper five to
        mean something; ten, as the alert rules for Prometheus have it.
    :param name: else made from signal and threshold.
    :raises ConfigurationError: for a field that is not valid.
    """

    callback: Callback
    signal: str
    above: float | Decimal | None = None
    below: float | Decimal | None = None
    window: str = "5m"
    cooldown_s: float = 300.0
    min_sample: int = 10
    name: str | None = None

    def __post_init__(self) -> None:
        check(self, _FORMS)
        if self.is_counted:
            if self.below is not None:
                raise ConfigurationError(f"Alert: below={self.below!r}: {self.signal!r} is counted; give above")
            if self.above is None:
                object.__setattr__(self, "above", 0)
        elif (self.above is None) == (self.below is None):
            raise ConfigurationError(f"Alert: above and below: expected one of the two for {self.signal!r}")
        if self.name is None:
            object.__setattr__(self, "name", f"{self.signal} {self.bound}")

    @property
    def is_counted(self) -> bool:
        """True where the signal counts events, False where it is measured."""
        return self.signal in COUNTED

    @property
    def threshold(self) -> float:
        """What the signal is held against."""
        return float(self.above if self.above is not None else self.below or 0)

    @property
    def bound(self) -> str:
        """The threshold in words."""
        return f"{'above' if self.above is not None else 'below'} {self.threshold:g}"

    def is_beyond(self, value: float) -> bool:
        """Tell whether a value is on the wrong side of the threshold."""
        return value > self.threshold if self.above is not None else value < self.threshold
