"""What ``instrument()`` wires together, and which of it is in force."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from taskpilot_instrument import _collector
from taskpilot_instrument._bills import Bills
from taskpilot_instrument._guard import swallow
from taskpilot_instrument._records import Event
from taskpilot_instrument.typing import Capture, Clock, Controls, Gate, HearsStarts, PriceSource, Sink, SpanSource


class Home:
    """The process in which operations begin; those of the parent go on in a forked child, and end in neither twice."""

    __slots__ = ("is_left",)

    def __init__(self) -> None:
        self.is_left = False


@dataclass(frozen=True, slots=True)
class Recorder:
    """What ``instrument()`` wires together; operations hold the one they started under."""

    spans: SpanSource
    sinks: tuple[Sink, ...]
    prices: PriceSource
    clock: Clock
    #: Turn agent and tool arguments and results into redacted, cut text; None where content is off.
    capture: Capture | None = None
    #: Ask for the usage of streams whose caller did not, except at these hosts.
    include_usage: bool = False
    include_usage_except: frozenset[str] = frozenset()
    #: Asked before each LLM call is sent.
    gates: tuple[Gate, ...] = ()
    #: Asked around each agent run and tool call; None where there is nothing to ask.
    controls: Controls | None = None
    #: Hear of events and nothing else; may grow while the recorder is in force.
    listeners: Sequence[Callable[[Event], None]] = ()
    #: What was counted already of what may be asked for again.
    bills: Bills = field(default_factory=Bills)
    home: Home = field(default_factory=Home)
    #: Those of the sinks that hear when operations begin: most have nothing to do then.
    starters: tuple[HearsStarts, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "starters", tuple(sink for sink in self.sinks if isinstance(sink, HearsStarts)))

    def note(self, event: Event) -> None:
        """Tell every sink and listener of something beside operations."""
        for sink in self.sinks:
            try:
                sink.noted(event)
            except Exception as error:
                swallow(sink.where, error)
        for listener in self.listeners:
            try:
                listener(event)
            except Exception as error:
                swallow("listener", error)


_active: Recorder | None = None


def activate(recorder: Recorder | None) -> None:
    """Make ``recorder`` the one under which new operations start; None switches observation off."""
    global _active  # noqa: PLW0603 - one process has one active recorder, as it has one tracer provider
    _active = recorder
    _collector.watch(on=recorder is not None)


def active() -> Recorder | None:
    """Return the recorder in force, or None before ``instrument()`` and after ``uninstrument()``."""
    return _active
