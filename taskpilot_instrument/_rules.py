"""Ready-made policies: keywords, patterns, tools that an agent may use, arguments, number of tool calls.

Each is a policy as it is; :class:`Policy` around it says more, such as ``Policy(Keywords(["delete"]),
moments=["tool_call"], on_deny="replace", replacement="not done")``.
"""

import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any, Final, Literal
from weakref import WeakKeyDictionary

from taskpilot_instrument import _forks
from taskpilot_instrument._subject import MOMENTS, Subject, TextTooLongError, folded, normalised
from taskpilot_instrument.errors import ConfigurationError
from taskpilot_instrument.policy import Allow, Deny, Flag

Decision = Literal["deny", "flag"]
Number = int | float | Decimal

ANY: Final = "*"
_RULINGS: Final[dict[str, type[Deny] | type[Flag]]] = {"deny": Deny, "flag": Flag}
_MOST_PATTERN_INPUT: Final = 100_000
_MISSING: Final = object()
#: Scripts that put no blanks between words, Hangul among them, whose words grow at their ends: Thai to Tibetan,
#: Myanmar, Hangul, Khmer, Kana, ideographs.
_UNSPACED: Final = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]"
)


class Keywords:
    """Look for words in what an agent is given, what a tool is called with, and what an agent returns.

    ``undelete`` and ``deleted`` are not ``delete``; ``DELETE``, ``ｄｅｌｅｔｅ`` and ``delete_all`` hold it. Words of
    scripts without blanks between words, such as Chinese, Thai and Korean, are found anywhere.

    :param words: words or phrases, each of which is the id of its rule; or words by the id of their rule.
    :param name: of the policy.
    :param decision: ``deny`` or ``flag``.
    :raises ConfigurationError: where there is no word.
    """

    moments = MOMENTS

    def __init__(
        self, words: Iterable[str] | Mapping[str, Iterable[str]], *, name: str = "keywords", decision: Decision = "deny"
    ) -> None:
        self.name = name
        self._ruling = _ruling(decision)
        by_rule = _listed("words", words)
        self._words: list[tuple[str, str]] = []
        for rule, given in by_rule:
            for word in (given,) if isinstance(given, str) else given:
                wanted = folded(normalised(word)) if isinstance(word, str) else ""
                if not wanted:
                    raise ConfigurationError(f"Keywords: words={word!r:.80}: expected words that are not empty")
                self._words.append((wanted, rule))

    def __call__(self, subject: Subject) -> Deny | Flag | None:
        """Judge the text of a subject."""
        text = subject.folded
        for word, rule in self._words:
            if word in text and _has_word(text, word):
                return self._ruling(f"a keyword is in the {_noun(subject)}", rule)
        subject.require_whole()
        return None


def _has_word(text: str, word: str) -> bool:
    start = text.find(word)
    while start >= 0:
        end = start + len(word)
        if not (start > 0 and _one_word(text[start - 1], text[start])) and not (
            end < len(text) and _one_word(text[end - 1], text[end])
        ):
            return True
        start = text.find(word, start + 1)
    return False


def _one_word(left: str, right: str) -> bool:
    """Tell whether two neighbours belong to the same word. ``_`` parts words, and combining marks do not."""
    return _in_word(left) and _in_word(right)


def _in_word(character: str) -> bool:
    if character.isascii():
        return character.isalnum()
    is_part = character.isalnum() or unicodedata.category(character)[0] == "M"
    return is_part and _UNSPACED.match(character) is None


