"""Tell how well the instrumentation itself is doing."""

import itertools
from dataclasses import dataclass

from taskpilot_instrument import _forks


class Tally:
    """Count billable calls where the transport sees them, to hold against those recorded."""

    def __init__(self) -> None:
        # Counts without a lock: taking the next number is one step of the interpreter.
        self._numbers = itertools.count()
        self._looks = 0

    def seen(self) -> None:
        """Count one billable call."""
        next(self._numbers)

    def calls_seen(self) -> int:
        """Return how many billable calls passed the transport."""
        with _lock:
            seen = next(self._numbers) - self._looks
            self._looks += 1
            return seen


_lock = _forks.lock()
tally = Tally()


@dataclass(frozen=True, slots=True)
class Health:
    """The state of the instrumentation, as :func:`taskpilot_instrument.health` reports it.

    ``calls_seen`` counts billable calls at the transport and ``calls_recorded`` those that have finished; they
    differ by the calls and streams that are still open. ``calls_blocked`` were refused before they were sent, and are
    neither. ``cost_coverage`` is the share of billable
    calls that could be priced, None before the first.
    """

    active: bool
    patched: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    errors_swallowed: dict[str, int] | None = None
    calls_seen: int = 0
    calls_recorded: int = 0
    cost_coverage: float | None = None
    label_overflow: dict[str, int] | None = None
    spans_go_to: str = "nowhere"
    spans_exported: int = 0
    spans_dropped: int = 0
    #: Ended, but neither delivered nor given up yet.
    spans_pending: int = 0
    calls_blocked: int = 0

    @property
    def calls_open(self) -> int:
        """Calls and streams that have begun and not ended."""
        return max(0, self.calls_seen - self.calls_recorded)

    @property
    def ok(self) -> bool:
        """True where nothing is missing, was swallowed or was dropped."""
        return self.active and not self.missing and not self.errors_swallowed and not self.spans_dropped

    def __str__(self) -> str:
        coverage = "no calls yet" if self.cost_coverage is None else f"{self.cost_coverage:.1%} of billable calls"
        calls = f"{self.calls_seen} seen at the transport, {self.calls_recorded} recorded, {self.calls_open} open"
        if self.calls_blocked:
            calls += f"; {self.calls_blocked} refused before they were sent"
        rows = (
            ("instrumentation", "active" if self.active else "not active: call instrument()"),
            ("patched", ", ".join(self.patched) or "nothing (is openai installed?)"),
            ("missing", ", ".join(self.missing) or "nothing"),
            ("errors swallowed", _counts(self.errors_swallowed)),
            ("LLM calls", calls),
            ("cost coverage", coverage),
            ("label overflow", _counts(self.label_overflow)),
            (
                "spans",
                f"to {self.spans_go_to}; {self.spans_exported} exported, {self.spans_pending} pending, "
                f"{self.spans_dropped} dropped",
            ),
        )
        return "\n".join(f"{name:<17} {text}" for name, text in rows)


def _counts(counts: dict[str, int] | None) -> str:
    return ", ".join(f"{name}: {count}" for name, count in sorted((counts or {}).items())) or "none"
