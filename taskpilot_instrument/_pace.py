"""How fast a model writes: the one definition, for the tag of a span and the comparison of models alike."""

from taskpilot_instrument._records import Finished
from taskpilot_instrument.semconv import Outcome


def seconds_of_output(record: Finished) -> float | None:
    """Return how long a call's output took: from the first chunk on of a stream, the whole call otherwise.

    None where that tells nothing of the model's speed: the call did not succeed, its usage is not known, it generated
    nothing (as embeddings do), it took no time, or its result was made earlier and only fetched.
    """
    usage, call = record.usage, record.llm
    if usage is None or not usage.output_tokens or call is None or call.is_fetched:
        return None
    nanoseconds = record.duration_ns - (record.time_to_first_chunk_ns or 0)
    return nanoseconds / 1e9 if nanoseconds > 0 and record.outcome is Outcome.SUCCESS else None


def tokens_per_second(record: Finished) -> float | None:
    """Return the output tokens of a call ÷ :func:`seconds_of_output`; None where the latter is."""
    seconds = seconds_of_output(record)
    return None if seconds is None or record.usage is None else (record.usage.output_tokens or 0) / seconds
