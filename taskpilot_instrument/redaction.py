"""Keep secrets out of what is written: redact text, cut it, and turn any object into such text.

Each rule is a pattern beside a trigger, a cheap test on the lower-cased text. Clean text pays for the triggers only.
Each pattern runs in linear time: what it may repeat is either consumed whole or cannot contain the pattern's own
beginning.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Final, NamedTuple

from taskpilot_instrument._guard import swallow

#: Stands where a secret was.
MARKER: Final = "[redacted]"
#: Stands for a whole text that the user's own redaction failed on.
FAILED_MARKER: Final = "[not written: redaction failed]"

#: Of an address without ``://``, which in other text would not look like one.
_PASSWORD: Final = re.compile(r"(?<=:)[^\s:/@]+(?=@)")

#: What is looked at beyond the limit, so that a secret which straddles it is still seen as a secret.
_MARGIN: Final = 1024
_MAX_DEPTH: Final = 12

# A name may follow an escaped line break of JSON, whose letter is no part of it: "…\nsk-…".
_FRESH: Final = r"(?:(?<![A-Za-z0-9])|(?<=\\[nrtbf]))"
_KEY_WORDS: Final = (
    "api", "api[_ -]", "access", "access[_-]", "secret", "secret[_-]", "private[_-]", "subscription[_-]", "account",
    "account[_-]", "encryption[_-]",
)  # fmt: skip
# After the name: a closing quote, escaped as often as JSON inside JSON escapes it, the sign, the scheme of a header.
_SIGN: Final = r"""(?:\\*+["'])?[ \t]*+[:=](?!=)[ \t]*+(?:(?i:bearer|basic|token)[ \t]++)?+(?:[bu](?=["']))?+"""
# A value in quotes ends with its quote, with the line, or with the text: a cut must not save a secret.
_VALUE: Final = (
    r"""(?:(")(?:[^"\\\n]|\\.)++|(')(?:[^'\\\n]|\\.)++|(\\++["'])(?:[^"\\\n]|(?!\4)\\++["']?)++"""
    r"""|(?!(?i:null|none|true|false)\b)[^\s"'\\,;&()\[\]{}<>][^\s"'\\,;&)\]}>]*+)"""
)


class _Rule(NamedTuple):
    pattern: re.Pattern[str]
    replacement: str
    #: The lower-cased text must hold one of each group for the pattern to be tried.
    triggers: tuple[tuple[str, ...], ...]


def _rule(pattern: str, *triggers: tuple[str, ...], replacement: str = MARKER, flags: int = 0) -> _Rule:
    return _Rule(re.compile(pattern, flags), replacement, triggers)


def _pair(name: str, trigger: str) -> _Rule:
    """Redact what is assigned to a name: ``name=value``, ``"name": "value"``, ``Name: Bearer value``.

    :param name: pattern whose first letter is a class of both cases, which lets the search skip ahead.
    """
    return _rule(rf"({name}{_SIGN}){_VALUE}", (":", "="), (trigger,), replacement=rf"\1\2\3\4{MARKER}")


_RULES: Final = (
    _rule(
        r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
        r".*?(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|\Z)",
        ("-----begin",),
        flags=re.DOTALL,
    ),
    _rule(r"""://[^\s/:@"'<>]*+:[^\s/"'<>]*@""", ("://",), replacement=f"://{MARKER}@"),
    _rule(
        # Prose speaks of "basic functionality" and "bearer authentication"; a credential is no plain word.
        r"\b(bearer|basic)( ++)"
        r"(?=[A-Za-z]*+[0-9_=+/~.-][A-Za-z0-9+/=_~-]|(?-i:[A-Za-z][a-z]*+[A-Z])|[A-Za-z]{24})[A-Za-z0-9_=+/~.-]{8,}+",
        ("bearer ", "basic "),
        replacement=rf"\1\2{MARKER}",
        flags=re.IGNORECASE,
    ),
    _rule(_FRESH + r"sk-[A-Za-z0-9_*-]{8,}+", ("sk-",)),
    _rule(r"(?<![A-Z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Z0-9])", ("akia", "asia")),
    _rule(r"AIza[A-Za-z0-9_-]{30,}+", ("aiza",)),
    _rule(r"gh[pousr]_[A-Za-z0-9]{20,}+|github_pat_[A-Za-z0-9_]{20,}+", ("_",)),
    _rule(r"(?:xox[a-z](?:\.xox[a-z])?|xapp)-[A-Za-z0-9-]{8,}+", ("xox", "xapp-")),
    _rule(
        r"(?:(?<![A-Za-z0-9_-])|(?<=\\[nrtbf]))eyJ[A-Za-z0-9_-]{8,}+\.[A-Za-z0-9_-]{4,}+(?:\.[A-Za-z0-9_-]*+)?",
        ("eyj",),
    ),
    # `key` alone names many a harmless thing.
    _pair(r"[kK](?i:ey)(?:" + "|".join(rf"(?i:(?<={word}key))" for word in _KEY_WORDS) + ")", "key"),
    _pair(r"[pP](?i:ass(?:word|wd|phrase))", "pass"),
    _pair(r"[pP](?i:wd)", "pwd"),
    _pair(r"[sS](?i:ecret)", "secret"),
    _pair(r"[tT](?i:oken)", "token"),
    _pair(r"[aA](?i:uthorization)", "authorization"),
    _pair(r"[cC](?i:redentials?)", "credential"),
)
_FIRST_TRIGGERS: Final = tuple(dict.fromkeys(trigger for rule in _RULES for trigger in rule.triggers[0]))


def redact(text: str) -> str:
    """Replace every secret in a text: keys, tokens, passwords, credentials in headers and URLs.

    :param text: what is about to be written.
    """
    lowered = text.lower()
    for trigger in _FIRST_TRIGGERS:
        if trigger in lowered:
            return _apply_rules(text, lowered)
    return text


def redact_address(text: str) -> str:
    """Replace the secrets in what was given as an address, its password also where it has lost its scheme.

    :param text: what is about to be said of it.
    """
    return _PASSWORD.sub(MARKER, redact(text))


def _apply_rules(text: str, lowered: str) -> str:
    for pattern, replacement, triggers in _RULES:
        for group in triggers:
            for trigger in group:
                if trigger in lowered:
                    break
            else:
                break
        else:
            text = pattern.sub(replacement, text)
    return text


def redactor(hook: Callable[[str], str] | None = None) -> Callable[[str], str]:
    """Return :func:`redact`, followed by the user's own function where there is one.

    A hook that raises, or returns no text, loses the text: it is replaced by a marker, never written raw.

    :param hook: receives text that is redacted already.
    """
    if hook is None:
        return redact

    def redact_and_hook(text: str) -> str:
        try:
            hooked = hook(redact(text))
            if not isinstance(hooked, str):
                raise TypeError(f"the redact hook returned {type(hooked).__name__}, expected str")  # noqa: TRY301
        except Exception as error:
            swallow("redact", error)
            return FAILED_MARKER
        return hooked

    return redact_and_hook


def cut(text: str, limit: int) -> str:
    """Return the text, or its first characters and a note of how many there were.

    :param limit: characters that are kept; the note comes on top.
    """
    if len(text) <= limit:
        return text
    return f"{text[:limit]}… [cut: {len(text)} characters in all]"


def capture_text(value: object, limit: int, redact: Callable[[str], str] = redact) -> str:
    """Turn any object into redacted, cut text; never raise.

    Text stays as it is; what JSON can express becomes JSON; the rest is its ``repr``. No more of a large object is
    written out than the limit needs, and iterators are not touched.

    :param limit: characters that are kept; the note of a cut comes on top.
    :param redact: what the text passes through before the cut, as :func:`redactor` returns it.
    """
    window = limit + _MARGIN
    try:
        value = _reduced(value)
        if isinstance(value, str):
            text, whole = value[: window + 1], str(len(value))
        else:
            text, whole = _as_json(value, window + 1), f"more than {window}"
        if len(text) <= window:
            return cut(redact(text), limit)
        clean = redact(text[:window])
    except Exception:
        return _unprintable(value)
    # The head of a secret that goes on beyond the window is not known for one: never show the window's end.
    kept = clean[: max(0, min(limit, len(clean) - _MARGIN))]
    return f"{kept}… [cut: {whole} characters in all]"


def _unprintable(value: object) -> str:
    return f"<unprintable {type(value).__name__}>"


def _reduced(value: object) -> object:
    """Return what JSON can express in place of a value: itself, its fields, or its ``repr``."""
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, str | int | float | dict | list | tuple | set | frozenset):
        return value
    if isinstance(value, bytes | bytearray):
        return f"<{len(value)} bytes>"
    try:
        shown = _fields(value)
        return repr(value) if shown is None else {name: getattr(value, name) for name in shown}
    except Exception:
        return _unprintable(value)


def _fields(value: object) -> list[str] | None:
    """Return the fields of a dataclass or pydantic model, without those that its author keeps out of its ``repr``."""
    if isinstance(value, type):
        return None
    if is_dataclass(value):
        return [field.name for field in fields(value) if field.repr]
    declared = getattr(type(value), "model_fields", None)
    if isinstance(declared, dict) and declared:
        return [name for name, field in declared.items() if getattr(field, "repr", True)]
    return None


def _as_json(value: object, enough: int) -> str:
    """Write a value as JSON, until there is enough of it or it fails."""
    parts: list[str] = []
    size = 0
    try:
        for part in _json_parts(value, enough, _MAX_DEPTH):
            parts.append(part)
            size += len(part)
            if size >= enough:
                break
    except Exception:
        parts.append(_unprintable(value))
    return "".join(parts)


def _json_parts(value: object, enough: int, depth: int) -> Iterator[str]:
    if isinstance(value, str):
        yield json.dumps(value[:enough], ensure_ascii=False)
    elif value is None or isinstance(value, int | float):
        yield json.dumps(value)
    elif not depth:
        yield '"…"'
    elif isinstance(value, dict):
        yield "{"
        for number, (key, item) in enumerate(value.items()):
            name = key if isinstance(key, str) else str(_reduced(key))
            yield f"{', ' if number else ''}{json.dumps(name[:enough], ensure_ascii=False)}: "
            yield from _json_parts(_reduced(item), enough, depth - 1)
        yield "}"
    elif isinstance(value, list | tuple | set | frozenset):
        yield "["
        for number, item in enumerate(value):
            if number:
                yield ", "
            yield from _json_parts(_reduced(item), enough, depth - 1)
        yield "]"
