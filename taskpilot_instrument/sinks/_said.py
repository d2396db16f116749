"""What callers wrote directly by dotted name, read without counting anything twice.

Names overlap: one violation may be written as ``agent.X.policy.violations``, as ``policy.violations.total``, or as
both, in either order. So a write is only noted under its own figure, and the overlap is resolved when a figure is
read: a figure is worth what was written for it or what its parts add up to along any one label, whichever is more.
"""

from collections.abc import Iterator, Mapping
from decimal import Decimal

from taskpilot_instrument._money import ZERO, subtract, total
from taskpilot_instrument.semconv import NONE
from taskpilot_instrument.sinks._names import Node

Said = Mapping[Node, Decimal]


def worth(said: Said, node: Node) -> Decimal:
    """Return what a figure comes to: never less than the largest sum of its parts, never more than was written.

    :param said: what was written, by figure.
    """
    return max(
        said.get(node, ZERO),
        *(total(worth(said, part) for part in parts) for parts in _divisions(said, node)),
        ZERO,
    )


def spread(said: Said, node: Node) -> Iterator[tuple[tuple[str, ...], Decimal]]:
    """Lay a figure out over labels such that the amounts add up to its worth.

    The first label of which anything was said tells the parts; what they leave unexplained stands under ``none``
    (for workflow runs: outcome ``none``, nobody said how they ended). That remainder shrinks when a part is told
    after its total, so a rate is better taken on the alias of the total, which only grows.
    """
    rest = worth(said, node)
    for parts in _divisions(said, node):
        for part in parts:
            rest = subtract(rest, worth(said, part))
            yield from spread(said, part)
        break
    else:
        yield tuple(value or NONE for value in node.at), rest
        return
    if rest > 0:
        yield tuple(value or NONE for value in node.at), rest


def _divisions(said: Said, node: Node) -> Iterator[list[Node]]:
    """Yield the known parts of a figure, once for each label that it sums over."""
    within = [
        other.at
        for other in said
        if other.family == node.family
        and all(own is None or own == its for own, its in zip(node.at, other.at, strict=True))
    ]
    for place, own in enumerate(node.at):
        if own is None:
            values = dict.fromkeys(value for at in within if (value := at[place]) is not None)
            if values:
                yield [Node(node.family, (*node.at[:place], value, *node.at[place + 1 :])) for value in values]
