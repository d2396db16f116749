"""The ready-made policies: keywords, patterns, allowed tools, arguments, number of tool calls."""

import re
import string
import threading
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionMessage

import taskpilot_instrument as tp
from taskpilot_instrument.testing import capture


@tp.observed_agent(name="Echo")
def echo(*given: Any) -> None:
    """Do nothing."""


@tp.observed_agent(name="Says")
def says(what: Any) -> Any:
    """Return something."""
    return what


@tp.observed_tool
def transfer(amount: Any = 0, to: Any = None, **more: Any) -> str:
    """Do nothing."""
    return "done"


def denied(policy: Any, call: Callable[..., Any], *given: Any, **named: Any) -> str | None:
    """Return why a policy denies a call; None where it does not."""
    with capture(policies=[policy], reraise=True) as captured:
        try:
            call(*given, **named)
        except tp.PolicyViolationError as error:
            return error.reason
        # A tool call outside of runs has no run that could count a failed check.
        assert [] == [line for line in captured.logs if "check_failed" in str(line.get("reason"))]
        return None


# --- keywords -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keyword", "text"),
    [
        ("delete", "please delete it"),
        ("delete", "DELETE"),
        ("delete", "delete_all, now"),
        ("delete", "undelete, delete"),
        ("delete", "ｄｅｌｅｔｅ"),
        ("delete", "de\u00adle\u200bte"),
        ("delete", "删delete除"),
        ("drop table", "drop \n\t table"),
        ("c++", "in C++"),
        ("straße", "STRASSE"),
        ("Straße", "die Straße!"),
        ("café", "un cafe\u0301"),
        ("ﬁle", "file"),
        ("удалить", "Удалить всё"),
        ("διαγραφή", "ΔΙΑΓΡΑΦΉ"),
        ("حذف", "أريد حذف الملف"),
        ("削除", "ファイルを削除してください"),
        ("ลบ", "กรุณาลบไฟล์"),
        ("삭제", "파일을 삭제해 주세요"),
        ("हटा", "इसे हटा दें"),
        ("1", "a 1 b"),
        ("delete", "“delete”"),
    ],
)
def test_a_keyword_is_found(keyword: str, text: str) -> None:
    """A word is found in any case, form and script, also where characters that nobody sees are in it."""
    assert f"[{keyword}] a keyword is in the input" == denied(tp.Keywords([keyword]), echo, text)


@pytest.mark.parametrize(
    ("keyword", "text"),
    [
        ("delete", "undelete it"),
        ("delete", "it was deleted"),
        ("delete", "delete2"),
        ("delete", "undeleted"),
        ("удалить", "неудалить"),
        ("cafe", "café"),
        ("हट", "हटा"),
        ("drop table", "drop the table"),
        ("delete", ""),
    ],
)
def test_a_part_of_a_word_is_no_keyword(keyword: str, text: str) -> None:
    """A word within another one is another word."""
    assert None is denied(tp.Keywords([keyword]), echo, text)


WORDS = st.text(st.sampled_from(string.ascii_lowercase + "äßéжя"), min_size=1, max_size=6)


@given(WORDS, st.lists(WORDS, max_size=6), st.sampled_from([" ", ", ", "_", "\n", " – ", "/"]))
def test_keywords_are_found_as_words(keyword: str, words: list[str], between: str) -> None:
    """A keyword is found if, and only if, it is one of the words of the text, however these are written."""

    def same(word: str) -> str:
        return unicodedata.normalize("NFKC", word.casefold())

    expected = same(keyword) in {same(word) for word in words}
    text = unicodedata.normalize("NFD", between.join(words).upper())
    assert expected is (denied(tp.Keywords([keyword]), echo, text) is not None)


def test_keywords_by_rule() -> None:
    """Words can have rules of other names, so that the log does not say the word."""
    policy = tp.Keywords({"names": ["alice", "bob"], "other": ["carol"]}, name="people")
    assert "[names] a keyword is in the input" == denied(policy, echo, "ask Bob")
    assert "[other] a keyword is in the input" == denied(policy, echo, "ask Carol")


def test_keywords_can_flag() -> None:
    """A rule may flag in place of denying."""
    with capture(policies=[tp.Keywords(["delete"], decision="flag")]) as captured:
        echo("delete")
        assert 1 == captured.metrics.get_counter("policy.violations.total")


