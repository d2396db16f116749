"""How the value of a setting is read from text and checked, one form for each kind of value."""

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit

from taskpilot_instrument import _addresses
from taskpilot_instrument.redaction import MARKER, redact_address

_WORDS: Final = {
    "1": True, "true": True, "yes": True, "on": True,
    "0": False, "false": False, "no": False, "off": False,
}  # fmt: skip
_NOTHING: Final = frozenset({"none", "off"})
_OTLP_PATH: Final = "/v1/traces"
_SHOWN: Final = 80


class Form(NamedTuple):
    """What values a setting takes.

    ``read`` and ``accept`` raise ValueError for a wrong value; ``accept`` leaves what it returned once
    unchanged the second time.

    :param label: the type, as the settings table shows it.
    :param expected: what would be right, as the end of "expected …".
    :param accept: check and normalise a value given in Python.
    :param read: read the text of an environment variable; None where text cannot say it.
    :param words: the valid words, for "did you mean".
    :param is_secret: a wrong value is not shown either.
    """

    label: str
    expected: str
    accept: Callable[[Any], object]
    read: Callable[[str], object] | None = None
    words: tuple[str, ...] = ()
    is_secret: bool = False


def did_you_mean(given: object, valid: Iterable[str], *, prefix: str = "") -> str:
    """Return `` (did you mean 'x'?)``, or nothing where no valid word comes close.

    :param prefix: what all words start with; it would make all of them look alike.
    """
    if not isinstance(given, str):
        return ""
    by_folded = {word.removeprefix(prefix).casefold(): word for word in valid}
    close = get_close_matches(given.removeprefix(prefix).casefold(), by_folded, n=1)
    return f" (did you mean {by_folded[close[0]]!r}?)" if close else ""


def complaint(name: str, value: object, form: Form, take: Callable[[Any], object] | None = None) -> str:
    """Say what is wrong with a setting and what would be right.

    :param name: the argument or environment variable that gave the value.
    :param take: what refused the value, and would take a better one; the form itself where it was given in Python.
    """
    shown = MARKER if form.is_secret else redact_address(repr(value))
    if len(shown) > _SHOWN:
        shown = shown[:_SHOWN] + "…"
    return f"{name}={shown}: expected {form.expected}{_suggestion(value, form, take)}"


def _suggestion(value: object, form: Form, take: Callable[[Any], object] | None) -> str:
    """Return " (did you mean …?)" with something that would have been taken, or nothing."""
    if take is None:
        take = form.accept
        if isinstance(value, str) and form.read is not None:  # as a variable would say it
            with suppress(ValueError):
                meant = form.read(value)
                take(meant)
                return f" (did you mean {meant!r}?)"
    if isinstance(value, list | tuple | set | frozenset):  # of words: the first that is none of the valid ones
        wrong = next((word for word in value if word not in form.words), None)
        return did_you_mean(wrong, (word for word in form.words if _takes(take, [word])))
    return did_you_mean(value, (word for word in form.words if word != value and _takes(take, word)))


def _takes(take: Callable[[Any], object], value: object) -> bool:
    try:
        take(value)
    except ValueError:
        return False
    return True


def _require(right: bool) -> None:  # noqa: FBT001 - reads as the sentence that it is
    if not right:
        raise ValueError


# --- the forms ----------------------------------------------------------------------------------


def boolean() -> Form:
    """Take a yes or no."""

    def accept(value: Any) -> bool:
        _require(isinstance(value, bool))
        return bool(value)

    def read(text: str) -> bool:
        _require(text.casefold() in _WORDS)
        return _WORDS[text.casefold()]

    return Form("bool", "a bool (in text: 1/0, true/false, yes/no, on/off)", accept, read, tuple(_WORDS))


def whole(low: int, high: int) -> Form:
    """Take a whole number between two bounds, both included."""

    def accept(value: Any) -> int:
        _require(isinstance(value, int) and not isinstance(value, bool) and low <= value <= high)
        return int(value)

    return Form("int", f"a whole number from {low} to {high}", accept, int)


def text() -> Form:
    """Take text that is not blank."""

    def accept(value: Any) -> str:
        _require(isinstance(value, str) and bool(value.strip()))
        return str(value)

    return Form("str", "text that is not empty", accept, str)


