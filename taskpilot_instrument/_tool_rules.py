"""Ready-made policies about what is done: tools that an agent may use, their arguments, the number of calls."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any, Final
from weakref import WeakKeyDictionary

from taskpilot_instrument import _forks
from taskpilot_instrument._rule_fields import MOST_PATTERN_INPUT, Decision, compiled, ruling, whole
from taskpilot_instrument._subject import Subject, normalised
from taskpilot_instrument.errors import ConfigurationError
from taskpilot_instrument.policy import Allow, Deny, Flag

Number = int | float | Decimal

ANY: Final = "*"
_MISSING: Final = object()


class ToolAllowList:
    """Let each agent call the tools of its list; each call is logged, as authorised or as denied.

    :param allowed: tools by agent; ``"*"`` stands for any other agent, and as a tool for any tool. An agent that is not
        in it may call none.
    :param name: of the policy.
    :raises ConfigurationError: for a list that is none.
    """

    moments = ("tool_call",)

    def __init__(self, allowed: Mapping[str, Iterable[str]], *, name: str = "tool_allow_list") -> None:
        self.name = name
        if not isinstance(allowed, Mapping) or not all(map(_is_list, allowed.values())):
            raise ConfigurationError(
                f'ToolAllowList: allowed={allowed!r:.80}: expected tools by agent, as in {{"PlannerAgent": ["add"]}}'
            )
        self._allowed = {agent: frozenset(tools) for agent, tools in allowed.items()}
        self._others = self._allowed.get(ANY, frozenset())

    def __call__(self, subject: Subject) -> Allow | Deny:
        """Judge a tool call."""
        tools = self._others if subject.agent is None else self._allowed.get(subject.agent, self._others)
        who = "a caller without an agent" if subject.agent is None else subject.agent
        if subject.tool in tools or ANY in tools:
            return Allow(f"{subject.tool} is on the list of {who}", "tool_listed")
        return Deny(f"{subject.tool} is not on the list of {who}", "tool_not_listed")


def _is_list(tools: object) -> bool:
    return isinstance(tools, Iterable) and not isinstance(tools, str)


class ArgumentRule:
    """Hold one argument of one tool to bounds; the id of the rule is ``tool.argument``.

    :param tool: its name.
    :param argument: the argument's name; a dot leads into it, as in ``order.amount`` (of ``**kwargs``:
        ``kwargs.amount``).
    :param minimum: least number that is allowed.
    :param maximum: greatest number that is allowed.
    :param one_of: values that are allowed.
    :param pattern: regular expression that the whole text has to match, in normal form NFKC.
    :param check: a function that tells whether the value is allowed.
    :param required: deny where the argument is missing; else a call without it is not judged.
    :param name: of the policy.
    :param decision: ``deny`` or ``flag``.
    :raises ConfigurationError: where no bound is given, or one is not valid.
    """

    moments = ("tool_call",)

    def __init__(
        self,
        tool: str,
        argument: str,
        *,
        minimum: Number | None = None,
        maximum: Number | None = None,
        one_of: Iterable[Any] | None = None,
        pattern: str | re.Pattern[str] | None = None,
        check: Callable[[Any], bool] | None = None,
        required: bool = False,
        name: str = "arguments",
        decision: Decision = "deny",
    ) -> None:
        self.name = name
        self.tools = (tool,)
        self._path = argument.split(".")
        self._rule = f"{tool}.{argument}"
        self._ruling = ruling(decision)
        self._required = required
        self._minimum, self._maximum = _number("minimum", minimum), _number("maximum", maximum)
        self._one_of = None if one_of is None else tuple(one_of)
        self._pattern = None if pattern is None else compiled("ArgumentRule: pattern", pattern, 0)
        self._check = check
        if not required and all(each is None for each in (minimum, maximum, one_of, pattern, check)):
            raise ConfigurationError(
                f"ArgumentRule {self._rule}: one of minimum, maximum, one_of, pattern, check and required is needed"
            )

    def __call__(self, subject: Subject) -> Deny | Flag | None:
        """Judge a tool call."""
        value: Any = subject.arguments
        for step in self._path:
            value = value.get(step, _MISSING) if isinstance(value, Mapping) else getattr(value, step, _MISSING)
        if value is not _MISSING:
            wrong = self._wrong_number(value) or self._wrong_text(value) or self._wrong(value)
        else:
            wrong = "is missing" if self._required else None
        return None if wrong is None else self._ruling(f"{'.'.join(self._path)} {wrong}", self._rule)

    def _wrong_number(self, value: Any) -> str | None:
        if self._minimum is None and self._maximum is None:
            return None
        if not _is_number(value):
            return "is no number"
        if self._minimum is not None and value < self._minimum:
            return f"is less than {self._minimum}"
        return f"is more than {self._maximum}" if self._maximum is not None and value > self._maximum else None

    def _wrong_text(self, value: Any) -> str | None:
        if self._pattern is None:
            return None
        if not isinstance(value, str):
            return "is no text"
        if len(value) > MOST_PATTERN_INPUT:
            return f"is longer than {MOST_PATTERN_INPUT:,} characters"
        return None if self._pattern.fullmatch(normalised(value)) else "does not have the form that is allowed"

    def _wrong(self, value: Any) -> str | None:
        if self._one_of is not None and value not in self._one_of:
            return "is none of the values that are allowed"
        return "is not allowed" if self._check is not None and not self._check(value) else None


class MaxToolCalls:
    """Bound the tool calls of a run: of the outermost workflow or agent with everything beneath it.

    :param most: calls that are allowed; each further one is a violation.
    :param tools: count only the calls of these.
    :param name: of the policy.
    :param decision: ``deny`` or ``flag``.
    :raises ConfigurationError: for a number that is not valid.
    """

    moments = ("tool_call",)

    def __init__(
        self,
        most: int,
        *,
        tools: Iterable[str] | None = None,
        name: str = "max_tool_calls",
        decision: Decision = "deny",
    ) -> None:
        self.name = name
        self.tools = None if tools is None else tuple(tools)
        self._most = whole("MaxToolCalls: most", most, 0)
        self._ruling = ruling(decision)
        self._lock = _forks.lock()
        self._calls: WeakKeyDictionary[object, int] = WeakKeyDictionary()

    def __call__(self, subject: Subject) -> Deny | Flag | None:
        """Judge a tool call, and count it."""
        run = subject.run
        with self._lock:
            calls = self._calls[run] = self._calls.get(run, 0) + 1
        if calls <= self._most:
            return None
        return self._ruling(f"call {calls} of a run that may make {self._most}", "max_tool_calls")


def _number(what: str, bound: Any) -> Any:
    if bound is None or _is_number(bound):
        return bound
    raise ConfigurationError(f"ArgumentRule: {what}={bound!r:.80}: expected a number")


def _is_number(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, int) or (isinstance(value, float | Decimal) and not math.isnan(value))
