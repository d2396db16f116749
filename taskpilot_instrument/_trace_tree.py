"""A trace as text: one line a span, its figures read from the span's own tags."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.util.types import AttributeValue

from taskpilot_instrument import semconv
from taskpilot_instrument._display import milliseconds, usd_decimals

_Tags = Mapping[str, AttributeValue]
_FIGURES: Final = ("tokens in", "tokens out", "cost", "latency")


def trace_tree(spans: Iterable[ReadableSpan]) -> str:
    """Draw spans as trees, with tokens, cost, latency and outcome on each node.

    :param spans: of one trace or several; a span whose parent is not among them is a root.
    """
    rows = [(label, *_figures(span), _remark(span)) for label, span in _walk(list(spans))]
    if not rows:
        return "(no spans)"
    table = [("", *_FIGURES, ""), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return "\n".join(_line(row, widths) for row in table)


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    """Align a row: name and remark to the left, figures to the right."""
    name, *figures, remark = row
    aligned = [figure.rjust(width) for figure, width in zip(figures, widths[1:-1], strict=True)]
    return "  ".join([name.ljust(widths[0]), *aligned, remark]).rstrip()


def _walk(spans: list[ReadableSpan]) -> Iterator[tuple[str, ReadableSpan]]:
    """Yield each span with its drawn name, parents before children, in order of start."""
    known = {span.context.span_id for span in spans if span.context is not None}
    beneath: defaultdict[int | None, list[ReadableSpan]] = defaultdict(list)
    for span in sorted(spans, key=lambda span: span.start_time or 0):
        parent = span.parent.span_id if span.parent is not None else None
        beneath[parent if parent in known else None].append(span)

    def below(parent: ReadableSpan, indent: str) -> Iterator[tuple[str, ReadableSpan]]:
        children = beneath[parent.context.span_id] if parent.context is not None else []
        for child in children:
            last = child is children[-1]
            yield f"{indent}{'└─ ' if last else '├─ '}{child.name}", child
            yield from below(child, indent + ("   " if last else "│  "))

    for root in beneath[None]:
        yield root.name, root
        yield from below(root, "")


def _figures(span: ReadableSpan) -> tuple[str, str, str, str]:
    tags: _Tags = span.attributes or {}
    latency = tags.get(semconv.LATENCY_MS)
    return (
        _count(tags.get(semconv.INPUT_TOKENS)),
        _count(tags.get(semconv.OUTPUT_TOKENS)),
        _usd(tags.get(semconv.COST_USD)),
        f"{latency:,.{0 if latency >= 10 else 1}f} ms" if isinstance(latency, int | float) else "",
    )


def _count(value: AttributeValue | None) -> str:
    return f"{value:,}" if isinstance(value, int) else ""


def _usd(value: AttributeValue | None) -> str:
    """Write an amount with as many digits as a single small call needs, or a very small one."""
    if not isinstance(value, int | float):
        return ""
    return f"${value:.{max(7, usd_decimals(value))}f}"


def _remark(span: ReadableSpan) -> str:
    """Return what sets this span apart: how it ended if not well, that it was streamed, how often it was tried."""
    tags: _Tags = span.attributes or {}
    outcome, error = tags.get(semconv.OUTCOME), tags.get(semconv.ERROR_TYPE)
    retries, first = tags.get(semconv.HTTP_RESEND_COUNT), tags.get(semconv.TIME_TO_FIRST_CHUNK_MS)
    remarks = []
    if outcome is not None and outcome != semconv.Outcome.SUCCESS:
        remarks.append(str(outcome))
    if error is not None:
        remarks.append(str(error))
    if isinstance(first, int | float):
        remarks.append(f"streamed, first chunk after {milliseconds(first)}")
    if isinstance(retries, int) and retries > 0:
        remarks.append(f"retried {retries}×")
    return ", ".join(remarks)