def words() -> Form:
    """Take a list of words; as text, with commas between them."""

    def accept(value: object) -> object:
        if not isinstance(value, list | tuple | set | frozenset):
            raise ValueError  # noqa: TRY004 - what accept() raises
        given = tuple(value)
        _require(all(isinstance(word, str) and word.strip() for word in given))
        return given

    return Form(
        "list of text",
        "a list of words; in a variable, with commas between them",
        accept,
        lambda given: tuple(word.strip() for word in given.split(",") if word.strip()),
    )


def choice(words: tuple[str, ...], *, when_true: str | None = None, when_false: str | None = None) -> Form:
    """Take one of a few words, in any case.

    :param when_true: the word that True stands for, where a bool is taken too.
    :param when_false: the word that False stands for.
    """
    by_folded = {word.casefold(): word for word in words}
    expected, valid = f"one of {', '.join(words)}", words
    if when_true is not None and when_false is not None:
        by_folded |= {word: when_true if yes else when_false for word, yes in _WORDS.items()}
        expected, valid = f"{expected}, true or false", (*words, "true", "false")

    def accept(value: Any) -> str:
        _require(isinstance(value, str | bool))
        _require(str(value).casefold() in by_folded)
        return by_folded[str(value).casefold()]

    return Form(" | ".join(valid), expected, accept, accept, valid)


def choices(words: tuple[str, ...]) -> Form:
    """Take a list of a few words, in any case; as text, with commas between them."""
    one = choice(words)

    def accept(value: Any) -> tuple[object, ...]:
        _require(isinstance(value, list | tuple | set | frozenset))
        return tuple(one.accept(word) for word in value)

    return Form(
        f"list of {one.label}",
        f"a list of {', '.join(words)}; in a variable, with commas between them",
        accept,
        lambda given: accept([word.strip() for word in given.split(",") if word.strip()]),
        words,
    )


def optional(form: Form) -> Form:
    """Take None too; in text ``none`` or ``off``."""
    read = form.read

    def read_optional(given: str) -> object:
        return None if given.casefold() in _NOTHING or read is None else read(given)

    return form._replace(
        label=f"{form.label} | None",
        expected=f"{form.expected}, or None",
        accept=lambda value: None if value is None else form.accept(value),
        read=None if read is None else read_optional,
    )


def url() -> Form:
    """Take the URL of an OTLP receiver; ``/v1/traces`` is added where it has no path."""

    def accept(value: Any) -> str:
        _require(isinstance(value, str))
        parts = urlsplit(value)
        if "://" not in value:  # gRPC takes host:port
            host, colon, port = value.rpartition(":")
            _require(bool(colon) and bool(host) and port.isdecimal())
            return str(value)
        _require(parts.scheme in {"http", "https"} and bool(parts.hostname))
        return value + _OTLP_PATH if parts.path == "" else str(value)

    return Form("str", "a URL such as http://localhost:4318 (or host:port for gRPC)", accept, str)


def prometheus_address() -> Form:
    """Take the address of a Prometheus."""

    def accept(value: Any) -> str:
        _require(isinstance(value, str))
        _addresses.prometheus_address(value)
        return str(value)

    return Form("str", _addresses.PROMETHEUS_URL, accept, str)


def bearer_token() -> Form:
    """Take a token that can stand in a header."""

    def accept(value: Any) -> str:
        _require(
            isinstance(value, str) and value.isascii() and value.isprintable() and " " not in value and value != ""
        )
        return str(value)

    return Form("str", "letters and digits without spaces", accept, str, is_secret=True)


def secret(fewest: int) -> Form:
    """Take a secret that is too long to be guessed.

    :param fewest: characters that it has at least.
    """

    def accept(value: Any) -> str:
        _require(isinstance(value, str) and len(value.strip()) >= fewest)
        return str(value)

    return Form("str", f"{fewest} characters or more, such as secrets.token_hex() makes", accept, str, is_secret=True)


def otlp_base(given: str) -> str:
    """Read ``OTEL_EXPORTER_OTLP_ENDPOINT``, a base to which the signal's path is always added."""
    return given.rstrip("/") + _OTLP_PATH if "://" in given else given