class Patterns:
    """Look for regular expressions in what an agent is given, what a tool is called with, and what an agent returns.

    They are searched, without regard to case, in the text in normal form NFKC without characters that nobody sees.

    :param patterns: by the id of their rule; in a bare list they are ``pattern_1``, ``pattern_2``, …. A compiled
        pattern has its own flags.
    :param name: of the policy.
    :param decision: ``deny`` or ``flag``.
    :param max_length: characters that are searched. In a longer text in which nothing is found the check counts as
        failed. It bounds the time of patterns that do not take much longer for each further character; see to it that
        yours, such as ``(a+)+b``, are not of the other kind.
    :raises ConfigurationError: for a pattern that cannot be compiled.
    """

    moments = MOMENTS

    def __init__(
        self,
        patterns: Iterable[str | re.Pattern[str]] | Mapping[str, str | re.Pattern[str]],
        *,
        name: str = "patterns",
        decision: Decision = "deny",
        max_length: int = _MOST_PATTERN_INPUT,
    ) -> None:
        self.name = name
        self._ruling = _ruling(decision)
        self._most = _whole("Patterns: max_length", max_length, 1)
        if not isinstance(patterns, Mapping) and not isinstance(patterns, str):
            patterns = {f"pattern_{number}": pattern for number, pattern in enumerate(patterns, 1)}
        self._patterns = [(_compiled("Patterns: patterns", each), rule) for rule, each in _listed("patterns", patterns)]

    def __call__(self, subject: Subject) -> Deny | Flag | None:
        """Judge the text of a subject."""
        text = subject.normal
        for pattern, rule in self._patterns:
            if pattern.search(text, 0, self._most):
                return self._ruling(f"a pattern is in the {_noun(subject)}", rule)
        subject.require_whole()
        if len(text) > self._most:
            raise TextTooLongError(f"only the first {self._most:,} of {len(text):,} characters were searched")
        return None


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
        if not isinstance(allowed, Mapping) or any(isinstance(tools, str) for tools in allowed.values()):
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
        self._ruling = _ruling(decision)
        self._required = required
        self._minimum, self._maximum = _number("minimum", minimum), _number("maximum", maximum)
        self._one_of = None if one_of is None else tuple(one_of)
        self._pattern = None if pattern is None else _compiled("ArgumentRule: pattern", pattern, 0)
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
        if len(value) > _MOST_PATTERN_INPUT:
            return f"is longer than {_MOST_PATTERN_INPUT:,} characters"
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
        self._most = _whole("MaxToolCalls: most", most, 0)
        self._ruling = _ruling(decision)
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


def _noun(subject: Subject) -> str:
    return "arguments" if subject.moment == "tool_call" else "input" if subject.moment == "agent_input" else "output"


def _ruling(decision: str) -> type[Deny] | type[Flag]:
    if decision not in _RULINGS:
        raise ConfigurationError(f"decision={decision!r}: expected one of deny, flag")
    return _RULINGS[decision]


def _listed(what: str, given: Any) -> list[tuple[str, Any]]:
    """Return pairs of rule id and rule; in a bare list each is its own id."""
    if isinstance(given, str) or not isinstance(given, Iterable) or not given:
        raise ConfigurationError(f"{what}={given!r:.80}: expected a list of {what}, or {what} by the id of their rule")
    return (
        [(str(rule), each) for rule, each in given.items()]
        if isinstance(given, Mapping)
        else [(str(each), each) for each in given]
    )


def _compiled(what: str, pattern: Any, flags: int = re.IGNORECASE) -> re.Pattern[str]:
    try:
        found = pattern if isinstance(pattern, re.Pattern) else re.compile(pattern, flags)
    except (re.error, TypeError) as error:
        raise ConfigurationError(f"{what}={pattern!r:.80}: expected a regular expression ({error})") from None
    if isinstance(found.pattern, bytes):
        raise ConfigurationError(f"{what}={pattern!r:.80}: expected a regular expression of text, not of bytes")
    return found


def _number(what: str, bound: Any) -> Any:
    if bound is None or _is_number(bound):
        return bound
    raise ConfigurationError(f"ArgumentRule: {what}={bound!r:.80}: expected a number")


def _whole(what: str, given: Any, least: int) -> int:
    if isinstance(given, bool) or not isinstance(given, int) or given < least:
        raise ConfigurationError(f"{what}={given!r:.80}: expected a whole number of {least} or more")
    return given


def _is_number(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, int) or (isinstance(value, float | Decimal) and not math.isnan(value))
