"""The latest runs and events in memory: what the live page shows in place of Jaeger and Kibana."""

from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from itertools import chain
from operator import itemgetter
from typing import Any, Final

from taskpilot_instrument import _forks, semconv
from taskpilot_instrument._records import Event, Finished
from taskpilot_instrument.redaction import capture_text
from taskpilot_instrument.semconv import Kind, Outcome

#: Of each outcome, so that thousands of successes leave the failures where they are.
_MOST_RUNS: Final = 200
_MOST_OPEN: Final = 1_000
#: Spans kept of one run; a run in circles has no end of them.
_MOST_SPANS: Final = 300
#: Likewise of each kind.
_MOST_EVENTS: Final = 200
_LONGEST_TEXT: Final = 512

Node = dict[str, Any]


class Ring:
    """A sink that keeps the latest runs of each outcome as trees of JSON, and the latest decisions and errors by kind.

    :param redact: what messages of errors pass through.
    :param epoch_ns: the time of events that come from outside of a run, such as feedback.
    """

    where = "ring"

    def __init__(self, redact: Callable[[str], str], epoch_ns: Callable[[], int]) -> None:
        self._redact = redact
        self._epoch_ns = epoch_ns
        self._lock = _forks.lock()
        self._open: OrderedDict[int, list[Node]] = OrderedDict()
        #: By outcome, each with its place among all.
        self._runs: defaultdict[str, deque[tuple[int, Node]]] = defaultdict(lambda: deque(maxlen=_MOST_RUNS))
        self._events: defaultdict[str, deque[Node]] = defaultdict(lambda: deque(maxlen=_MOST_EVENTS))
        #: Grows with every change.
        self.version = 0
        _forks.tell(self)

    def after_fork(self) -> None:
        """Begin empty: what is here is the parent's to show."""
        self._open.clear()
        self._runs.clear()
        self._events.clear()
        self.version += 1

    # --- as a sink --------------------------------------------------------------------------------

    def finished(self, record: Finished, /) -> None:
        """Keep one span of a run, and the run once it is over."""
        operation = record.operation
        if operation is None:
            return
        parent = operation.parent
        node = self._node(record, id(operation), id(parent) if parent is not None else None)
        # Its id names it only as long as it lives: a later operation may get the same.
        node["held"] = operation
        root = id(operation.outermost)
        with self._lock:
            spans = self._open.setdefault(root, [])
            if len(spans) < _MOST_SPANS or parent is None:
                spans.append(node)
            if parent is None:
                self.version += 1
                self._runs[node["outcome"]].append((self.version, _tree(node, self._open.pop(root))))
            elif len(self._open) > _MOST_OPEN:
                self._open.popitem(last=False)
        if record.outcome is Outcome.ERROR:
            self._keep(record.started_at_ns + record.duration_ns, "error", f"{record.name} failed", {
                "reason": node["error"], semconv.AGENT: record.agent, semconv.REQUEST_ID: record.ids.request_id,
            })  # fmt: skip

    def noted(self, event: Event, /) -> None:
        """Keep a decision, a limit hit, a crossed threshold or feedback."""
        operation = event.operation
        about = {
            "reason": event.reason, "rule": event.rule, "decision": event.decision,
            semconv.AGENT: operation.agent_name if operation is not None else event.details.get(semconv.AGENT),
            semconv.REQUEST_ID: operation.ids.request_id if operation is not None
            else event.details.get(semconv.REQUEST_ID),
        }  # fmt: skip
        self._keep(self._epoch_ns(), event.name, event.message, about)

    def _keep(self, at_ns: int, name: str, message: str, about: dict[str, Any]) -> None:
        reason = about.get("reason")
        if reason is not None:
            about["reason"] = capture_text(reason, _LONGEST_TEXT, self._redact)
        with self._lock:
            self.version += 1
            self._events[name].append(
                {"id": self.version, "at": at_ns / 1e9, "event": name, "message": message, **about}
            )

    def _node(self, record: Finished, own: int, parent: int | None) -> Node:
        usage, llm = record.usage, record.llm
        name = f"{llm.operation} {record.model or ''}".strip() if llm is not None else record.name
        failure = None
        if record.outcome is not Outcome.SUCCESS:
            said = record.reason or (str(record.error) if record.error is not None else "")
            failure = capture_text(
                f"{record.error_type or record.outcome}{f': {said}' if said else ''}", _LONGEST_TEXT, self._redact
            )
        content = record.input_text, record.output_text
        if llm is not None:
            content = llm.input_messages, llm.output_messages
        return {
            "key": own, "above": parent, "kind": str(record.kind), "name": name, "outcome": str(record.outcome),
            "started": record.started_at_ns / 1e9, "ms": record.duration_ns / 1e6, "agent": record.agent,
            "model": record.model if record.kind is not Kind.WORKFLOW else None,
            "input_tokens": usage.input_tokens if usage is not None else None,
            "output_tokens": usage.output_tokens if usage is not None else None,
            "cost_usd": float(record.cost) if record.cost is not None else None,
            "cost_source": record.cost_source, "error": failure, "request_id": record.ids.request_id,
            "trace_id": _trace_id(record), "input": content[0], "output": content[1],
        }  # fmt: skip

    # --- answers ----------------------------------------------------------------------------------

    def runs(self, outcome: str | None = None) -> list[Node]:
        """Return the latest runs, newest first, each with its spans in the order in which they are drawn.

        :param outcome: only those that ended so; else the latest of each outcome.
        """
        with self._lock:
            kept = list(chain.from_iterable(self._runs.values()) if outcome is None else self._runs.get(outcome, ()))
        return [run for _, run in sorted(kept, key=itemgetter(0), reverse=True)]

    def events(self, most: int = _MOST_EVENTS) -> list[Node]:
        """Return the latest events of each kind, newest first.

        :param most: how many of one kind.
        """
        with self._lock:
            kept = [event for events in self._events.values() for event in list(events)[-most:]]
        return sorted(kept, key=itemgetter("id"), reverse=True)


def _trace_id(record: Finished) -> str | None:
    context = record.span.get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else None


def _tree(root: Node, spans: list[Node]) -> Node:
    """Return a run with its spans, parents before children, each with its depth."""
    beneath: dict[int | None, list[Node]] = {}
    for span in spans:
        beneath.setdefault(span["above"], []).append(span)
    drawn: list[Node] = []
    waiting: list[tuple[Node, int]] = [(root, 0)]
    while waiting:
        node, depth = waiting.pop()
        drawn.append(
            {name: value for name, value in node.items() if name not in {"key", "above", "held"}} | {"depth": depth}
        )
        children = sorted(beneath.get(node["key"], ()), key=lambda span: span["started"], reverse=True)
        waiting += [(child, depth + 1) for child in children]
    return {
        "request_id": root["request_id"], "trace_id": root["trace_id"], "name": root["name"],
        "outcome": root["outcome"], "started": root["started"], "ms": root["ms"], "cost_usd": root["cost_usd"],
        "spans": drawn, "cut": len(spans) >= _MOST_SPANS,
    }  # fmt: skip
