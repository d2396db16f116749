"""Policies: asked about agent input, tool calls and agent output; they allow, flag or deny.

Any function that takes a :class:`Subject` is a policy, an async one too::

    def no_transfers_at_night(subject):
        if subject.tool == "transfer" and is_night():
            return Deny("transfers are closed", rule="hours-1")

    async def ask_engine(subject):  # an external policy engine
        answer = await engine.decide(user=subject.user_id, tool=subject.tool, arguments=subject.arguments)
        return Allow(answer.why, rule=answer.rule) if answer.ok else Deny(answer.why, rule=answer.rule)

    instrument(policies=[no_transfers_at_night, Policy(ask_engine, moments=["tool_call"], fail_closed=True)])

They are asked in the order in which they are given; the first that denies has the last word. A plain function is
called where the agent runs: under an event loop it must not take long. Policies are asked about agents and tools with
a decorator, not about LLM calls. What an agent or tool that is part of a check does is not checked itself.

**Streams.** The input of a generator is judged before its first step. Its output is judged when it is over, as what it
yielded put together, so a denial is raised after the last item, and a replacement follows it; a stream that its
consumer leaves early is not judged. SDK streams, futures and iterators that an agent returns are passed on as they are:
that output was not checked.

**The decision log.** Every flag, denial and failed check, and every tool call that a policy allows with a reason, is
one JSON line and one event of the span. Silent consent (None, True, or :class:`Allow` without a reason) is not logged.
What was said stands in them only where content capture lets content into events.
"""

import builtins
import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, get_args

from taskpilot_instrument import _forms
from taskpilot_instrument._definition import check
from taskpilot_instrument._forms import Form
from taskpilot_instrument._subject import MOMENTS, Moment, Subject
from taskpilot_instrument.errors import ConfigurationError

__all__ = ["Allow", "Answer", "Deny", "Flag", "Moment", "Policy", "Ruling", "Subject", "policies_of", "ruling_of"]

OnDeny = Literal["raise", "replace"]
_UNSET: Final[Any] = object()


class Allow(NamedTuple):
    """Let it go.

    :param reason: why. A tool call that is allowed with a reason is logged as authorised.
    :param rule: id of the rule that allows it.
    """

    reason: str | None = None
    rule: str | None = None


class Flag(NamedTuple):
    """Let it go, and count a violation.

    :param reason: why it is one; without what was said, for it stands in the log.
    :param rule: id of the rule that was broken.
    """

    reason: str
    rule: str | None = None


class Deny(NamedTuple):
    """Refuse it, and count a violation.

    :param reason: why; without what was said, for it stands in the log.
    :param rule: id of the rule that was broken.
    :param replacement: what the caller gets in place of :class:`PolicyViolationError`, whatever the policy says.
    """

    reason: str
    rule: str | None = None
    replacement: Any = _UNSET

    @property
    def replaces(self) -> bool:
        """True where the ruling brings a replacement."""
        return self.replacement is not _UNSET


Ruling = Allow | Flag | Deny
#: What a policy may answer: None and True allow, False denies, text denies and is the reason (empty text allows).
Answer = Ruling | bool | None | str


def _moments() -> Form:
    words = _forms.words()

    def accept(value: Any) -> object:
        given = words.accept(value)
        if not given or not set(given) <= set(MOMENTS):  # type: ignore[call-overload] # a tuple of text by now
            raise ValueError
        return given

    return words._replace(expected=f"a list of {', '.join(MOMENTS)}", accept=accept, words=MOMENTS)


FORMS: Final = {
    "name": _forms.text(),
    "agents": _forms.optional(_forms.words()._replace(expected="a list of names of agents")),
}
_FORMS: Final = {
    **FORMS,
    "moments": _moments(),
    "tools": _forms.optional(_forms.words()._replace(expected="a list of names of tools")),
    "on_deny": _forms.choice(get_args(OnDeny)),
    "fail_closed": _forms.boolean(),
}


@dataclass(frozen=True, slots=True)
class Policy:
    """Say whom and when to ask, and what follows; a bare function is a policy too.

    :param ask: called with a :class:`Subject`, answers an :data:`Answer`; may be async. It may also raise a
        :class:`PolicyViolationError` of its own. Any other error, or another answer, is a failed check: it is logged,
        counted as such in the golden signals, and the run goes on.
    :param name: what log lines and metrics call it; else the ready-made rule's or the function's name.
    :param moments: when to ask; else the rule's own, else always.
    :param agents: only of these agents.
    :param tools: only of calls of these tools.
    :param on_deny: ``raise`` :class:`PolicyViolationError` in the agent's or tool's place, or ``replace`` its result.
    :param replacement: what the caller gets then; of a generator it is the one item.
    :param fail_closed: refuse where the check fails.
    :raises ConfigurationError: for a field that is not valid.
    """

    ask: Callable[[Subject], Any]
    name: str = ""
    moments: Collection[Moment] = field(default=(), kw_only=True)
    agents: Collection[str] | None = field(default=None, kw_only=True)
    tools: Collection[str] | None = field(default=None, kw_only=True)
    on_deny: OnDeny = field(default="raise", kw_only=True)
    replacement: Any = field(default=None, kw_only=True)
    fail_closed: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if not callable(self.ask) or isinstance(self.ask, type) or not _takes_one(self.ask):
            raise ConfigurationError(f"Policy: ask={self.ask!r:.80}: expected a function that takes one Subject")
        rule = self.ask
        if self.name == "":
            given = getattr(rule, "name", None) or getattr(rule, "__name__", None) or type(rule).__name__
            object.__setattr__(self, "name", given)
        if self.moments == ():
            always = ("tool_call",) if self.tools is not None else MOMENTS
            object.__setattr__(self, "moments", getattr(rule, "moments", always))
        if self.tools is None:
            object.__setattr__(self, "tools", getattr(rule, "tools", None))
        check(self, _FORMS)
        if self.on_deny == "raise" and self.replacement is not None:
            raise ConfigurationError(f'Policy {self.name}: replacement= is for on_deny="replace"')

    def speaks_of(self, moment: Moment, agent: str | None, tool: str | None) -> bool:
        """Tell whether it is to be asked."""
        return (
            moment in self.moments
            and (self.agents is None or agent in self.agents)
            and (self.tools is None or tool is None or tool in self.tools)
        )


def _takes_one(fn: Callable[..., Any]) -> bool:
    if getattr(fn, "__self__", None) is builtins:  # len, print and the like: none of them judges a subject
        return False
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):  # written in C: it will say so itself
        return True
    try:
        signature.bind(None)
    except TypeError:
        return False
    return True


def policies_of(given: object) -> tuple[Policy, ...]:
    """Return what the setting ``policies`` lists, functions among it as policies.

    :raises ConfigurationError: where something else is among it.
    """
    listed = given if isinstance(given, tuple) else (given,)
    for one in listed:
        if not callable(one) and not isinstance(one, Policy):
            raise ConfigurationError(f"policies: expected a list of policies or functions, but {one!r:.80} is among it")
    return tuple(one if isinstance(one, Policy) else Policy(one) for one in listed)


def ruling_of(answer: object) -> Ruling:
    """Read what a policy answered.

    :raises TypeError: for what is no answer.
    """
    if isinstance(answer, Allow | Flag | Deny):
        return answer
    if answer is None or answer is True:
        return Allow()
    if answer is False:
        return Deny("it is not allowed")
    if isinstance(answer, str):
        return Deny(answer) if answer else Allow()
    raise TypeError(f"a policy answers Allow, Flag, Deny, a bool, None or a reason, not {type(answer).__name__}")
