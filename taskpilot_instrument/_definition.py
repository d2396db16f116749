"""Check the fields of what an application defines itself: limits, detectors, alerts."""

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, TypeVar

from taskpilot_instrument._forms import Form, complaint
from taskpilot_instrument.errors import ConfigurationError

Defined = TypeVar("Defined")


def check(definition: object, forms: Mapping[str, Form]) -> None:
    """Check and normalise the fields of a frozen dataclass.

    :raises ConfigurationError: for a value that is not valid, with those that are.
    """
    for name, form in forms.items():
        value = getattr(definition, name)
        try:
            object.__setattr__(definition, name, form.accept(value))
        except ValueError:
            raise ConfigurationError(f"{type(definition).__name__}: {complaint(name, value, form)}") from None


def all_of(kind: type[Defined], setting: str, given: object) -> tuple[Defined, ...]:
    """Return what a setting lists, where each is of the one kind that belongs there.

    :raises ConfigurationError: where something else is among it.
    """
    listed = given if isinstance(given, tuple) else () if given is None else (given,)
    for one in listed:
        if not isinstance(one, kind):
            raise ConfigurationError(f"{setting}: expected a list of {kind.__name__}(…), but {one!r:.80} is among it")
    return listed


def positive(*, zero: bool = False) -> Form:
    """Take a finite number above zero.

    :param zero: take zero too.
    """

    def accept(value: Any) -> float | Decimal:
        if isinstance(value, bool) or not isinstance(value, int | float | Decimal) or not math.isfinite(value):
            raise ValueError
        if value < 0 or (value == 0 and not zero):
            raise ValueError
        return value

    return Form("number", "a finite number of zero or more" if zero else "a finite number above zero", accept)