class Task(NamedTuple):
    """A named tuple with text in it."""

    title: str


@dataclass
class Order:
    """A dataclass with text in it."""

    note: str
    amount: float = 1.5


@pytest.mark.parametrize(
    "value",
    [
        "delete",
        ["a", {"role": "user", "content": [{"type": "text", "text": "delete"}]}],
        ("x", {"delete"}),
        Task("delete"),
        Order("delete"),
        ChatCompletionMessage(role="assistant", content="delete"),
    ],
)
def test_text_is_found_in_containers(value: object) -> None:
    """Text is found in lists, mappings, tuples, sets, dataclasses and pydantic models, in input and output."""
    keywords = tp.Keywords(["delete"])
    assert "[delete] a keyword is in the input" == denied(keywords, echo, value, 3)
    assert "[delete] a keyword is in the output" == denied(tp.Policy(keywords, moments=["agent_output"]), says, value)


def test_other_objects_are_not_looked_into() -> None:
    """An object that may be a client, with keys in it, is left alone."""

    class Client:
        api_key = "delete"

        def __init__(self) -> None:
            self.secret = "delete"

    assert None is denied(tp.Keywords(["delete"]), echo, Client())


def test_endless_values_come_to_an_end() -> None:
    """A value that holds itself, or too much, is judged as far as it goes, and counts as a failed check."""
    endless: list[Any] = ["a"]
    endless.append(endless)
    for value, rule in [
        (value, rule)
        for value in (endless, ["a"] * 20_000, "a " * 600_000)
        for rule in (tp.Keywords(["delete"]), tp.Patterns(["delete"], max_length=10_000_000))
    ]:
        with capture(policies=[tp.Policy(rule, moments=["agent_input"])]) as captured:
            echo(value)
            assert 1 == captured.golden_signals().check_failed_runs
            assert "[check_failed] there is more text than is looked at" == captured.logs[1]["reason"]


# --- patterns -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (r"\b\d{3}-\d{2}-\d{4}\b", "my number is 123-45-6789."),
        (r"\b\d{3}-\d{2}-\d{4}\b", "１２３-４５-６７８９"),
        (r"api[ _]key", "the API key"),
        (re.compile(r"^ab$", re.MULTILINE), "x\nab\ny"),
        (r"\d{16}", 4111111111111111),
    ],
)
def test_a_pattern_is_found(pattern: Any, text: object) -> None:
    """A regular expression is searched in normalised text without regard to case, in numbers too."""
    assert "[p] a pattern is in the input" == denied(tp.Patterns({"p": pattern}), echo, text)
    assert "[pattern_2] a pattern is in the input" == denied(tp.Patterns(["never", pattern]), echo, text)
    assert "[p] a pattern is in the arguments" == denied(tp.Patterns({"p": pattern}), transfer, to=text)


def test_a_compiled_pattern_has_its_own_flags() -> None:
    """A compiled pattern minds case, unless it says otherwise."""
    assert None is denied(tp.Patterns([re.compile("key")]), echo, "KEY")


def test_patterns_look_at_so_much_text() -> None:
    """What lies beyond the length is not searched; then the check counts as failed."""
    policy = tp.Patterns(["key"], max_length=10)
    assert None is not denied(policy, echo, "key" + "x" * 100)
    assert None is denied(policy, echo, "x" * 10)
    with capture(policies=[policy]) as captured:
        echo("x" * 100 + "key")
        assert 1 == captured.golden_signals().check_failed_runs
        assert "[check_failed] only the first 10 of 103 characters were searched" == captured.logs[1]["reason"]


# --- tools --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("allowed", "agent", "reason"),
    [
        ({"Echo": ["transfer"]}, "Echo", None),
        ({"Echo": ["add", "*"]}, "Echo", None),
        ({"*": ["transfer"]}, "Echo", None),
        ({"*": ["transfer"]}, None, None),
        ({"Echo": ["add"]}, "Echo", "[tool_not_listed] transfer is not on the list of Echo"),
        ({"Echo": ["add"], "*": ["transfer"]}, "Echo", "[tool_not_listed] transfer is not on the list of Echo"),
        ({"Other": ["transfer"]}, "Echo", "[tool_not_listed] transfer is not on the list of Echo"),
        ({"Echo": ["transfer"]}, None, "[tool_not_listed] transfer is not on the list of a caller without an agent"),
    ],
)
def test_an_agent_calls_the_tools_of_its_list(
    allowed: dict[str, list[str]], agent: str | None, reason: str | None
) -> None:
    """A tool that is not on the agent's list is denied; an agent without a list may call none."""
    call = transfer if agent is None else tp.observed_agent(name=agent)(lambda: transfer(1))
    assert reason == denied(tp.ToolAllowList(allowed), call)


