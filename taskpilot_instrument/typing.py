"""Protocols at the seams: what a sink, a price source and a clock have to offer."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from opentelemetry.context import Context
from opentelemetry.trace import Span

if TYPE_CHECKING:
    from taskpilot_instrument._operation import Operation
    from taskpilot_instrument._records import Event, Finished, LLMCall
    from taskpilot_instrument.pricing import Price
    from taskpilot_instrument.semconv import Outcome


class Clock(NamedTuple):
    """Where time comes from; the testing kit gives one that only moves when told.

    :param monotonic_ns: for durations, nanoseconds from an arbitrary start.
    :param epoch_ns: for timestamps, nanoseconds since 1970.
    """

    monotonic_ns: Callable[[], int]
    epoch_ns: Callable[[], int]


#: Turn any object into redacted text that is cut to a length.
Capture = Callable[[object], str]


class Sink(Protocol):
    """Do one thing with each finished operation."""

    #: Short fixed word that names the sink where its errors are counted.
    where: str

    def finished(self, record: "Finished", /) -> None:
        """Hear that an operation ended."""

    def noted(self, event: "Event", /) -> None:
        """Hear of something beside operations."""


@runtime_checkable
class HearsStarts(Protocol):
    """What a sink has beside that where it does something as operations begin."""

    where: str

    def started(self, operation: "Operation", /) -> None:
        """Hear that an operation began."""


class Gate(Protocol):
    """Be asked before an LLM call is sent. A gate that is a sink too hears how the call ended."""

    #: Short fixed word that names the gate where its errors are counted.
    where: str

    def admit(self, operation: "Operation", /) -> None:
        """Let an LLM call go, or raise a :class:`BlockedError`; any other error counts as ours and lets it go."""


class Controls(Protocol):
    """What agents and tools are checked by before and after they run."""

    def around(
        self, operation: "Operation", fn: Callable[..., Any], arguments: Callable[[], Any], /
    ) -> Callable[..., Any] | None:
        """Return what to call in place of ``fn``, of the same kind of callable; None where nothing is to be checked.

        :param arguments: returns what the call was given: by name where the function names its arguments, else a list.
        """


class SpanSource(Protocol):
    """Open the span that belongs to an operation."""

    def open_span(self, operation: "Operation", context: Context, /) -> Span:
        """Return a started span whose parent is the current span of ``context``."""


class PriceSource(Protocol):
    """Price one LLM call."""

    def price_call(self, call: "LLMCall", /) -> "Price | None":
        """Return the exact cost, or None where it is unknown."""

    def most_pico(self, call: "LLMCall", input_tokens: int, output_tokens: int, /) -> int | None:
        """Return the most that so many tokens may cost in this call, in pico-dollars; None where it is unknown."""


class ChunkReader(Protocol):
    """Read one streamed response, chunk by chunk, into its LLM call."""

    #: True once the response has said that it is complete, though the stream may still be open.
    complete: bool
    #: Outcome and error type where the response itself says that it failed; None otherwise.
    failure: "tuple[Outcome, str | None] | None"

    def read_chunk(self, chunk: Any, /) -> None:
        """Take note of one chunk; called on the hot path."""

    def is_only_usage(self, chunk: Any, /) -> bool:
        """Tell whether a chunk brings the usage and nothing else."""

    def read_end(self) -> None:
        """Write what was noted to the LLM call."""
