"""Guardrails: they check the text that an agent is given, and the text that it returns.

A check is any function that takes a text and returns whether it is allowed: a bool, an object with ``allowed``
(and ``reason``), or a mapping with ``"allowed"``; an async one too::

    instrument(guardrails=[Guardrail("moderation", check_input=is_harmless, check_output=moderate, timeout_s=2)])

Blocked input means that the agent does not run, so no model is called. Guardrails are asked before an agent runs and
after it has, not around each LLM call within; what they do themselves is not checked again. Streams are treated as
:mod:`policies <taskpilot_instrument.policy>` treat them. Where there is no text, there is nothing to check.

Time limits hold for plain functions too: these run in a few threads of ours. An async check runs in the agent's own
event loop, under a plain agent in one of ours. Where a plain function may hand out a coroutine (``def run(self):
return self._run()``) its input is checked before it does so, and the thread waits.
"""

import builtins
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any, Final, Literal, NamedTuple, get_args

from taskpilot_instrument import _forms
from taskpilot_instrument._definition import check, positive
from taskpilot_instrument._subject import Subject
from taskpilot_instrument.errors import ConfigurationError
from taskpilot_instrument.policy import FORMS, OnDeny

__all__ = ["Guardrail", "Subject", "Verdict", "check_of", "guardrails_of", "verdict_of"]

#: Return annotations that say that a function judges nothing.
_NO_VERDICTS: Final = (None, type(None), int, float, str, bytes, list, "None", "int", "float", "str", "bytes", "list")
OnError = Literal["allow", "block"]
Direction = Literal["input", "output"]


def _checks() -> _forms.Form:
    def accept(value: Any) -> object:
        if not callable(value) or isinstance(value, type) or not _may_check(value):
            raise ValueError
        return value

    expected = (
        "a function that takes a text, and the Subject if it has a parameter for it, and answers a bool or something "
        "with a bool `allowed`"
    )
    return _forms.optional(_forms.Form("function", expected, accept))


_FORMS: Final = {
    **FORMS,
    "check_input": _checks(),
    "check_output": _checks(),
    "timeout_s": _forms.optional(positive()),
    "on_error": _forms.choice(get_args(OnError)),
    "on_block": _forms.choice(get_args(OnDeny)),
}


def _may_check(fn: Callable[..., Any]) -> bool:
    """Tell whether a function can be called with a text, and whether its answer can be a verdict."""
    if getattr(fn, "__self__", None) is builtins:  # len, print and the like: none of them judges a text
        return False
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):  # written in C: its first answer will tell
        return True
    try:
        signature.bind("", None) if _wants_subject(fn) else signature.bind("")
    except TypeError:
        return False
    return signature.return_annotation not in _NO_VERDICTS


class Verdict(NamedTuple):
    """What a check may answer.

    :param allowed: whether the text may pass.
    :param reason: why not; without the text, for it stands in the log.
    """

    allowed: bool
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Guardrail:
    """Check input, output, or both, in a time limit.

    :param name: what log lines and metrics call it.
    :param check_input: called with what the agent was given, as text; with the :class:`Subject` too where it has a
        second parameter that must be given, or one called ``subject``.
    :param check_output: called with what the agent returned, as text.
    :param timeout_s: seconds that one check may take; None for any.
    :param on_error: what happens where a check raises, takes too long or answers nonsense: ``allow`` or ``block``.
    :param on_block: ``raise`` :class:`GuardrailBlockedError` in the agent's place, or ``replace`` its result.
    :param replacement: what the caller gets then; of a generator it is the one item.
    :param agents: only of these agents.
    :raises ConfigurationError: for a field that is not valid, or where nothing is checked.
    """

    name: str
    _: KW_ONLY
    check_input: Callable[..., Any] | None = None
    check_output: Callable[..., Any] | None = None
    timeout_s: float | None = 5.0
    on_error: OnError = "allow"
    on_block: OnDeny = "raise"
    replacement: Any = None
    agents: Collection[str] | None = None

    def __post_init__(self) -> None:
        check(self, _FORMS)
        if self.check_input is None and self.check_output is None:
            raise ConfigurationError(f"Guardrail {self.name}: one of check_input and check_output has to be given")
        if self.on_block == "raise" and self.replacement is not None:
            raise ConfigurationError(f'Guardrail {self.name}: replacement= is for on_block="replace"')

    def check(self, direction: Direction) -> Callable[..., Any] | None:
        """Return what checks a direction."""
        return self.check_input if direction == "input" else self.check_output


class Check(NamedTuple):
    """One direction of a guardrail, looked at once.

    :param wants_subject: whether it takes the subject beside the text.
    :param is_async: whether calling it only makes something to be awaited.
    """

    guardrail: Guardrail
    direction: Direction
    fn: Callable[..., Any]
    wants_subject: bool
    is_async: bool

    def call(self, subject: Subject) -> Callable[[], Any]:
        """Return the check of a subject, ready to be called."""
        return partial(self.fn, subject.text, subject) if self.wants_subject else partial(self.fn, subject.text)


def check_of(guardrail: Guardrail, direction: Direction) -> Check | None:
    """Return what a guardrail checks in a direction; None where it does not."""
    fn = guardrail.check(direction)
    if fn is None:
        return None
    is_async = inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004 - not whether, but which
    return Check(guardrail, direction, fn, _wants_subject(fn), is_async)


def _wants_subject(fn: Callable[..., Any]) -> bool:
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):  # written in C
        return False
    by_place = [each for each in parameters if each.kind in {each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD}]
    second = by_place[1] if len(by_place) > 1 else None
    return second is not None and (second.default is second.empty or second.name == "subject")


def guardrails_of(given: object) -> tuple[Guardrail, ...]:
    """Return what the setting ``guardrails`` lists.

    :raises ConfigurationError: where something else is among it.
    """
    listed = given if isinstance(given, tuple) else (given,)
    for one in listed:
        if not isinstance(one, Guardrail):
            raise ConfigurationError(f"guardrails: expected a list of Guardrail(…), but {one!r:.80} is among it")
    return listed


def verdict_of(answer: Any) -> Verdict:
    """Read what a check answered.

    :raises TypeError: for what is no answer: text such as ``"false"`` is none.
    """
    allowed, reason = answer, None
    if isinstance(answer, Mapping):
        allowed, reason = answer.get("allowed"), answer.get("reason")
    elif hasattr(answer, "allowed"):
        allowed, reason = answer.allowed, getattr(answer, "reason", None)
    if type(allowed).__name__.rstrip("_") != "bool":  # numpy's bool is one too
        raise TypeError(f"a check answers a bool, or something with a bool `allowed`, not {type(answer).__name__}")
    return Verdict(bool(allowed), None if reason is None else str(reason))
