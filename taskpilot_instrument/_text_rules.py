"""Ready-made policies about what is said: keywords, patterns.

Each is a policy as it is; :class:`Policy` around it says more, such as ``Policy(Keywords(["delete"]),
moments=["tool_call"], on_deny="replace", replacement="not done")``.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any, Final

from taskpilot_instrument._rule_fields import MOST_PATTERN_INPUT, Decision, compiled, ruling, whole
from taskpilot_instrument._subject import MOMENTS, Subject, TextTooLongError, folded, normalised
from taskpilot_instrument.errors import ConfigurationError
from taskpilot_instrument.policy import Deny, Flag

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
        self._ruling = ruling(decision)
        by_rule = _listed("words", words)
        self._words: list[tuple[str, str]] = []
        for rule, given in by_rule:
            for word in given if isinstance(given, Iterable) and not isinstance(given, str) else (given,):
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
        max_length: int = MOST_PATTERN_INPUT,
    ) -> None:
        self.name = name
        self._ruling = ruling(decision)
        self._most = whole("Patterns: max_length", max_length, 1)
        listed = _listed("patterns", patterns)
        if not isinstance(patterns, Mapping):
            listed = [(f"pattern_{number}", pattern) for number, (_, pattern) in enumerate(listed, 1)]
        self._patterns = [(compiled("Patterns: patterns", each), rule) for rule, each in listed]

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


def _noun(subject: Subject) -> str:
    return "arguments" if subject.moment == "tool_call" else "input" if subject.moment == "agent_input" else "output"


def _listed(what: str, given: Any) -> list[tuple[str, Any]]:
    """Return pairs of rule id and rule; in a bare list each is its own id."""
    listed: list[tuple[str, Any]] = []
    if isinstance(given, Mapping):
        listed = [(str(rule), each) for rule, each in given.items()]
    elif isinstance(given, Iterable) and not isinstance(given, str):
        listed = [(str(each), each) for each in given]
    if not listed:
        raise ConfigurationError(f"{what}={given!r:.80}: expected a list of {what}, or {what} by the id of their rule")
    return listed