def test_authorised_calls_are_logged() -> None:
    """Each tool call that the list allows is one decision, which is no violation."""
    with capture(policies=[tp.ToolAllowList({"*": ["transfer"]})]) as captured:
        transfer()
        (line, _) = captured.logs
        assert 0 == captured.metrics.get_counter("policy.violations.total")
    assert ("tool.authorized", "INFO", "transfer", "tool_allow_list", "allow") == tuple(
        line[name] for name in ("event_name", "level", "tool", "policy", "decision")
    )
    assert "[tool_listed] transfer is on the list of a caller without an agent" == line["reason"]


def test_a_call_that_is_denied_after_all_was_not_authorised() -> None:
    """What one policy allows and a later one denies is logged as denied alone."""
    with capture(policies=[tp.ToolAllowList({"*": ["*"]}), tp.MaxToolCalls(0)]) as captured:
        with pytest.raises(tp.PolicyViolationError):
            transfer()
        assert ["tool.denied"] == [line["event_name"] for line in captured.logs if line["category"] == "decision"]


# --- arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "arguments", "wrong"),
    [
        ({"maximum": 100}, {"amount": 100}, None),
        ({"maximum": 100}, {"amount": 100.01}, "is more than 100"),
        ({"maximum": 100}, {"amount": Decimal("100.01")}, "is more than 100"),
        ({"minimum": 0}, {"amount": -1}, "is less than 0"),
        ({"minimum": 0, "maximum": 1}, {"amount": float("nan")}, "is no number"),
        ({"maximum": 1}, {"amount": "7"}, "is no number"),
        ({"maximum": 1}, {"amount": True}, "is no number"),
        ({"maximum": 1}, {}, None),
        ({"maximum": 1, "required": True}, {}, "is missing"),
        ({"required": True}, {"amount": None}, None),
        ({"one_of": ["EUR", "USD"]}, {"amount": "USD"}, None),
        ({"one_of": ["EUR", "USD"]}, {"amount": "usd"}, "is none of the values that are allowed"),
        ({"one_of": ["EUR", "USD"]}, {"amount": ["USD"]}, "is none of the values that are allowed"),
        ({"pattern": r"[a-z]+@example\.com"}, {"amount": "bob@example.com"}, None),
        (
            {"pattern": r"[a-z]+@example\.com"},
            {"amount": "x bob@example.com"},
            "does not have the form that is allowed",
        ),
        ({"pattern": r"[a-z]+"}, {"amount": "BOB"}, "does not have the form that is allowed"),
        ({"pattern": r"[a-z]+"}, {"amount": 3}, "is no text"),
        ({"pattern": r"a+"}, {"amount": "a" * 100_001}, "is longer than 100,000 characters"),
        ({"check": lambda value: value % 2 == 0}, {"amount": 3}, "is not allowed"),
        ({"check": lambda value: value % 2 == 0}, {"amount": 4}, None),
    ],
)
def test_arguments_are_held_to_bounds(rule: dict[str, Any], arguments: dict[str, Any], wrong: str | None) -> None:
    """A bound on an argument says what is wrong with it, and not what it is."""
    policy = tp.ArgumentRule("transfer", "amount", **rule)
    expected = None if wrong is None else f"[transfer.amount] amount {wrong}"
    assert expected == denied(policy, transfer, **arguments)


@pytest.mark.parametrize(
    ("path", "arguments"),
    [
        ("to.iban", {"to": {"iban": "x"}}),
        ("to.note", {"to": Order("x")}),
        ("more.purpose", {"purpose": "x"}),
    ],
)
def test_a_dot_leads_into_an_argument(path: str, arguments: dict[str, Any]) -> None:
    """Mappings, objects and further keyword arguments are looked into."""
    rule = tp.ArgumentRule("transfer", path, one_of=["y"])
    assert f"[transfer.{path}] {path} is none of the values that are allowed" == denied(rule, transfer, **arguments)


