"""What a cell of LLM calls knows beyond counts and latencies: what models are compared by."""

from decimal import Decimal
from typing import Final

from taskpilot_instrument._money import ZERO, add
from taskpilot_instrument.sinks._sketch import Sketch, merged

#: Bytes as measured: of one packed bin, of calls without what follows, of a packed sketch, of a count by name.
BIN_BYTES: Final = 12
_CALLS_BYTES: Final = 550
_SKETCH_BYTES: Final = 430
_COUNT_BYTES: Final = 200


class Calls:
    """What is known of LLM calls alone, in the cells of models.

    ``first_chunk`` is in milliseconds. Of the calls whose output took a known time there are the sums of tokens and
    seconds, of their squares and products: enough for the ratio and how far to trust it. ``run_…`` speaks of the runs
    of the cell's agent, or of its workflow where it has none, in which this model was the last to be called.
    """

    __slots__ = (
        "cached_tokens", "correct", "cost_in_part", "cost_squares", "first_chunk", "incorrect", "limits", "outputs",
        "problems", "run_cost", "run_cost_of_successes", "run_cost_squares", "run_successes", "runs", "seconds",
        "seconds_squares", "tokens", "tokens_seconds", "tokens_squares",
    )  # fmt: skip

    def __init__(self) -> None:
        self.cached_tokens = 0
        self.outputs = 0
        self.tokens = 0
        self.tokens_squares = 0
        self.tokens_seconds = 0.0
        self.seconds = 0.0
        self.seconds_squares = 0.0
        #: Of calls whose cost is wholly known; what the others are known to have cost.
        self.cost_squares = 0.0
        self.cost_in_part = ZERO
        #: Runs whose cost is wholly known, how many of them succeeded, and what they came to.
        self.runs = 0
        self.run_successes = 0
        self.run_cost = ZERO
        self.run_cost_of_successes = 0.0
        self.run_cost_squares = 0.0
        self.correct = 0
        self.incorrect = 0
        self.first_chunk: Sketch | None = None
        #: Calls that did not succeed, by type of error, else by outcome; token limits that were hit, by limit.
        self.problems: dict[str, int] | None = None
        self.limits: dict[str, int] | None = None

    def time(self, seconds: float | None, waited_ns: int | None, tokens: int) -> None:
        """Note when the first chunk of a stream came, and how fast the output was made.

        :param seconds: that the output took; None where that is not known.
        :param waited_ns: from the request to the first chunk; None of what is no stream.
        :param tokens: of the output.
        """
        if waited_ns is not None:
            if self.first_chunk is None:
                self.first_chunk = Sketch()
            self.first_chunk.add(waited_ns / 1e6)
        if seconds is not None:
            self.outputs += 1
            self.tokens += tokens
            self.tokens_squares += tokens * tokens
            self.tokens_seconds += tokens * seconds
            self.seconds += seconds
            self.seconds_squares += seconds * seconds

    def spend(self, usd: Decimal, *, whole: bool) -> None:
        """Note the cost of a call.

        :param whole: False where a part of it is not known.
        """
        if whole:
            amount = float(usd)
            self.cost_squares += amount * amount
        else:
            self.cost_in_part = add(self.cost_in_part, usd)

    def fail(self, problem: str) -> None:
        """Count a call that did not succeed."""
        self.problems = _plus(self.problems, {problem: 1})

    def hit(self, limit: str) -> None:
        """Count a token limit that was hit."""
        self.limits = _plus(self.limits, {limit: 1})

    def vote(self, correct: bool, count: int) -> None:  # noqa: FBT001 - a verdict is a yes or no
        """Count a user's verdict on a run that ended with this model.

        :param count: -1 takes one back.
        """
        if correct:
            self.correct += count
        else:
            self.incorrect += count

    def run(self, usd: Decimal, *, won: bool) -> None:
        """Count a run that ended with this model.

        :param usd: what the whole run cost.
        """
        amount = float(usd)
        self.runs += 1
        self.run_cost = add(self.run_cost, usd)
        self.run_cost_squares += amount * amount
        if won:
            self.run_successes += 1
            self.run_cost_of_successes += amount

    def pack(self) -> int:
        """Shrink it for keeping and return how many bytes it takes."""
        size = _CALLS_BYTES + _COUNT_BYTES * (len(self.problems or ()) + len(self.limits or ()))
        if self.first_chunk is not None:
            self.first_chunk.pack()
            size += _SKETCH_BYTES + BIN_BYTES * len(self.first_chunk)
        return size

    def merge(self, other: "Calls") -> None:
        """Add everything that ``other`` holds."""
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in _MONEY:
            setattr(self, name, add(getattr(self, name), getattr(other, name)))
        if other.first_chunk is not None:
            self.first_chunk = merged([self.first_chunk or Sketch(), other.first_chunk])
        self.problems = _plus(self.problems, other.problems)
        self.limits = _plus(self.limits, other.limits)


_MONEY: Final = ("cost_in_part", "run_cost")
_SUMS: Final = tuple(set(Calls.__slots__) - {"first_chunk", "limits", "problems", *_MONEY})


def _plus(counts: dict[str, int] | None, more: dict[str, int] | None) -> dict[str, int] | None:
    if more is None:
        return counts
    counts = {} if counts is None else counts
    for name, count in more.items():
        counts[name] = counts.get(name, 0) + count
    return counts
