"""Count what was started earlier, once, when its result is first retrieved: background responses and batches."""

from collections.abc import Callable
from typing import Any, Final

from taskpilot_instrument._guard import swallow
from taskpilot_instrument._operation import Operation, Recorder
from taskpilot_instrument.health import tally
from taskpilot_instrument.patches._openai_request import Surface, llm_call, server_of
from taskpilot_instrument.patches._openai_response import billed, read_response
from taskpilot_instrument.semconv import OPERATION_BATCH, Kind
from taskpilot_instrument.usage import fields_of, usage_from

_RUNNING: Final = frozenset({"queued", "in_progress"})
_BATCH_DONE: Final = frozenset({"completed", "expired", "cancelled"})
_BATCH_TIER: Final = "batch"


def is_running(document: Any) -> bool:
    """Tell whether a response goes on in the background."""
    return fields_of(document).get("status") in _RUNNING


class LateCall:
    """A request that may bring the usage of something that was started earlier.

    Whether there is anything to count is known only afterwards, so the operation is made then. It lasts no time of its
    own: how long the work took, the provider alone knows.

    :param document_of: returns what a reader can read of a result.
    """

    def __init__(self, recorder: Recorder, surface: Surface, document_of: Callable[[Any], Any]) -> None:
        self._recorder = recorder
        self._surface = surface
        self._document_of = document_of

    def returned(self, client: Any, result: Any) -> None:
        """Count the result where it is done, tells its usage, and was not counted before."""
        try:
            document = self._document_of(result)
            if document is not None:
                self._count(client, document)
        except Exception as error:
            swallow("usage", error)

    def _count(self, client: Any, document: Any) -> None:
        fields = fields_of(document)
        name, status, given = fields.get("id"), fields.get("status"), fields.get("usage")
        is_batch = self._surface.operation == OPERATION_BATCH
        usage = usage_from(given) if given else None
        if not isinstance(name, str) or usage is None or status in _RUNNING:
            return
        if is_batch and status not in _BATCH_DONE:
            return
        llm = llm_call(self._surface, {"model": fields.get("model")}, server_of(client), streamed=False)
        if not (usage.input_tokens or usage.output_tokens) or not billed.claim(llm, name):
            return
        tally.seen()
        llm.billable = True
        operation = Operation(self._recorder, Kind.LLM, llm.operation, llm=llm)
        outcome, error_type = None, None
        try:
            failure = read_response(llm, document, self._recorder.capture)
            if failure is not None:
                outcome, error_type = failure
            llm.usage = usage
            if is_batch:
                llm.service_tier = _BATCH_TIER
        finally:
            operation.finish(outcome=outcome, error_type=error_type)
