"""Which variant of an experiment a unit gets: a pure function of their names, the same in every process.

Each variant draws a number for the unit from a hash of experiment, variant and unit, and the smallest number wins:
weighted rendezvous hashing. With ``u`` between 0 and 1 from the hash, ``-ln(u) / weight`` is smallest for a variant
with the probability ``weight / sum of weights`` (the smallest of exponential variables; see Efraimidis and Spirakis
2006, "Weighted random sampling with a reservoir"). A changed weight moves only units to or from that variant, a new
variant only takes units, and their order does not matter.
"""

import math
import re
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final, NamedTuple, Self
from uuid import UUID

from taskpilot_instrument.errors import ConfigurationError

#: More variants need so many more runs that a comparison of them would hardly ever end.
MOST_VARIANTS: Final = 10
#: Names become labels, tags, parts of URLs and baggage.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LONGEST_UNIT: Final = 1_000
_RANGE: Final = float(1 << 64)


class Design(NamedTuple):
    """How the units of an experiment are shared out.

    :param variants: the first is what the others are compared with.
    :param weights: one for each variant; they need not add up to 1.
    """

    experiment: str
    variants: tuple[str, ...]
    weights: tuple[float, ...]

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of units that each variant is to get, 0 to 1."""
        whole = math.fsum(self.weights)
        return tuple(weight / whole for weight in self.weights)


class Assigned(str):
    """The name of a variant, with the design that it was drawn under and a number that stands for its unit.

    The number tells units apart while figures are added up; it is held in memory only, and goes nowhere.
    """

    __slots__ = ("design", "unit")

    design: Design
    unit: int

    def __new__(cls, variant: str, design: Design, unit: int) -> Self:
        """Return the variant's name, knowing more."""
        made = super().__new__(cls, variant)
        made.design, made.unit = design, unit
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (str(self),)


def design_of(experiment: str, variants: Sequence[str], weights: Sequence[float] | None) -> Design:
    """Return the design of an experiment; the same object for the same arguments.

    :raises ConfigurationError: for an argument that is not valid, naming it.
    """
    if isinstance(variants, str) or not isinstance(variants, Sequence):
        raise ConfigurationError('experiment(variants=…) takes a list of names, such as ["control", "terse"]')
    if weights is not None and (isinstance(weights, str) or not isinstance(weights, Sequence)):
        raise ConfigurationError("experiment(weights=…) takes a list of numbers, one for each variant, such as [9, 1]")
    try:
        return _checked(experiment, tuple(variants), None if weights is None else tuple(weights))
    except TypeError:  # something in them that cannot be hashed
        raise ConfigurationError("experiment() takes the names of variants as text, and weights as numbers") from None


@lru_cache(256)
def _checked(experiment: str, variants: tuple[str, ...], weights: tuple[float, ...] | None) -> Design:
    _require_name("experiment(name=…)", experiment)
    for variant in variants:
        _require_name("experiment(variants=…)", variant)
    if not 2 <= len(variants) <= MOST_VARIANTS or len(set(variants)) < len(variants):
        raise ConfigurationError(f"experiment(variants=…) takes 2 to {MOST_VARIANTS} different names, not {variants}")
    if weights is None:
        return Design(experiment, variants, (1.0,) * len(variants))
    valid = all(isinstance(each, int | float) and math.isfinite(each) and each >= 0 for each in weights)
    if len(weights) != len(variants) or not valid or not sum(weights) > 0:
        raise ConfigurationError(
            f"experiment(weights=…) takes one number of 0 or more for each of the {len(variants)} variants, "
            f"and not only zeros; not {weights}"
        )
    return Design(experiment, variants, tuple(float(each) for each in weights))


def _require_name(what: str, name: object) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"{what} takes 1 to 64 letters, digits, dots, hyphens and underscores, not {name!r:.100}"
        )


def assign(design: Design, unit: str | int | UUID) -> Assigned:
    """Return the variant that a unit gets; the same unit always gets the same one.

    :raises ConfigurationError: where the unit is no text, number or UUID.
    """
    if not isinstance(unit, str | int | UUID) or isinstance(unit, bool) or not 0 < len(str(unit)) <= _LONGEST_UNIT:
        raise ConfigurationError(
            f"experiment(unit=…) takes what the variant is to stay with: a user, session or request id as text, "
            f"number or UUID, not {type(unit).__name__}"
        )
    seed = blake2b(f"{design.experiment}\0{unit}".encode("utf-8", "surrogatepass"), digest_size=32).digest()
    best, least = design.variants[0], math.inf
    for variant, weight in zip(design.variants, design.weights, strict=True):
        if weight:
            drawn = -math.log((_number(seed, variant) + 0.5) / _RANGE) / weight
            if drawn < least:
                best, least = variant, drawn
    return Assigned(best, design, _number(seed, ""))


def _number(seed: bytes, variant: str) -> int:
    """Return 64 bits that depend on all of seed and variant; the empty name is no variant's."""
    return int.from_bytes(blake2b(variant.encode(), key=seed, digest_size=8).digest(), "big")
