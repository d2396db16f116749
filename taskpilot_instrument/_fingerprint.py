"""Recognise equal arguments without keeping them: a hash of their JSON-like form."""

import dataclasses
import itertools
import struct
import weakref
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from hashlib import blake2b
from pathlib import PurePath
from typing import Any, Final
from uuid import UUID

_DEEPEST: Final = 16
_MOST_VALUES: Final = 10_000
_MOST_BYTES: Final = 262_144
#: Types whose ``repr`` is their value.
_SPELT_OUT: Final = (float, complex, Decimal, date, time, timedelta, UUID, PurePath, range)


def fingerprint(name: str, arguments: object) -> bytes:
    """Return 16 bytes that are the same for equal arguments and, but for an accident of 1 in 2¹²⁸, for no others.

    Equal is what reads the same as JSON: the order of a mapping's keys does not count, lists and tuples are alike, a
    dataclass or pydantic model is its fields. Anything else, such as a connection or a file, is equal to itself alone
    (an iterator not even to that: it may have moved on), and is not iterated. Of very large arguments the first 10,000
    values and 256 KiB count.

    :param name: of what the arguments were given to.
    """
    walk = _Walk()
    walk.text("", name)
    walk.value(arguments, 0)
    return walk.digest()


#: Objects that live and were asked about, by their ids: those come again once an object is gone.
_known: Final[dict[int, tuple["weakref.ref[Any]", int]]] = {}
_numbers: Final = itertools.count()
_MOST_KNOWN: Final = 10_000


def _identity(value: Any) -> int:
    """Return a number that is the same for an object as long as it lives; a new one where that cannot be known."""
    key = id(value)
    known = _known.get(key)
    if known is not None and known[0]() is value:
        return known[1]
    number = next(_numbers)
    try:
        reference = weakref.ref(value, lambda _: _known.pop(key, None))
    except TypeError:
        return number
    if len(_known) < _MOST_KNOWN:
        _known[key] = (reference, number)
    return number


def _order(key: object) -> str:
    return key if type(key) is str else repr(key)


class _Walk:
    __slots__ = ("_bytes", "_digest", "_values")

    def __init__(self) -> None:
        self._digest = blake2b(digest_size=16)
        self._values = 0
        self._bytes = 0

    def digest(self) -> bytes:
        return self._digest.digest()

    def text(self, kind: str, text: str | bytes) -> None:
        """Feed a word: its kind and its length go before it, so that no two sequences of words read the same."""
        given = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
        self._digest.update(kind.encode() + struct.pack("<Q", len(given)))
        room = _MOST_BYTES - self._bytes
        if room > 0:
            self._digest.update(given[:room])
            self._bytes += len(given)

    def value(self, value: Any, depth: int) -> None:
        self._values += 1
        if depth > _DEEPEST or self._values > _MOST_VALUES:
            return
        if isinstance(value, str):
            self.text("s", value if type(value) is str else str.__str__(value))
        elif value is None or isinstance(value, bool):
            self.text("c", repr(value))
        elif isinstance(value, bytes | bytearray):
            self.text("b", bytes(value[:_MOST_BYTES]))
        elif isinstance(value, Enum):
            self.text("e", f"{type(value).__qualname__}.{value.name}")
        elif isinstance(value, int):
            self.text("d", f"{value:x}")  # in decimal digits Python refuses very large ones
        elif isinstance(value, _SPELT_OUT):
            self.text("n", repr(value)[:_MOST_BYTES])
        elif type(value) in {list, tuple}:
            self.text("l", str(len(value)))
            for item in value:
                self.value(item, depth + 1)
        elif type(value) in {dict, set, frozenset}:
            self._unordered(value, depth)
        else:
            self._object(value, depth)

    def _unordered(self, value: Any, depth: int) -> None:
        """Feed the items of a mapping or set in one order, whichever they are kept in."""
        self.text("m", str(len(value)))
        is_mapping = type(value) is dict
        for key in sorted(itertools.islice(value, _MOST_VALUES), key=_order):
            self.value(key, depth + 1)
            if is_mapping:
                self.value(value[key], depth + 1)

    def _object(self, value: Any, depth: int) -> None:
        kind = type(value)
        self.text("o", f"{kind.__module__}.{kind.__qualname__}")
        if dataclasses.is_dataclass(kind):
            self._unordered({each.name: getattr(value, each.name, None) for each in dataclasses.fields(value)}, depth)
            return
        if hasattr(kind, "__pydantic_fields__"):
            self._unordered(dict(vars(value)), depth)
        else:
            self.text("i", str(_identity(value)))
