"""Which endpoints of the API are billed, and which tell the bill of what was started before."""

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

from taskpilot_instrument import semconv
from taskpilot_instrument.usage import INPUT_CHARACTERS, Beside


class Surface(NamedTuple):
    """One endpoint whose calls are observed.

    :param operation: ``gen_ai.operation.name``.
    :param events: True where its streams are typed events with a response inside, not chunks.
    :param is_free: True where the provider bills nothing.
    :param is_late: True where it tells what something cost that was started before, if that is done by now.
    :param beside: reads from the request what is billed by something else than tokens.
    """

    operation: str
    events: bool = True
    is_free: bool = False
    is_late: bool = False
    beside: Callable[[Mapping[str, Any]], Beside | None] | None = None


def _characters(body: Mapping[str, Any]) -> Beside | None:
    text = body.get("input")
    return Beside({INPUT_CHARACTERS: len(text)}) if isinstance(text, str) else None


_CHAT: Final = Surface(semconv.OPERATION_CHAT)
_IMAGE: Final = Surface(semconv.OPERATION_IMAGE)
_VIDEO: Final = Surface(semconv.OPERATION_VIDEO)
_RUN: Final = Surface(semconv.OPERATION_AGENT)
_LATE: Final = Surface("", is_late=True)

#: Billed when they are called; ``*`` stands for an id. Nothing tells what the last ones cost: they are openly unknown.
_BILLED: Final[dict[str, Surface]] = {
    "/chat/completions": Surface(semconv.OPERATION_CHAT, events=False),
    "/completions": Surface(semconv.OPERATION_COMPLETION, events=False),
    "/responses": _CHAT,
    "/responses/compact": _CHAT,
    "/embeddings": Surface(semconv.OPERATION_EMBEDDINGS),
    "/decisions": Surface(semconv.OPERATION_DECISION),
    "/moderations": Surface(semconv.OPERATION_MODERATION, is_free=True),
    "/images/generations": _IMAGE,
    "/images/edits": _IMAGE,
    "/images/variations": _IMAGE,
    "/audio/transcriptions": Surface(semconv.OPERATION_TRANSCRIPTION),
    "/audio/translations": Surface(semconv.OPERATION_TRANSLATION),
    "/audio/speech": Surface(semconv.OPERATION_SPEECH, beside=_characters),
    "/threads/runs": _RUN,
    "/threads/*/runs": _RUN,
    "/videos": _VIDEO,
    "/videos/edits": _VIDEO,
    "/videos/extensions": _VIDEO,
    "/videos/*/remix": _VIDEO,
    "/fine_tuning/jobs": Surface(semconv.OPERATION_TRAINING),
    "/fine_tuning/alpha/graders/run": Surface(semconv.OPERATION_GRADING),
    "/containers": Surface(semconv.OPERATION_CONTAINER),
}
#: Where the usage of something that runs in the background is told, by method. A list of what was is told nothing:
#: whoever looks through last month's batches is not billed for them.
_TOLD: Final[dict[str, tuple[str, ...]]] = {
    "get": (
        "/responses/*",
        "/batches/*",
        "/threads/*/runs/*",
        "/evals/*/runs/*",
        "/agents/sessions/*/events",
        "/agents/sessions/*/turns/*",
        "/agents/sessions/*/subagents/*/turns/*",
    ),
    "post": (
        "/responses/*/cancel",
        "/batches/*/cancel",
        "/threads/*/runs/*",
        "/threads/*/runs/*/cancel",
        "/threads/*/runs/*/submit_tool_outputs",
        "/evals/*/runs/*",  # how older clients cancel one
        "/evals/*/runs/*/cancel",
        "/agents/sessions",
    ),
}


def surface_of(method: str, url: str) -> Surface | None:
    """Return the endpoint that a request goes to, None for one that bills nothing and tells no bill."""
    if method == "post":
        found = _BILLED.get(url)
        if found is not None:
            return found
    return _found(method.lower(), url)


@lru_cache(maxsize=256)
def _found(method: str, url: str) -> Surface | None:
    """Look at the end of the path: before it may stand a host, a version, a deployment or a gateway's own folders."""
    pattern = _PATTERNS.get(method)
    match = pattern.search("/" + url.partition("?")[0].strip("/")) if pattern is not None else None
    if match is None:
        return None
    return _BILLED[_TEMPLATES[match.lastgroup]] if match.lastgroup in _TEMPLATES else _LATE


def _pattern(templates: Mapping[str | None, str], told: tuple[str, ...]) -> "re.Pattern[str]":
    """Return what matches any of the paths at the end of a longer one.

    A search finds the match that begins first, so that the longest path wins: ``/chat/completions`` is no completion.
    """
    named = [f"(?P<{name}>{_regex(path)})" for name, path in templates.items()]
    return re.compile(rf"(?:{'|'.join([*named, *map(_regex, told)])})$")


def _regex(path: str) -> str:
    return re.escape(path).replace(r"\*", "[^/]+")


_TEMPLATES: Final[dict[str | None, str]] = {f"_{number}": path for number, path in enumerate(_BILLED)}
_PATTERNS: Final = {"get": _pattern({}, _TOLD["get"]), "post": _pattern(_TEMPLATES, _TOLD["post"])}
