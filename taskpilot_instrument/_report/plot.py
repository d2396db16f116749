"""A figure's course as SVG: bars or a line, the period before as a dashed line. No script, no fixed colours."""

from collections.abc import Iterator, Sequence
from decimal import Decimal
from html import escape
from itertools import groupby
from math import floor, log10
from typing import TYPE_CHECKING, Final, NamedTuple

from taskpilot_instrument._report import words
from taskpilot_instrument._report.signals import COUNT, PERCENT, USD, Definition, Value
from taskpilot_instrument._verdicts import THRESHOLDS

if TYPE_CHECKING:
    from taskpilot_instrument._report.report import Point

_WIDTH: Final = 640
_HEIGHT: Final = 220
_LEFT: Final = 88
_RIGHT: Final = 10
_TOP: Final = 12
_BOTTOM: Final = 28
#: Steps between the lines of a scale, times a power of ten.
_STEPS: Final = (1, 2, 2.5, 5, 10)
_MOST_LABELS: Final = 12


class _Frame(NamedTuple):
    """Where things are drawn.

    :param places: hours or days side by side.
    """

    low: float
    high: float
    places: int

    @property
    def step(self) -> float:
        return (_WIDTH - _LEFT - _RIGHT) / max(1, self.places)

    def x(self, place: float) -> float:
        """Return the middle of a place."""
        return _LEFT + self.step * (place + 0.5)

    def y(self, value: float) -> float:
        """Return the height of a value; the top counts from zero."""
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - (value - self.low) / (self.high - self.low))


def plot(definition: Definition, points: Sequence["Point"], places: int, name: str) -> str:
    """Return the drawing of a figure's course.

    :param places: hours or days of the whole period: of one that is not over, the rest is empty.
    :param name: an identifier, once in a page.
    """
    scale = _scale(definition, points)
    frame = _Frame(scale[0], scale[-1], places)
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-labelledby="{name}-t {name}-d">',
        f'<title id="{name}-t">{escape(definition.label)}</title>',
        f'<desc id="{name}-d">{escape(_told(definition, points))}</desc>',
        *_lines(frame, scale, definition),
        *_labels(frame, points),
    ]
    values = [_number(point.value) for point in points]
    before = list(_line(frame, [_number(point.before) for point in points], "before"))
    if definition.unit in {COUNT, USD}:
        parts += [*_bars(frame, values), *before]
    else:
        parts += [*before, *_line(frame, values, "now")]
    return "".join([*parts, "</svg>"])


def _number(value: Value) -> float | None:
    return None if value is None else float(value)


def _told(definition: Definition, points: Sequence["Point"]) -> str:
    """Say in a sentence what is drawn; the table beside it has every value."""
    known = [(float(point.value), point.label) for point in points if point.value is not None]
    if not known:
        return "Nothing is known of this period."
    least, most = min(known), max(known)
    return (
        f"From {words.shown(least[0], definition.unit)} ({least[1]}) to {words.shown(most[0], definition.unit)} "
        f"({most[1]}); the table beside it has every value and the one before."
    )


def _scale(definition: Definition, points: Sequence["Point"]) -> list[float]:
    """Return the values of the scale's lines, from the lowest to the highest, round ones."""
    known = [float(value) for point in points for value in (point.value, point.before) if value is not None]
    most, least = max(known, default=0.0), 0.0
    if definition.unit == PERCENT and definition.better > 0:
        least, most = min(known, default=0.0), 100.0  # what matters is how much is missing
        least = max(0.0, 100.0 - max(5.0, 1.25 * (100.0 - least)))
    elif most <= 0:
        most = 1.0
    size = (most - least) / 4
    power = 10.0 ** floor(log10(size))
    step = next(step * power for step in _STEPS if step * power >= size * 0.999999)
    if definition.unit == COUNT:
        step = max(1.0, step)
    first = floor(least / step + 1e-9) * step
    count = max(1, -int(-(most - first) / step // 1))
    return [first + step * number for number in range(count + 1)]


def _lines(frame: _Frame, scale: Sequence[float], definition: Definition) -> Iterator[str]:
    for value in scale:
        y = frame.y(value)
        yield f'<line class="scale" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield (
            f'<text class="scale" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">'
            f"{escape(_short(value, definition.unit))}</text>"
        )
    threshold = THRESHOLDS.get(definition.key)
    if threshold is not None and scale[0] < threshold.healthy < scale[-1]:
        y = frame.y(threshold.healthy)
        yield f'<line class="limit" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'


def _short(value: float, unit: str) -> str:
    if unit == PERCENT:
        return f"{value:g} %"
    if unit == USD:
        return f"${Decimal(f'{value:.6g}'):f}"
    return f"{value:,.6g}" if unit == COUNT else f"{value / 1000:g} s"


def _labels(frame: _Frame, points: Sequence["Point"]) -> Iterator[str]:
    every = -(-frame.places // _MOST_LABELS)
    for place, point in enumerate(points):
        if place % every == 0:
            text = escape(words.short_label(point.label, frame.places))
            yield f'<text x="{frame.x(place):.1f}" y="{_HEIGHT - 8}" text-anchor="middle">{text}</text>'


def _bars(frame: _Frame, values: Sequence[float | None]) -> Iterator[str]:
    width, ground = frame.step * 0.7, frame.y(frame.low)
    for place, value in enumerate(values):
        if value:
            y = frame.y(value)
            yield (
                f'<rect class="now" x="{frame.x(place) - width / 2:.1f}" y="{y:.1f}" width="{width:.1f}" '
                f'height="{max(0.5, ground - y):.1f}"/>'
            )


def _line(frame: _Frame, values: Sequence[float | None], name: str) -> Iterator[str]:
    """Yield a line with a gap where a value is unknown; one that stands alone is a dot."""
    for known, stretch in groupby(enumerate(values), key=lambda each: each[1] is not None):
        if not known:
            continue
        dots = [(frame.x(place), frame.y(value)) for place, value in stretch if value is not None]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in dots)
        yield f'<polyline class="{name}" points="{path}"/>'
        if name == "now" or len(dots) == 1:
            yield from (f'<circle class="{name}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in dots)