def otlp_exact(given: str) -> str:
    """Read ``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT``, a URL used as it is: a missing path means the root."""
    return given + "/" if "://" in given and urlsplit(given).path == "" else given


def attributes() -> Form:
    """Take a mapping of resource attributes; in text ``key=value,key=value``, percent-encoded.

    ``service.name`` is not among them: it is a setting of its own.
    """

    def accept(value: Any) -> Mapping[str, str | bool | int | float]:
        _require(isinstance(value, Mapping) and "service.name" not in value)
        for key, one in value.items():
            _require(isinstance(key, str) and bool(key) and isinstance(one, (str, bool, int, float)))
        return MappingProxyType(dict(value))

    def read(given: str) -> dict[str, str]:
        return {key: value for key, value in read_pairs(given).items() if key != "service.name"}

    expected = "names with str, bool, int or float values, without service.name (in text: key=value,key=value)"
    return Form("mapping", expected, accept, read)


def read_pairs(given: str) -> dict[str, str]:
    """Read ``key=value,key=value`` as OpenTelemetry does: percent-decoded, blanks around each part dropped."""
    pairs: dict[str, str] = {}
    for part in given.split(","):
        if not part.strip():
            continue
        key, equals, value = part.partition("=")
        _require(bool(equals) and bool(key.strip()))
        pairs[unquote(key.strip())] = unquote(value.strip())
    return pairs


def log_target(words: tuple[str, ...]) -> Form:
    """Take one of ``words``, the path of a file, an open stream or a stdlib logger.

    A path is told from a misspelt word by a separator or a suffix.
    """

    def read(given: str) -> str | Path:
        if given.casefold() in words:
            return given.casefold()
        path = Path(given)
        _require(bool(path.suffix) or len(path.parts) > 1)
        return path

    def accept(value: Any) -> object:
        if isinstance(value, str):
            return read(value)
        if isinstance(value, os.PathLike):
            return Path(value)
        _require(has(value, "write") or has(value, "handle", "isEnabledFor"))
        return value

    expected = f"{', '.join(words)}, the path of a file (with a / or a suffix), a stream or a logging.Logger"
    return Form(f"{' | '.join(words)} | path | stream | Logger", expected, accept, read, words)


def thing(label: str, expected: str, *methods: str) -> Form:
    """Take an object that has these methods; there is no text for it."""

    def accept(value: Any) -> object:
        _require(has(value, *methods))
        return value

    return Form(label, expected, accept)


def has(value: object, *methods: str) -> bool:
    """Tell whether an object (not a class) can be asked to do all of these."""
    return not isinstance(value, type) and all(callable(getattr(value, name, None)) for name in methods)


def mapping(expected: str) -> Form:
    """Take any mapping and hold it as it is, so that a live table stays live."""

    def accept(value: Any) -> object:
        _require(isinstance(value, Mapping))
        return value

    return Form("mapping", expected, accept)


def aliases(expected: str) -> Form:
    """Take a mapping of names to names; in text ``name=name,name=name``, percent-encoded."""

    def accept(value: Any) -> Mapping[str, str]:
        _require(isinstance(value, Mapping))
        _require(all(isinstance(word, str) and word.strip() for pair in value.items() for word in pair))
        return MappingProxyType(dict(value))

    return Form("mapping", expected, accept, read_pairs)


def listed(label: str, expected: str) -> Form:
    """Take a list of objects that say themselves whether they are right, or one of them; as text, a path."""

    def accept(value: Any) -> object:
        if isinstance(value, str | os.PathLike):
            return Path(value)
        _require(not isinstance(value, Mapping | type))
        return tuple(value) if isinstance(value, list | tuple | set | frozenset) else (value,)

    return Form(label, expected, accept, Path)


def ledger() -> Form:
    """Take a path, a ``redis://`` URL, the word ``memory``, or an object that is a ledger."""

    def accept(value: Any) -> object:
        if isinstance(value, str):
            return value if _addresses.ledger_place(value) != _addresses.MEMORY else _addresses.MEMORY
        if isinstance(value, os.PathLike):
            return Path(value)
        _require(has(value, "reserve", "settle", "standings"))
        return value

    expected = f"{_addresses.LEDGER_PLACES}, or a Ledger"
    return Form("path | redis://… | memory | Ledger", expected, accept, str, (_addresses.MEMORY,))