def test_an_argument_rule_is_of_one_tool() -> None:
    """Other tools are not judged by it."""
    assert None is denied(tp.ArgumentRule("other", "amount", maximum=1), transfer, 100)


@given(st.decimals(allow_nan=False, allow_infinity=False), st.integers(), st.integers())
def test_bounds_are_inclusive(value: Decimal, minimum: int, maximum: int) -> None:
    """A number is allowed if, and only if, it lies between the bounds or on one of them."""
    rule = tp.ArgumentRule("transfer", "amount", minimum=minimum, maximum=maximum)
    assert (minimum <= value <= maximum) is (denied(rule, transfer, value) is None)


# --- number of calls ----------------------------------------------------------------------------


def test_tool_calls_of_a_run_are_counted() -> None:
    """The first call beyond the number is denied; another run starts anew."""

    @tp.observed_agent
    def agent(calls: int) -> int:
        for _ in range(calls):
            transfer()
        return calls

    with capture(policies=[tp.MaxToolCalls(3)]):
        assert 3 == agent(3)
        assert 3 == agent(3)
        with pytest.raises(tp.PolicyViolationError, match=r"\[max_tool_calls\] call 4 of a run that may make 3"):
            agent(4)
        with tp.workflow("triage"):
            agent(2)
            with pytest.raises(tp.PolicyViolationError):
                agent(2)


def test_only_the_calls_of_some_tools_are_counted() -> None:
    """With tools given, others are free."""
    with capture(policies=[tp.MaxToolCalls(0, tools=["other"])]):
        assert "done" == transfer()


def test_calls_are_counted_across_threads() -> None:
    """Of 40 calls that 8 threads make at once in one run, exactly as many pass as may."""
    passed: list[str] = []
    refused: list[Exception] = []

    def work() -> None:
        for _ in range(5):
            try:
                passed.append(transfer())
            except tp.PolicyViolationError as error:
                refused.append(error)

    with capture(policies=[tp.MaxToolCalls(17)], propagate_threads=True), tp.workflow("triage"):
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (17, 23) == (len(passed), len(refused))


# --- definitions --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("define", "said"),
    [
        (lambda: tp.Keywords([]), "words=[]"),
        (lambda: tp.Keywords("delete"), "words='delete'"),
        (lambda: tp.Keywords(5), "words=5"),  # type: ignore[arg-type]
        (lambda: tp.Keywords([5]), "words that are not empty"),  # type: ignore[list-item]
        (lambda: tp.Patterns(5), "patterns=5"),  # type: ignore[arg-type]
        (lambda: tp.Patterns("key"), "patterns='key'"),
        (lambda: tp.Patterns(each for each in ()), "patterns=<generator"),
        (lambda: tp.Keywords(["\u200b"]), "words that are not empty"),
        (lambda: tp.Keywords(["a"], decision="block"), "one of deny, flag"),  # type: ignore[arg-type]
        (lambda: tp.Patterns(["("]), "patterns='('"),
        (lambda: tp.Patterns({"a": re.compile(b"x")}), "not of bytes"),  # type: ignore[dict-item]
        (lambda: tp.Patterns(["a"], max_length=0), "max_length=0"),
        (lambda: tp.ToolAllowList(["add"]), "tools by agent"),  # type: ignore[arg-type]
        (lambda: tp.ToolAllowList({"a": "add"}), "tools by agent"),
        (lambda: tp.ToolAllowList({"a": ["add"], "b": "add"}), "tools by agent"),
        (lambda: tp.ToolAllowList({"a": 5}), "tools by agent"),  # type: ignore[dict-item]
        (lambda: tp.ArgumentRule("transfer", "amount"), "is needed"),
        (lambda: tp.ArgumentRule("transfer", "amount", maximum="7"), "maximum='7'"),  # type: ignore[arg-type]
        (lambda: tp.ArgumentRule("transfer", "amount", minimum=float("nan")), "minimum=nan"),
        (lambda: tp.MaxToolCalls(-1), "most=-1"),
        (lambda: tp.MaxToolCalls(True), "most=True"),
    ],
)
def test_a_wrong_rule_is_refused(define: Callable[[], object], said: str) -> None:
    """A wrong field is named, with what would be right."""
    with pytest.raises(tp.ConfigurationError) as caught:
        define()
    assert said in str(caught.value)
